"""Optimisers, schedules, clipping and averages, each against its definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from recurra import distributed
from recurra.config import UserError
from recurra.nn.embedding import Embedding
from recurra.nn.rows import is_row_sparse, rows
from recurra.nn.sampled import NCE
from recurra.nn.softmax import FullSoftmax
from recurra.optimization import (
    ADAGRAD_START,
    OPTIMIZERS,
    Plateau,
    WeightAverage,
    build_optimizer,
    clip_gradients,
    schedule_factor,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_finds_a_minimum(name):
    weights = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build_optimizer(name, nn.ParameterList([weights]), learning_rate=0.1 if name != "adagrad" else 1.0)
    for _ in range(200):
        optimizer.zero_grad()
        weights.square().sum().backward()
        optimizer.step()
    assert weights.abs().max() < 0.1


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="lion"):
        build_optimizer("lion", nn.Linear(1, 1), learning_rate=1.0)


WORDS = 50


class Lookup(nn.Module):
    """An embedding, an output layer, and what joins them."""

    def __init__(self, output, *, tied=False, dropout=0.0):
        super().__init__()
        self.embedding = Embedding(WORDS, 4, dropout=dropout)
        counts, weight = [1] * WORDS, self.embedding.weight if tied else None
        self.output = (
            FullSoftmax(4, counts, weight=weight)
            if output == "full"
            else NCE(4, counts, samples=int(output), weight=weight)
        )
        self.map = nn.Linear(4, 4)

    def loss(self, tokens):
        return self.output.loss(self.map(self.embedding(tokens)), tokens) / len(tokens)

    @property
    def row_sparse(self):
        """The names of parameters with gradients made of rows."""
        return {name for name, parameter in self.named_parameters() if is_row_sparse(parameter)}


def steps_of(optimizer, model, batches):
    """The gradients' norms at each step."""
    norms = []
    for number, tokens in enumerate(batches):
        torch.manual_seed(number)
        optimizer.zero_grad()
        model.loss(tokens).backward()
        norms.append(clip_gradients(model.parameters(), norm=0.1, value=0.05))
        optimizer.step()
    return torch.stack(norms)


def of_torch(name, model, rate=0.5):
    """The optimiser that is taken where no gradient is sparse."""
    match name:
        case "sgd" | "asgd":
            return torch.optim.SGD(model.parameters(), lr=rate)
        case "adagrad":
            return torch.optim.Adagrad(model.parameters(), lr=rate, initial_accumulator_value=ADAGRAD_START)
        case "rmsprop":
            return torch.optim.RMSprop(model.parameters(), lr=rate, alpha=0.99)
        case "adam" | "adamw":
            return torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))


MODELS = {
    "full": lambda: Lookup("full"),
    "sampled": lambda: Lookup("5"),
    "sampled, tied": lambda: Lookup("5", tied=True),
    "all sampled, tied": lambda: Lookup(str(WORDS), tied=True),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["sgd", "asgd", "adagrad"])
def test_row_sparse_gradients_move_weights_as_dense_ones(name, model):
    torch.manual_seed(1)
    sparse = MODELS[model]()
    dense = copy.deepcopy(sparse)
    batches = torch.randint(12, (5, 30))  # most words are not there, others several times
    norms = steps_of(build_optimizer(name, sparse, learning_rate=0.5), sparse, batches)
    assert sparse.embedding.weight.grad.is_sparse
    torch.testing.assert_close(norms, steps_of(of_torch(name, dense), dense, batches))
    assert not dense.embedding.weight.grad.is_sparse
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())


@pytest.mark.parametrize("model", ["sampled", "sampled, tied", "all sampled, tied"])
@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_lazy_updates_are_those_of_the_book_for_rows_of_every_batch(name, model, monkeypatch):
    torch.manual_seed(1)
    lazy = MODELS[model]().double()
    if model != "all sampled, tied":
        monkeypatch.setattr(lazy.output.draws, "draw", lambda: torch.arange(20, 25))
    before, dense = copy.deepcopy(lazy.state_dict()), copy.deepcopy(lazy)
    batches = torch.stack([torch.randperm(12).repeat(2) for _ in range(5)])
    touched = (
        torch.arange(WORDS) if model == "all sampled, tied" else torch.cat([torch.arange(12), torch.arange(20, 25)])
    )
    optimizer = build_optimizer(name, lazy, learning_rate=0.1)  # no more: the gradient of no row that is read vanishes
    torch.testing.assert_close(steps_of(optimizer, lazy, batches), steps_of(of_torch(name, dense, 0.1), dense, batches))
    assert lazy.row_sparse == {"embedding.weight", "output.bias"} | ({"output.weight"} if model == "sampled" else set())
    others = [word for word in range(WORDS) if word not in touched.tolist()]
    for parameter_name, value in lazy.state_dict().items():
        expected = dense.state_dict()[parameter_name]
        if parameter_name in ("output.weight", "output.bias"):
            torch.testing.assert_close(value[touched], expected[touched])
            assert torch.equal(value[others], before[parameter_name][others])
        else:
            torch.testing.assert_close(value, expected)
    for key, memory in optimizer.state[lazy.output.bias].items():
        assert key == "step" or (memory[touched].all() and not memory[others].any())


@pytest.mark.parametrize("options", [{"tied": True}, {"dropout": 0.5}], ids=["tied", "words dropped"])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "rmsprop"])
def test_dense_gradients_of_several_ranks_move_the_rows_that_sparse_ones_do(name, options, monkeypatch):
    torch.manual_seed(1)
    sparse = Lookup("5", **options).double()
    dense = copy.deepcopy(sparse)
    batches = torch.randint(12, (5, 30))
    steps_of(build_optimizer(name, sparse, learning_rate=0.5), sparse, batches)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    steps_of(build_optimizer(name, dense, learning_rate=0.5), dense, batches)
    assert not dense.embedding.weight.grad.is_sparse
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())


@pytest.mark.parametrize(
    ("model", "name", "options", "expected"),
    [
        ("full", "adagrad", {}, {"embedding.weight"}),
        ("full", "adam", {}, set()),
        ("full", "rmsprop", {}, set()),
        ("full", "sgd", {"momentum": 0.9}, set()),
        ("full", "adagrad", {"weight_decay": 0.1}, set()),
        ("sampled", "sgd", {}, {"embedding.weight", "output.weight", "output.bias"}),
        ("sampled", "adam", {}, {"embedding.weight", "output.weight", "output.bias"}),
        ("sampled", "rmsprop", {"momentum": 0.9}, set()),
        ("sampled", "adamw", {"weight_decay": 0.1}, set()),
        ("sampled, tied", "adam", {}, {"embedding.weight", "output.bias"}),
    ],
)
def test_which_parameters_get_gradients_of_rows(model, name, options, expected):
    model = MODELS[model]()
    build_optimizer(name, model, learning_rate=0.1, **options)
    assert model.row_sparse == expected


def test_a_weight_that_a_full_softmax_shares_has_dense_gradients():
    model = Lookup("full", tied=True)
    steps_of(build_optimizer("sgd", model, learning_rate=0.5), model, torch.randint(12, (2, 30)))
    assert not model.embedding.weight.grad.is_sparse


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("model", ["full", "sampled", "sampled, tied"])
def test_training_goes_on_from_a_saved_state_as_if_never_stopped(name, model):
    torch.manual_seed(1)
    model = MODELS[model]()
    first, second = torch.randint(12, (2, 4, 30))
    optimizer = build_optimizer(name, model, learning_rate=0.5)
    steps_of(optimizer, model, first)
    other = copy.deepcopy(model)
    state = {
        index: {key: torch.as_tensor(value).clone() for key, value in memory.items() if value is not None}
        for index, memory in optimizer.state_dict()["state"].items()
    }
    resumed = build_optimizer(name, other, learning_rate=0.5)
    resumed.load_state_dict(resumed.state_dict() | {"state": state})
    for each in (optimizer, resumed):
        for group in each.param_groups:  # as the schedule does
            group["lr"] = 0.25
    assert torch.equal(steps_of(optimizer, model, second), steps_of(resumed, other, second))
    for own, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, expected)


class OfItsOwn(nn.Module):
    """A table that asks for its own updates, beside a parameter that does not."""

    read_by_rows = ("table",)

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.table, self.rest = nn.Parameter(torch.ones(5, 2)), nn.Parameter(torch.ones(1))

    def optimizer_options(self):
        return [(self.table, self.options)]


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("rule", "divisor"),
    [
        ("sgd", [1.0, 1.0]),
        ("adagrad", [math.sqrt(0.5 + 9), math.sqrt(0.5 + 16)]),
        ("row-adagrad", [math.sqrt(0.5 + 12.5)] * 2),
    ],
)
@pytest.mark.parametrize("learning_rate", [0.01, 0.0])
def test_a_module_s_own_rule_and_rate(name, rule, divisor, learning_rate):
    model = OfItsOwn(rule=rule, rate=0.3, **({} if rule == "sgd" else {"initial": 0.5}))
    optimizer = build_optimizer(name, model, learning_rate=learning_rate)
    for group in optimizer.param_groups:  # the schedule at half its height
        group["lr"] = 0.5 * group.get("rate", learning_rate)
    (rows(model.table, torch.tensor([3])) * torch.tensor([3.0, 4.0])).sum().backward()
    assert model.table.grad.is_sparse
    model.rest.grad = torch.ones(1)
    optimizer.step()
    expected = torch.ones(5, 2)
    expected[3] -= 0.15 * torch.tensor([3.0, 4.0]) / torch.tensor(divisor)
    torch.testing.assert_close(model.table.detach(), expected)
    assert model.rest.item() == pytest.approx(1 - learning_rate / 2)


def test_weight_decay_is_refused_where_a_rule_knows_none():
    with pytest.raises(UserError, match=r"weight_decay: expected 0, got 0\.1"):
        build_optimizer("adam", OfItsOwn(rule="sgd", rate=1.0), learning_rate=1.0, weight_decay=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_momentum_is_refused_where_there_is_none(name):
    if name in ("sgd", "asgd", "rmsprop"):
        build_optimizer(name, nn.Linear(1, 1), learning_rate=1.0, momentum=0.9)
    else:
        with pytest.raises(UserError, match=f"expected 0 with {name}, .* got 0.9; .* choose sgd, asgd, rmsprop"):
            build_optimizer(name, nn.Linear(1, 1), learning_rate=1.0, momentum=0.9)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"row-adagrad, .* got 'lion'"):
        build_optimizer("sgd", OfItsOwn(rule="lion", rate=1.0), learning_rate=1.0)


def test_a_table_may_be_all_that_is_trained():
    table = Embedding(5, 2)
    optimizer = build_optimizer("adagrad", table, learning_rate=0.1)
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    optimizer.step()
    assert (table.weight != before).any(1).tolist() == [False, True, False, False, False]


class Made(TorchDispatchMode):
    """Notes the tensors that operations make, but for sparse ones, whose size is not what they hold."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, (tuple, list)) else [result]
        self.tensors += [each for each in found if isinstance(each, torch.Tensor) and not each.is_sparse]
        return result


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_makes_nothing_of_the_size_of_a_table(name):
    model = nn.ModuleList([Embedding(10_000, 3), NCE(3, [1] * 10_000, samples=20)])
    optimizer = build_optimizer(name, model, learning_rate=0.1)
    tokens = torch.tensor([5, 6, 5, 9_999])
    for _ in range(2):  # the first step makes what the optimiser remembers
        optimizer.zero_grad()
        with Made() as made:
            model[1].loss(model[0](tokens), tokens).backward()
            clip_gradients(model.parameters(), norm=1.0, value=1.0)
            optimizer.step()
    there = {t.untyped_storage().data_ptr() for memory in optimizer.state.values() for t in memory.values()}
    there |= {t.untyped_storage().data_ptr() for t in model.parameters()}
    assert 0 < max(t.numel() for t in made.tensors if t.untyped_storage().data_ptr() not in there) < 1_000


def test_schedules_rise_then_fall_to_a_hundredth():
    for schedule in ("cosine", "linear"):
        factors = [schedule_factor(schedule, p / 100, 0.1) for p in range(101)]
        assert factors[:11] == sorted(factors[:11])
        assert factors[10:] == sorted(factors[10:], reverse=True)
        assert factors[10] == pytest.approx(1.0)
        assert factors[-1] == pytest.approx(0.01)
    assert schedule_factor("linear", 0.55, 0.1) == pytest.approx(1 - 0.99 / 2)
    assert schedule_factor("cosine", 0.55, 0.1) == pytest.approx(0.01 + 0.99 / 2)
    assert schedule_factor("constant", 0.9, 0.0) == schedule_factor("plateau", 0.9, 0.0) == 1.0


def test_plateau_quarters_after_waiting():
    plateau = Plateau(0.25, patience=1)
    scales = []
    for loss in (5.0, 4.0, 4.5, 4.5, 3.0, 3.0, 3.0):
        plateau.update(loss)
        scales.append(plateau.scale)
    assert scales == [1, 1, 1, 0.25, 0.25, 0.25, 0.0625]
    other = Plateau(0.25, patience=1)
    other.load(plateau.state())
    assert vars(other) == vars(plateau)


def gradients(*values):
    parameters = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters


def test_clipping_by_norm_keeps_the_direction_and_tells_the_norm_before():
    parameters = gradients([3.0], [0.0, 4.0])
    assert clip_gradients(parameters, norm=1.0, value=None) == pytest.approx(5.0)
    torch.testing.assert_close(
        torch.cat([p.grad for p in parameters]), torch.tensor([0.6, 0.0, 0.8]), atol=1e-5, rtol=0
    )
    small = gradients([0.3])
    clip_gradients(small, norm=1.0, value=None)
    assert small[0].grad.item() == pytest.approx(0.3)


def test_clipping_by_value_comes_first():
    parameters = gradients([3.0], [0.0, -4.0])
    assert clip_gradients(parameters, norm=None, value=1.0) == pytest.approx(5.0)
    assert torch.cat([p.grad for p in parameters]).tolist() == [1.0, 0.0, -1.0]
    parameters = gradients([3.0], [0.0, -4.0])
    clip_gradients(parameters, norm=2**0.5 / 2, value=1.0)
    torch.testing.assert_close(
        torch.cat([p.grad for p in parameters]), torch.tensor([0.5, 0.0, -0.5]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("decay", "expected"), [(1.0, 2.5), (0.5, 3.125)])
def test_average_of_weights(decay, expected):
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay)
    for value in (1.0, 2.0, 3.0, 4.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
    with average.applied_to(model):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 4.0


def test_an_optimizer_made_later_decides_anew_about_sparse_gradients():
    model = nn.Sequential(Embedding(10, 4), nn.Linear(4, 1))
    for name, sparse in (("sgd", True), ("adam", False), ("adagrad", True)):
        optimizer = build_optimizer(name, model, learning_rate=0.1)
        optimizer.zero_grad()
        model(torch.tensor([1, 1, 3])).sum().backward()
        assert model[0].weight.grad.is_sparse == sparse
        optimizer.step()


def test_an_average_leaves_large_tables_as_they_are():
    model = Lookup("5")
    average = WeightAverage(model, 1.0)
    assert set(average.weights) == {"map.weight", "map.bias"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    average.update(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(5.0)
    with average.applied_to(model):
        assert {name: p.flatten()[0].item() for name, p in model.named_parameters()} == {
            "embedding.weight": 5, "output.weight": 5, "output.bias": 5, "map.weight": 3, "map.bias": 3
        }  # fmt: skip
    assert all((p == 5).all() for p in model.parameters())
    assert len(WeightAverage(Lookup("full"), 1.0).weights) == 5  # where a step goes through all words anyway


def test_sparse_gradients_are_added_up_once():
    parameter = nn.Parameter(torch.zeros(4, 2))
    parameter.grad = torch.sparse_coo_tensor([[1, 1, 3]], torch.ones(3, 2), (4, 2), check_invariants=False)
    assert clip_gradients([parameter], norm=None, value=None) == pytest.approx(math.sqrt(4 + 4 + 1 + 1))
    assert parameter.grad.is_coalesced()
    assert parameter.grad._values().tolist() == [[2.0, 2.0], [1.0, 1.0]]

"""Optimisers, schedules, clipping and averages, each against its definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from recurra import distributed
from recurra.config import UserError
from recurra.nn.embedding import Embedding
from recurra.optimization import OPTIMIZERS, Plateau, WeightAverage, build_optimizer, clip_gradients, schedule_factor


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


class Lookup(nn.Module):
    """An embedding, an output layer of its own, and what joins them."""

    def __init__(self, tied):
        super().__init__()
        self.embedding = Embedding(50, 4)
        self.output = nn.Linear(4, 50, bias=False)
        if tied:
            self.output.weight = self.embedding.weight

    def loss(self, tokens):
        return nn.functional.cross_entropy(self.output(self.embedding(tokens)), tokens)


def steps_of(name, model, batches):
    optimizer = build_optimizer(name, model, learning_rate=0.5)
    norms = []
    for tokens in batches:
        optimizer.zero_grad()
        model.loss(tokens).backward()
        norms.append(clip_gradients(model.parameters(), norm=0.1, value=0.05))
        optimizer.step()
    return torch.stack(norms)


@pytest.mark.parametrize("name", ["sgd", "asgd", "adagrad"])
def test_row_sparse_gradients_move_weights_as_dense_ones(name, monkeypatch):
    torch.manual_seed(1)
    sparse = Lookup(tied=False)
    dense = copy.deepcopy(sparse)
    batches = torch.randint(12, (5, 30))  # most words are not there, others several times
    norms = steps_of(name, sparse, batches)
    assert sparse.embedding.weight.grad.is_sparse
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    torch.testing.assert_close(norms, steps_of(name, dense, batches))
    assert not dense.embedding.weight.grad.is_sparse
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict())


@pytest.mark.parametrize(
    ("name", "options"), [("adam", {}), ("sgd", {"momentum": 0.9}), ("adagrad", {"weight_decay": 0.1})]
)
def test_optimizers_that_move_every_row_get_dense_gradients(name, options):
    model = Lookup(tied=False)
    build_optimizer(name, model, learning_rate=0.1, **options)
    assert not model.embedding.row_sparse


def test_a_tied_embedding_has_dense_gradients():
    model = Lookup(tied=True)
    steps_of("sgd", model, torch.randint(12, (2, 30)))
    assert not model.embedding.weight.grad.is_sparse


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

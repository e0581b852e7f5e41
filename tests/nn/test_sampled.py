"""Sampled output layers against their definitions, word by word, and the sampler against its distribution."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recurra.config import UserError
from recurra.nn import sampled
from recurra.nn.embedding import Embedding
from recurra.nn.rows import rows, set_row_sparse
from recurra.nn.sampled import NCE, BlackOut, DistinctDraws, SampledSoftmax, proposal_probabilities
from recurra.nn.softmax import FullSoftmax

COUNTS = [0, 40, 900, 700, 300, 200, 100, 60, 30, 20, 10, 9, 8, 5, 3, 2, 1, 1, 1, 1]
WORDS, FEATURES = len(COUNTS), 6
LAYERS = [SampledSoftmax, NCE, BlackOut]


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    monkeypatch.setattr(sampled, "SCORES_PER_CHUNK", 64)  # several chunks even here
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def log_sigmoid(x):
    return -torch.log1p(torch.exp(-x))


def plain_loss(kind, hidden, weight, bias, target, others):
    """The loss of one token by its paper; ``others`` are words with their Q, the target among them only in NCE."""
    of_target, *scores = (hidden @ weight[w] + bias[w] - math.log(q) for w, q in (target, *others))
    exponentials = [score.exp() for score in (of_target, *scores)]
    match kind.__name__:
        case "SampledSoftmax":
            return -torch.log(exponentials[0] / sum(exponentials))
        case "NCE":
            return -log_sigmoid(of_target) - sum(log_sigmoid(-score) for score in scores)
        case "BlackOut":
            p = [e / sum(exponentials) for e in exponentials]
            return -torch.log(p[0]) - sum(torch.log(1 - each) for each in p[1:])


def assert_same_with_gradients(layer, loss, hidden, expected):
    torch.testing.assert_close(loss, expected)
    wanted = [hidden, layer.weight, layer.bias]
    for own, reference in zip(
        torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * expected, wanted), strict=True
    ):
        torch.testing.assert_close(own, reference, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", LAYERS)
def test_with_every_word_sampled_losses_are_those_of_the_definitions(kind):
    layer = kind(FEATURES, COUNTS, samples=WORDS)
    hidden, targets = torch.randn(7, 3, FEATURES, requires_grad=True), torch.randint(WORDS, (7, 3))
    scores = (hidden @ layer.weight.t() + layer.bias).view(-1, WORDS)
    p = scores.softmax(1)
    expected = 0
    for row, target in enumerate(targets.flatten().tolist()):
        rest = [word for word in range(WORDS) if word != target]
        if kind is NCE:  # each word is noise too, the target among them
            expected = expected - log_sigmoid(scores[row, target]) - log_sigmoid(-scores[row]).sum()
        else:
            expected = expected - p[row, target].log()
        if kind is BlackOut:
            expected = expected - sum((1 - p[row, j]).log() for j in rest)
    assert_same_with_gradients(layer, layer.loss(hidden, targets), hidden, expected)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("proposal", ["log-uniform", "unigram"])
@pytest.mark.parametrize("samples", [[2], [2, 3, 7, 11, 19]])
def test_losses_of_given_samples_with_targets_among_them(kind, proposal, samples, monkeypatch):
    layer = kind(FEATURES, COUNTS, samples=len(samples), proposal=proposal, power=0.5)
    monkeypatch.setattr(layer.draws, "draw", lambda: torch.tensor(samples))
    hidden, targets = torch.randn(24, FEATURES, requires_grad=True), torch.tensor([*range(WORDS), 2, 2, 7, 19])
    q = proposal_probabilities(proposal, COUNTS, 0.5)
    chances = (1 - (1 - q) ** layer.draws.tries).tolist()
    expected = sum(
        plain_loss(
            kind,
            hidden[row],
            layer.weight,
            layer.bias,
            (t, chances[t]),
            [(s, chances[s]) for s in samples if s != t or kind is NCE],
        )
        for row, t in enumerate(targets.tolist())
    )
    assert_same_with_gradients(layer, layer.loss(hidden, targets), hidden, expected)


@pytest.mark.parametrize("scale", [30.0, 1e3])
def test_blackout_of_a_sample_that_is_nearly_certain(scale):
    """1 - p of it is beyond float32, but log(1 - p) is not, nor is the gradient."""
    layer = BlackOut(2, [3, 2, 1], samples=3).float()
    torch.nn.init.zeros_(layer.bias)
    layer.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]))
    hidden = torch.tensor([[scale, 1.0]], dtype=torch.float32, requires_grad=True)
    loss = layer.loss(hidden, torch.tensor([0]))
    s = [1.0, scale, -scale]
    # p_1 is 1 to within rounding: -log p_0 is s_1 - s_0, and so is -log(1 - p_1)
    assert loss.item() == pytest.approx(2 * (s[1] - s[0]), rel=1e-5)
    (grad,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(grad, torch.tensor([[2.0, -2.0]], dtype=torch.float32))  # of 2 (s_1 - s_0)


@pytest.mark.parametrize("kind", LAYERS)
def test_in_evaluation_all_is_exact_and_nothing_is_drawn(kind):
    layer, full = kind(FEATURES, COUNTS, samples=5), FullSoftmax(FEATURES, COUNTS)
    full.load_state_dict(layer.state_dict())  # the same parameters, and no more
    hidden, targets = torch.randn(9, FEATURES), torch.randint(WORDS, (9,))
    state = torch.get_rng_state()
    torch.testing.assert_close(layer.log_probs(hidden), full.log_probs(hidden))
    torch.testing.assert_close(layer.log_probs(hidden, targets), full.log_probs(hidden, targets))
    layer.eval()
    torch.testing.assert_close(layer.loss(hidden, targets), full.loss(hidden, targets))
    assert torch.equal(state, torch.get_rng_state())


def test_the_mean_gradient_of_sampled_softmax_approaches_the_exact_one():
    hidden, targets = 2 * torch.randn(30, FEATURES), torch.randint(WORDS, (30,))
    errors = []
    for samples in (2, 6, 12, 18, 20):
        torch.manual_seed(1)
        layer = SampledSoftmax(FEATURES, COUNTS, samples=samples, proposal="unigram", power=0.25)
        wanted = [layer.weight, layer.bias]
        exact = torch.autograd.grad(layer.eval().loss(hidden, targets), wanted)
        layer.train()
        draws = 100
        mean = torch.autograd.grad(sum(layer.loss(hidden, targets) for _ in range(draws)) / draws, wanted)
        difference = math.sqrt(sum((a - b).square().sum() for a, b in zip(mean, exact, strict=True)))
        errors.append(difference / math.sqrt(sum(b.square().sum() for b in exact)))
    assert errors == sorted(errors, reverse=True)
    assert errors[-2] < 0.1
    assert errors[-1] < 1e-12


def chances_of_draws(q, samples):
    """The chance of every outcome of successive draws without replacement, in order."""
    for order in itertools.permutations(range(len(q)), samples):
        chance, left = 1.0, 1.0
        for word in order:
            chance, left = chance * q[word].item() / left, left - q[word].item()
        yield order, chance


def learnt_scores(layer, frequencies, monkeypatch):
    """Where biases end that know nothing, when words are targets as often as said, over all outcomes of the draws."""
    torch.nn.init.zeros_(layer.bias)
    targets = torch.arange(len(frequencies)).repeat_interleave(frequencies)
    hidden = torch.zeros(len(targets), 1)
    chances = defaultdict(float)
    for order, chance in chances_of_draws(proposal_probabilities("log-uniform", frequencies.tolist()), 2):
        chances[tuple(sorted(order))] += chance
    optimizer = torch.optim.LBFGS([layer.bias], max_iter=30, line_search_fn="strong_wolfe")

    def expected_loss():
        optimizer.zero_grad()
        total = 0
        for words, chance in chances.items():
            monkeypatch.setattr(layer.draws, "draw", lambda words=words: torch.tensor(words))
            total = total + chance * layer.loss(hidden, targets)
        total.backward()
        return total

    optimizer.step(expected_loss)
    return layer.bias.detach()


FREQUENCIES = torch.tensor([1, 10, 2, 2, 3, 2])


@pytest.mark.parametrize("kind", [SampledSoftmax, BlackOut])
def test_what_is_learnt_from_samples_is_the_distribution_of_the_targets(kind, monkeypatch):
    """Without log Q the words that are sampled often would seem rarer than they are."""
    scores = learnt_scores(kind(1, [1] * 6, samples=2), FREQUENCIES, monkeypatch)
    torch.testing.assert_close(scores.softmax(0), FREQUENCIES / 20, rtol=0.0, atol=0.02)


def test_nce_learns_log_probabilities_without_being_told_to_normalise(monkeypatch):
    scores = learnt_scores(NCE(1, [1] * 6, samples=2), FREQUENCIES, monkeypatch)
    torch.testing.assert_close(scores.exp(), FREQUENCIES / 20, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("kind", LAYERS)
def test_only_rows_of_samples_and_targets_have_gradients(kind, monkeypatch):
    embedding = Embedding(WORDS, FEATURES)
    layer = kind(FEATURES, COUNTS, samples=3, weight=embedding.weight)
    monkeypatch.setattr(layer.draws, "draw", lambda: torch.tensor([2, 5, 9]))
    for parameter in layer.parameters():
        set_row_sparse(parameter, True)
    layer.loss(embedding(torch.tensor([1, 2, 17])), torch.tensor([2, 17, 4])).backward()
    assert layer.bias.grad.coalesce().indices()[0].tolist() == [2, 4, 5, 9, 17]
    assert embedding.weight.grad.coalesce().indices()[0].tolist() == [1, 2, 4, 5, 9, 17]
    sparse = layer.weight.grad.to_dense(), layer.bias.grad.to_dense()
    for parameter in layer.parameters():
        set_row_sparse(parameter, False)
        parameter.grad = None
    layer.loss(rows(embedding.weight, torch.tensor([1, 2, 17])), torch.tensor([2, 17, 4])).backward()
    torch.testing.assert_close(sparse, (layer.weight.grad, layer.bias.grad))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, but for views of a table and its sparse gradient."""

    def __init__(self, table):
        super().__init__()
        self.numel, self.table = 0, table.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            dense = isinstance(tensor, torch.Tensor) and not tensor.is_sparse
            if dense and tensor.untyped_storage().data_ptr() != self.table:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("kind", LAYERS)
def test_scores_are_never_held_all_at_once(kind, monkeypatch):
    monkeypatch.setattr(sampled, "SCORES_PER_CHUNK", 2**13)
    layer = kind(2, [1] * 10_000, samples=500)
    for parameter in layer.parameters():
        set_row_sparse(parameter, True)
    hidden, targets = torch.randn(400, 2, requires_grad=True), torch.randint(10_000, (400,))
    with Largest(layer.weight) as largest:
        layer.loss(hidden, targets).backward()
    assert largest.numel <= 2**13


@pytest.mark.parametrize("kind", LAYERS)
def test_a_graph_can_be_gone_through_twice_and_without_one_there_is_the_same_loss(kind):
    layer, targets = kind(FEATURES, COUNTS, samples=5), torch.randint(WORDS, (9,))
    hidden = torch.randn(9, FEATURES, requires_grad=True)
    torch.manual_seed(3)
    loss = layer.loss(hidden, targets)
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, hidden), (2 * first,))
    torch.manual_seed(3)
    with torch.no_grad():
        torch.testing.assert_close(layer.loss(hidden, targets), loss.detach())


@pytest.mark.parametrize("kind", LAYERS)
def test_bfloat16_products_are_summed_in_float32(kind):
    layer = kind(32, [1] * 500, samples=50).float()
    hidden, targets = torch.randn(40, 32).float().requires_grad_(), torch.randint(500, (40,))
    torch.manual_seed(1)
    exact = layer.loss(hidden, targets)
    wanted = [hidden, layer.weight, layer.bias]
    expected = torch.autograd.grad(exact, wanted)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer.loss(hidden, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=3e-3, atol=0)
    for own, reference in zip(torch.autograd.grad(loss, wanted), expected, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, reference, rtol=0, atol=0.03 * reference.abs().max().item())


@pytest.mark.parametrize("kind", LAYERS)
def test_an_empty_batch_costs_nothing(kind):
    layer = kind(FEATURES, COUNTS, samples=5)
    assert layer.loss(torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_a_target_that_is_no_word_is_refused():
    with pytest.raises(IndexError):
        NCE(FEATURES, COUNTS, samples=5).loss(torch.zeros(1, FEATURES), torch.tensor([WORDS]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": WORDS + 1}, "samples: expected 1 to 20, .* got 21"),
        ({"samples": 0}, "got 0"),
        ({"samples": 5, "proposal": "zipf"}, "'zipf'; choose from log-uniform, unigram"),
        ({"samples": 5, "power": 2.0}, "expected 0 to 1, got 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SampledSoftmax(FEATURES, COUNTS, **options)


# ---- the sampler -----------------------------------------------------------------------------------------------------


def test_proposals_are_what_their_formulas_say():
    log_uniform = proposal_probabilities("log-uniform", COUNTS)
    assert log_uniform.tolist() == pytest.approx([math.log((w + 2) / (w + 1)) / math.log(21) for w in range(20)])
    unigram = proposal_probabilities("unigram", COUNTS, 0.5)
    total = sum(math.sqrt(c + 1) for c in COUNTS)
    assert unigram.tolist() == pytest.approx([math.sqrt(c + 1) / total for c in COUNTS])


def draws_of(probabilities, samples, one_by_one):
    draws = DistinctDraws(probabilities, samples)
    draws._one_by_one = one_by_one
    draws._table = probabilities.cumsum(0) if one_by_one else probabilities
    return draws


@pytest.mark.parametrize("one_by_one", [True, False])
def test_words_come_as_often_as_in_successive_draws_without_replacement(one_by_one):
    q = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    draws = draws_of(q, 3, one_by_one)
    expected = torch.zeros(5)
    for order, chance in chances_of_draws(q, 3):
        expected[list(order)] += chance
    found = torch.stack([torch.bincount(draws.draw(), minlength=5) for _ in range(4000)]).double().mean(0)
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)  # four standard deviations


@pytest.mark.parametrize("proposal", ["log-uniform", "unigram"])
@pytest.mark.parametrize("samples", [20, 300])
def test_expected_counts_are_those_of_the_draws(proposal, samples):
    counts = [10_000 // (word + 1) for word in range(500)]
    draws = DistinctDraws(proposal_probabilities(proposal, counts, 0.75), samples)
    assert draws.log_expected.exp().sum().item() == pytest.approx(samples)
    assert draws._one_by_one == (samples == 20)
    found = torch.zeros(500)
    for _ in range(1000):
        drawn = draws.draw()
        assert drawn.tolist() == sorted(set(drawn.tolist()))
        assert len(drawn) == samples
        found[drawn] += 1 / 1000
    assert (found - draws.log_expected.exp()).abs().max() < 0.08  # four standard deviations, and the approximation
    heads = found[:50].sum().item(), draws.log_expected[:50].exp().sum().item()
    assert heads[0] == pytest.approx(heads[1], rel=0.03)


def test_all_words_are_certain_and_drawn_without_chance():
    draws = DistinctDraws(torch.full((7,), 1 / 7), 7)
    assert draws.draw().tolist() == list(range(7))
    assert draws.log_expected.tolist() == [0.0] * 7


def test_draws_follow_torch_s_generator():
    draws = DistinctDraws(proposal_probabilities("log-uniform", [1] * 10_000), 50)
    torch.manual_seed(5)
    first, second = draws.draw(), draws.draw()
    torch.manual_seed(5)
    assert torch.equal(first, draws.draw())
    assert not torch.equal(first, second)


def test_many_draws_that_are_nearly_all_repeats_are_made_all_the_same():
    q = torch.tensor([1.0, 1e-6, 1e-6])
    assert len(DistinctDraws(q / q.sum(), 2).draw()) == 2


def test_a_word_may_be_as_good_as_certain():
    draws = DistinctDraws(proposal_probabilities("unigram", [10**17, 0, 0]), 2)
    assert draws.log_expected.exp().tolist() == pytest.approx([1.0, 0.5, 0.5], rel=1e-6)
    drawn = draws.draw().tolist()
    assert drawn[0] == 0
    assert len(drawn) == 2


def test_a_layer_can_be_made_without_its_parameters():
    """As where only its sizes are asked for."""
    with torch.device("meta"):
        layer = SampledSoftmax(FEATURES, COUNTS, samples=5)
    assert layer.weight.is_meta
    assert len(layer.draws.draw()) == 5

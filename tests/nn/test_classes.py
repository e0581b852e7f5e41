"""The class-factored softmax against the definition, by enumeration and finite differences."""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recurra.nn import classes
from recurra.nn.classes import ClassSoftmax, assign_ngrams, class_bounds
from recurra.nn.hashed import HashedNgrams
from recurra.nn.rows import set_row_sparse
from recurra.optimization import build_optimizer, clip_gradients

COUNTS = [0, 40, 900, 700, 300, 200, 100, 60, 30, 20, 10, 9, 8, 5, 3, 2, 1, 1, 1, 1]
WORDS = len(COUNTS)
FEATURES = 6


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    monkeypatch.setattr(classes, "SCORES_PER_CHUNK", 200)  # many chunks even here
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def ngrams(order=3, bits=9, width=4, **options):
    return HashedNgrams(order, bits, line_end=1, rate=0.1, width=width, **options)


KINDS = {
    "plain": lambda: ClassSoftmax(FEATURES, COUNTS),
    "one class": lambda: ClassSoftmax(FEATURES, COUNTS, classes=1),
    "a class a word": lambda: ClassSoftmax(FEATURES, COUNTS, classes=10_000),
    "several": lambda: ClassSoftmax(FEATURES, COUNTS, classes=7),
    "n-grams": lambda: ClassSoftmax(FEATURES, COUNTS, hashed=ngrams()),
    "n-grams, colliding": lambda: ClassSoftmax(FEATURES, COUNTS, classes=4, hashed=ngrams(4, 5, 2)),
    "n-grams, a class a word": lambda: ClassSoftmax(FEATURES, COUNTS, classes=10_000, hashed=ngrams(width=8)),
    "n-grams alone": lambda: ClassSoftmax(0, COUNTS, hashed=ngrams()),
    "one-word vocabulary": lambda: ClassSoftmax(FEATURES, [3], hashed=ngrams()),
}


def made(kind):
    """A layer of which about half of the n-grams asked for have a weight."""
    layer = KINDS[kind]()
    if layer.hashed is not None:
        assign_ngrams(layer, mixed_text(len(layer.weight)))
    return layer


def mixed_text(words, length=600):
    """Few words and many by turns: the former are what `given` has read, the latter what is to be predicted."""
    random = np.random.default_rng(7)
    return np.where(np.arange(length) % 2, random.integers(0, words, length), random.integers(0, min(4, words), length))


@pytest.fixture(params=KINDS)
def layer(request):
    layer = made(request.param)
    if layer.hashed is not None:
        torch.nn.init.normal_(layer.hashed.table)
    for bias in (layer.class_bias, layer.bias):
        torch.nn.init.normal_(bias)
    return layer


def given(layer, *shape, seed=1):
    """Hidden vectors, targets and histories of every kind, lines' beginnings among them."""
    generator = torch.Generator().manual_seed(seed)
    words = len(layer.weight)
    hidden = torch.randn(*shape, layer.weight.shape[1], generator=generator)
    targets = torch.randint(words, shape, generator=generator)
    if layer.hashed is None:
        return hidden, targets, None
    inputs = torch.randint(4, (*shape, 1)[:2], generator=generator)
    histories, _ = layer.hashed.histories(inputs, layer.hashed.start(inputs.shape[1]))
    return hidden, targets, histories.view(*shape, -1)


def by_definition(layer, hidden, history):
    """The oracle: the probability of every word after one vector and one history, word by word."""

    def score(weight, bias, block, place):
        found = float(weight @ hidden + bias)
        for k in range(0 if history is None else len(history)):
            pair = layer.hashed.pairs(history[k], torch.tensor(block))
            if history[k] == 0 or not layer.hashed.owned(pair):
                break  # nor has a longer one a weight
            found += float(layer.hashed.table[layer.hashed.rows_of(pair), place])
        return found

    width = layer.width
    classes = [
        math.exp(score(layer.class_weight[c], layer.class_bias[c], c // width, c % width))
        for c in range(len(layer.class_bias))
    ]
    probabilities, block = [], -(-len(classes) // width)
    for c, (start, end) in enumerate(itertools.pairwise(layer.bounds)):
        if end - start == 1:
            scores = [1.0]
        else:
            scores = [
                math.exp(score(layer.weight[w], layer.bias[w], block + (w - start) // width, (w - start) % width))
                for w in range(start, end)
            ]
            block += -(-(end - start) // width)
        probabilities += [classes[c] / sum(classes) * each / sum(scores) for each in scores]
    return probabilities


@torch.no_grad()
def test_the_definition(layer):
    hidden, targets, histories = given(layer, 8)
    found = layer.log_probs(hidden, None, histories)
    for i in range(8):
        expected = by_definition(layer, hidden[i], None if histories is None else histories[i])
        np.testing.assert_allclose(found[i].exp(), expected, rtol=1e-9)
        assert math.isclose(sum(expected), 1)
    of_targets = layer.log_probs(hidden, targets, histories)
    torch.testing.assert_close(of_targets, found.gather(1, targets[:, None])[:, 0])


@torch.no_grad()
def test_every_word_is_scored_alike_alone_and_among_all(layer):
    words = len(layer.weight)
    hidden, _, histories = given(layer, words, 1)
    targets = torch.arange(words)[:, None]
    everything = layer.log_probs(hidden, None, histories)
    assert everything.shape == (words, 1, words)
    torch.testing.assert_close(everything.exp().sum(-1), torch.ones(words, 1))
    one_by_one = everything.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(layer.log_probs(hidden, targets, histories), one_by_one)
    torch.testing.assert_close(layer.loss(hidden, targets, histories), -one_by_one.sum())


def test_loss_has_the_gradients_of_the_plain_way(layer):
    hidden, targets, histories = given(layer, 11, 3)
    hidden.requires_grad_()
    wanted = [hidden, *layer.parameters()]
    loss = layer.loss(hidden, targets, histories)
    plain = -layer.log_probs(hidden, None, histories).gather(-1, targets[..., None]).sum()
    torch.testing.assert_close(loss, plain)
    found = torch.autograd.grad(3 * loss, wanted)
    for own, reference in zip(found, torch.autograd.grad(3 * plain, wanted), strict=True):
        torch.testing.assert_close(own.to_dense() if own.is_sparse else own, reference, atol=1e-12, rtol=1e-10)
    if layer.hashed is not None:
        assert found[-1].is_sparse
        assert found[-1].is_coalesced()
        assert len(found[-1].values()) <= len(layer.hashed.table)


@pytest.mark.parametrize("kind", ["plain", "n-grams, colliding", "n-grams alone"])
def test_gradcheck_of_everything_the_table_included(kind):
    layer = made(kind)
    hidden, targets, histories = given(layer, 7)
    names = [name for name, _ in layer.named_parameters()]
    values = [torch.randn_like(p).requires_grad_() for p in layer.parameters()]

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, hidden):
            return self.layer.loss(hidden, targets, histories)

    def loss(hidden, *parameters):
        replaced = {f"layer.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Loss(), replaced, hidden)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(), *values))


def test_the_table_s_gradient_is_dense_where_that_is_asked_for():
    layer = made("n-grams")
    hidden, targets, histories = given(layer, 9)
    layer.loss(hidden, targets, histories).backward()
    sparse, layer.hashed.table.grad = layer.hashed.table.grad, None
    set_row_sparse(layer.hashed.table, False)
    layer.loss(hidden, targets, histories).backward()
    assert sparse.is_sparse
    assert not layer.hashed.table.grad.is_sparse
    torch.testing.assert_close(sparse.to_dense(), layer.hashed.table.grad)


@pytest.mark.parametrize("kind", ["plain", "n-grams"])
def test_gradients_can_be_differentiated_again(kind):
    layer = made(kind)
    hidden, targets, histories = given(layer, 4)
    assert torch.autograd.gradgradcheck(lambda h: layer.loss(h, targets, histories), hidden.requires_grad_())


def test_a_graph_can_be_gone_through_twice(layer):
    hidden, targets, histories = given(layer, 9)
    loss = layer.loss(hidden.requires_grad_(), targets, histories)
    wanted = [hidden, *layer.parameters()]
    first = [grad.to_dense().clone() for grad in torch.autograd.grad(loss, wanted, retain_graph=True)]
    for before, again in zip(first, torch.autograd.grad(2 * loss, wanted), strict=True):
        torch.testing.assert_close(again.to_dense(), 2 * before)


def test_only_what_asks_for_a_gradient_gets_one():
    layer = made("n-grams")
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    layer.class_bias.requires_grad_()
    hidden, targets, histories = given(layer, 9)
    layer.loss(hidden, targets, histories).backward()
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == ["class_bias"]


def test_before_training_a_zero_vector_gives_the_unigram_distribution():
    for kind in KINDS:
        layer = KINDS[kind]()
        if len(layer.weight) == WORDS:
            hidden, _, histories = given(layer, 1)
            found = layer.log_probs(torch.zeros_like(hidden), None, histories)[0].exp()
            smoothed = np.array(COUNTS) + 1
            np.testing.assert_allclose(found.detach(), smoothed / smoothed.sum(), rtol=1e-10)


def test_a_shared_matrix_is_the_one_given():
    weight = torch.nn.Parameter(torch.randn(WORDS, FEATURES))
    layer = ClassSoftmax(FEATURES, COUNTS, weight=weight)
    layer.loss(*given(layer, 5)[:2]).backward()
    assert layer.weight is weight
    assert weight.grad.any()


def test_dropped_features_are_the_same_for_class_and_word():
    layer = ClassSoftmax(0, COUNTS, classes=3, hashed=ngrams(2, 12, width=8, dropout=0.5))
    hidden, targets, histories = given(layer, 1)
    histories[:] = 12345
    pairs = layer.hashed.pairs(torch.full((layer.all_blocks,), 12345), torch.arange(layer.all_blocks))
    assert layer.hashed.assign(pairs, torch.ones(len(pairs))) > 0.9 * len(pairs)
    torch.nn.init.normal_(layer.hashed.table)
    layer.eval()
    with torch.no_grad():
        without = layer.log_probs(hidden, targets, torch.zeros_like(histories))
        layer.train()
        seen = torch.stack([layer.log_probs(hidden, targets, histories) for _ in range(60)])[:, 0]
    assert len(seen.unique()) == 2
    assert torch.isclose(seen, without[0]).any()


def test_loss_is_in_full_precision_under_autocast():
    layer = made("n-grams").float()
    hidden, targets, histories = given(layer, 30)
    exact = layer.loss(hidden.float(), targets, histories)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.loss(hidden.bfloat16().float(), targets, histories)
        torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)
        assert found.dtype == torch.float32
        assert layer.loss(hidden.bfloat16(), targets, histories) == found


def test_nothing_to_predict_is_no_loss(layer):
    hidden, targets, histories = given(layer, 3)
    none = [value if value is None else value[:0] for value in (hidden, targets, histories)]
    layer.loss(none[0].requires_grad_(), *none[1:]).backward()
    assert layer.log_probs(*none).shape == (0,)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, but for the sparse gradient."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_sparse:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("sparse", [True, False])
def test_nothing_is_made_whose_size_is_tokens_times_scores(sparse, monkeypatch):
    monkeypatch.setattr(classes, "SCORES_PER_CHUNK", 2**13)
    tokens, layer = 3_000, ClassSoftmax(2, COUNTS, hashed=ngrams())
    assign_ngrams(layer, mixed_text(WORDS))
    set_row_sparse(layer.hashed.table, sparse)
    hidden, targets, histories = given(layer, tokens, 1)
    hidden.requires_grad_()
    _, blocks, _ = layer._lookups(layer.class_of[targets[:, 0]])
    assert len(blocks) * layer.width > 4 * 2**13  # scores in all
    with Largest() as largest:
        layer.loss(hidden, targets, histories).backward()
    assert largest.numel <= 2**13


@pytest.mark.parametrize("target", [-1, WORDS])
def test_a_target_that_is_no_word_is_refused(target):
    layer = made("plain")
    with pytest.raises(IndexError, match=f"expected ids from 0 to {WORDS - 1}"):
        layer.loss(torch.randn(1, FEATURES), torch.tensor([target]))


def test_histories_go_with_n_grams():
    plain, hashed = made("plain"), KINDS["n-grams"]()
    hidden, targets, histories = given(hashed, 4)
    with pytest.raises(ValueError, match="got none"):
        hashed.loss(hidden, targets)
    with pytest.raises(ValueError, match="got some"):
        plain.loss(hidden, targets, histories)
    with pytest.raises(ValueError, match="do not fit together"):
        plain.loss(hidden, targets[:3])


def test_a_step_of_the_optimiser_moves_only_the_rows_that_were_looked_up():
    layer = made("n-grams")
    optimizer = build_optimizer("adam", layer, learning_rate=0.01)
    hidden, targets, histories = given(layer, 3)
    before = layer.loss(hidden, targets, histories)
    before.backward()
    rows = layer.hashed.table.grad.coalesce().indices()[0]
    clip_gradients(layer.parameters(), norm=1.0, value=None)
    optimizer.step()
    moved = layer.hashed.table.any(1).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(rows.tolist())
    assert 0 < len(moved) < len(layer.hashed.table)
    assert layer.loss(hidden, targets, histories) < before


def cost(counts, bounds):
    """Mean scores a token: those of classes, and of the words of its class."""
    p = (np.array(counts) + 1) / (np.array(counts) + 1).sum()
    return len(bounds) - 1 + sum(p[a:b].sum() * (b - a) for a, b in itertools.pairwise(bounds))


def test_classes_cost_what_the_bound_says_and_near_the_least():
    counts = [0, 40_000, *(1e6 / np.arange(1, 10_000)).astype(int)]
    p = (np.array(counts) + 1) / (np.array(counts) + 1).sum()
    s = np.sqrt(p).sum()
    found = class_bounds(counts)
    assert abs(len(found) - 1 - s) <= 1
    assert cost(counts, found) < 2 * s + 2
    assert cost(counts, class_bounds(counts, 200)) < 200 + s**2 / 200 + 2
    equal_mass = np.unique(np.searchsorted(np.cumsum(p), np.arange(len(found)) / (len(found) - 1)))
    assert cost(counts, found) < 0.75 * cost(counts, equal_mass)


@pytest.mark.parametrize("wanted", [1, 2, 7, 20, 1000, None])
def test_classes_are_ranges_that_hold_every_word(wanted):
    bounds = class_bounds(COUNTS, wanted)
    assert (bounds[0], bounds[-1]) == (0, WORDS)
    assert (np.diff(bounds) > 0).all()
    assert len(bounds) - 1 <= min(wanted or WORDS, WORDS)
    with pytest.raises(ValueError, match="at least 1"):
        class_bounds(COUNTS, 0)


def by_dictionary(layer, tokens):
    """The oracle: how often each history of 1, 2, ... words came before a word of each block, target by target."""
    counts = collections.Counter()
    histories, _ = layer.hashed.histories(torch.tensor([1, *tokens[:-1]])[:, None], layer.hashed.start(1))
    for history, target in zip(histories[:, 0].tolist(), tokens, strict=True):
        c = int(layer.class_of[target])
        blocks = [c // layer.width]
        if layer.blocks[c]:
            blocks.append(int(layer.first_blocks[c]) + (target - int(layer.starts[c])) // layer.width)
        counts.update((k, h, block) for k, h in enumerate(history) if h != 0 for block in blocks)
    return counts


def owned(layer, history, block):
    return bool(layer.hashed.owned(layer.hashed.pairs(torch.tensor(history), torch.tensor(block))))


@pytest.mark.parametrize("cutoffs", [(1,), (2,), (1, 2), (1, 2, 3)])
def test_the_n_grams_seen_often_enough_have_a_row(cutoffs, monkeypatch):
    monkeypatch.setattr(classes, "TOKENS_PER_COUNT", 50)
    layer = ClassSoftmax(0, COUNTS, classes=5, hashed=ngrams(4, 22, cutoffs=cutoffs))
    tokens = mixed_text(WORDS)
    counts, wanted = by_dictionary(layer, tokens), (*cutoffs, *cutoffs[-1:] * 3)
    found = assign_ngrams(layer, tokens)
    assert found.placed == found.wanted  # the table is large
    for order in range(3):
        often = {pair for pair, count in counts.items() if pair[0] == order and count >= wanted[order]}
        assert found.wanted[order] == len(often)
        assert all(owned(layer, history, block) for _, history, block in often)
    assert found.pairs[0] == sum(order == 0 for order, _, _ in counts)
    assert int((layer.hashed.prints != 0).sum()) == sum(found.placed)
    rare = [pair for pair, count in counts.items() if count < wanted[pair[0]]]
    assert not any(owned(layer, history, block) for _, history, block in rare)


def test_in_a_table_too_small_each_row_goes_to_the_most_frequent_of_the_shortest():
    layer = ClassSoftmax(0, COUNTS, classes=5, hashed=ngrams(3, 8))
    tokens = mixed_text(WORDS, 3000)
    counts = by_dictionary(layer, tokens)
    found = assign_ngrams(layer, tokens)
    assert sum(found.placed) < sum(found.wanted)
    rows = collections.defaultdict(list)
    for (order, history, block), count in counts.items():
        pair = layer.hashed.pairs(torch.tensor(history), torch.tensor(block))
        rows[int(layer.hashed.rows_of(pair))].append((-order, count, history, block))
    bigrams = {row: [entry for entry in entries if entry[0] == 0] for row, entries in rows.items()}
    for entries in filter(None, bigrams.values()):
        _, count, history, block = max(entry for entry in entries if owned(layer, *entry[2:]))
        assert count == max(entry[1] for entry in entries)
    assert int((layer.hashed.prints != 0).sum()) == sum(found.placed)


def test_a_longer_history_has_a_row_only_where_the_shorter_one_has():
    layer = ClassSoftmax(0, COUNTS, classes=5, hashed=ngrams(3, 8))
    tokens = mixed_text(WORDS, 3000)
    assign_ngrams(layer, tokens)
    histories, _ = layer.hashed.histories(torch.tensor(tokens)[:, None], layer.hashed.start(1))
    owners = torch.arange(len(tokens)).repeat_interleave(layer.all_blocks)
    blocks = torch.arange(layer.all_blocks).repeat(len(tokens))
    found = layer.hashed.look_up(histories[:, 0], owners, blocks, torch.ones(len(tokens), 2))
    first, second = found.places.split(found.counts)
    assert 0 < len(second) < len(first)
    assert set(second.tolist()) <= set(first.tolist())


def test_without_an_assignment_there_are_no_n_grams():
    layer = KINDS["n-grams"]()
    torch.nn.init.normal_(layer.hashed.table)
    hidden, targets, histories = given(layer, 9)
    found = layer.loss(hidden, targets, histories)
    torch.testing.assert_close(found, layer.loss(hidden, targets, torch.zeros_like(histories)))

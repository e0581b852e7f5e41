"""Output layers against the definition of softmax, by enumeration and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recurra.nn import softmax
from recurra.nn.embedding import AdaptiveEmbedding, Embedding
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax, cluster_widths, cutoffs_by_coverage

COUNTS = [0, 40, 900, 700, 300, 200, 100, 60, 30, 20, 10, 9, 8, 5, 3, 2, 1, 1, 1, 1]
FEATURES = 12


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    monkeypatch.setattr(softmax, "SCORES_PER_CHUNK", 64)  # many chunks even here
    monkeypatch.setattr(softmax, "WORDS_PER_BLOCK", 6)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


def layers():
    return {
        "full": FullSoftmax(FEATURES, COUNTS),
        "adaptive": AdaptiveSoftmax(FEATURES, COUNTS, cutoffs=[4, 10]),
        "one cluster": AdaptiveSoftmax(FEATURES, COUNTS, cutoffs=[7]),
    }


KINDS = list(layers())


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_sum_to_one_and_targets_are_entries_of_all(kind):
    layer = layers()[kind]
    hidden, targets = torch.randn(5, 3, FEATURES), torch.randint(len(COUNTS), (5, 3))
    everything = layer.log_probs(hidden)
    assert everything.shape == (5, 3, len(COUNTS))
    torch.testing.assert_close(everything.exp().sum(-1), torch.ones(5, 3))
    torch.testing.assert_close(layer.log_probs(hidden, targets), everything.gather(-1, targets[..., None])[..., 0])


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_the_sum_of_surprisals_and_has_the_gradients_of_the_plain_way(kind):
    layer = layers()[kind]
    hidden, targets = torch.randn(7, 3, FEATURES, requires_grad=True), torch.randint(len(COUNTS), (7, 3))
    wanted = [hidden, *layer.parameters()]
    loss = layer.loss(hidden, targets)
    plain = -layer.log_probs(hidden).gather(-1, targets[..., None]).sum()
    torch.testing.assert_close(loss, plain)
    for own, reference in zip(
        torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * plain, wanted), strict=True
    ):
        torch.testing.assert_close(own, reference, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    layer, targets = layers()[kind], torch.randint(len(COUNTS), (9,))
    assert torch.autograd.gradcheck(lambda h: layer.loss(h, targets), torch.randn(9, FEATURES, requires_grad=True))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_can_be_differentiated_again(kind):
    layer, targets = layers()[kind], torch.randint(len(COUNTS), (4,))
    hidden = torch.randn(4, FEATURES, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda h: layer.loss(h, targets), hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_can_be_gone_through_twice(kind):
    layer, targets = layers()[kind], torch.randint(len(COUNTS), (9,))
    hidden = torch.randn(9, FEATURES, requires_grad=True)
    loss = layer.loss(hidden, targets)
    wanted = [hidden, *layer.parameters()]
    first = [grad.clone() for grad in torch.autograd.grad(loss, wanted, retain_graph=True)]
    for before, again in zip(first, torch.autograd.grad(2 * loss, wanted), strict=True):
        torch.testing.assert_close(again, 2 * before)


def test_full_softmax_is_the_field_s_cross_entropy():
    layer, hidden, targets = layers()["full"], torch.randn(9, FEATURES), torch.randint(len(COUNTS), (9,))
    scores = F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer.loss(hidden, targets), F.cross_entropy(scores, targets, reduction="sum"))


def test_adaptive_softmax_is_torch_s_with_the_same_tables():
    own = layers()["adaptive"]
    peer = torch.nn.AdaptiveLogSoftmaxWithLoss(FEATURES, len(COUNTS), [4, 10], div_value=1.0, head_bias=True)
    peer.head.weight.data, peer.head.bias.data = own.head.data, own.head_bias.data
    for k, pair in enumerate(peer.tail):
        pair[0].weight.data, pair[1].weight.data = own.projections[k].data, own.tails[k].data
        own.tail_biases[k].data.zero_()  # torch's has none
    hidden = torch.randn(9, FEATURES)
    torch.testing.assert_close(own.log_probs(hidden), peer.log_prob(hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_a_zero_vector_gives_the_unigram_distribution(kind):
    smoothed = np.array(COUNTS) + 1
    found = layers()[kind].log_probs(torch.zeros(1, FEATURES)).exp()[0]
    np.testing.assert_allclose(found.detach(), smoothed / smoothed.sum(), rtol=1e-10)


def test_no_target_in_a_cluster_leaves_its_table_without_a_gradient():
    layer = layers()["adaptive"]
    layer.loss(torch.randn(3, FEATURES), torch.tensor([0, 1, 2])).backward()
    assert all(tail.grad is None for tail in layer.tails)
    assert layer.head.grad is not None


@pytest.mark.parametrize("cutoffs", [[0], [20], [10, 4], [4, 4]])
def test_bad_cutoffs_are_refused(cutoffs):
    with pytest.raises(ValueError, match="cutoffs must rise strictly"):
        AdaptiveSoftmax(FEATURES, COUNTS, cutoffs=cutoffs)


def test_chosen_cutoffs_cover_three_quarters_and_nine_tenths_of_the_text():
    counts = (1e6 / np.arange(1, 50_001)).astype(int)
    first, second = cutoffs_by_coverage(counts.tolist())
    share = np.cumsum(counts + 1) / (counts + 1).sum()
    assert share[first - 2] < 0.75 <= share[first - 1]
    assert share[second - 2] < 0.92 <= share[second - 1]


def test_no_cutoff_lies_outside_a_tiny_vocabulary():
    assert cutoffs_by_coverage([1, 1, 1]) == []
    assert cutoffs_by_coverage([100, 1, 1]) == [1]


def test_widths_shrink_and_have_a_floor():
    assert cluster_widths(256, 3) == [64, 16, 8]
    assert cluster_widths(4, 2) == [4, 4]


def test_tied_adaptive_embedding_reads_the_tables_of_the_softmax():
    layer = layers()["adaptive"]
    vectors = AdaptiveEmbedding(layer)(torch.tensor([[2, 5], [12, 19]]))
    torch.testing.assert_close(vectors[0, 0], layer.head[2])
    torch.testing.assert_close(vectors[0, 1], layer.tails[0][1] @ layer.projections[0])
    torch.testing.assert_close(vectors[1, 1], layer.tails[1][9] @ layer.projections[1])


@pytest.mark.parametrize(
    "make", [lambda p: Embedding(20, 4, dropout=p), lambda p: AdaptiveEmbedding(layers()["adaptive"], dropout=p)]
)
def test_word_dropout_drops_whole_words_everywhere_alike(make):
    tokens = torch.arange(20).repeat(3, 1)
    module = make(0.5)
    vectors = module(tokens)
    module.eval()
    plain = module(tokens)
    dropped = (vectors == 0).all(-1)
    assert 0 < dropped[0].sum() < 20
    assert (dropped == dropped[0]).all()
    torch.testing.assert_close(vectors[~dropped], 2 * plain[~dropped])


def test_bfloat16_products_are_summed_in_float32():
    torch.manual_seed(0)
    layer = FullSoftmax(32, [1] * 5_000).float()
    hidden, targets = torch.randn(400, 32).float(), torch.randint(5_000, (400,))
    exact = layer.loss(hidden, targets)
    half = FullSoftmax(32, [1] * 5_000).bfloat16()
    half.load_state_dict(layer.state_dict())
    rounded = hidden.bfloat16().requires_grad_()
    loss = half.loss(rounded, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=3e-4, atol=0)
    loss.backward()
    assert rounded.grad.dtype == half.weight.grad.dtype == torch.bfloat16
    probabilities = (hidden @ layer.weight.t() + layer.bias).softmax(1)
    expected = (probabilities - torch.nn.functional.one_hot(targets, 5_000)).sum(0)
    torch.testing.assert_close(half.bias.grad.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("target", [-1, 10, 5000])
def test_a_target_that_is_no_word_is_refused(target):
    layer = FullSoftmax(8, [1] * 10)
    with pytest.raises(IndexError, match=f"expected ids from 0 to 9, got {target}"):
        layer.loss(torch.randn(1, 8), torch.tensor([target]))


def test_vectors_of_another_size_are_refused():
    layer = FullSoftmax(8, [1] * 10)
    with torch.no_grad(), pytest.raises(RuntimeError):
        layer.log_probs(torch.randn(1, 7))

"""Output layers: from a hidden vector to a distribution over the vocabulary.

Every output layer answers the same two questions, and nobody else asks what kind it is:

- ``loss(hidden, targets)``: the training loss, summed over the tokens, in nats;
- ``log_probs(hidden, targets=None)``: exact natural-log probabilities, of all words or of the targets alone.

Shapes: ``hidden [..., features]``, ``targets [...]``; ``log_probs`` is ``[..., vocabulary]``, or ``[...]`` with
targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recurra.config import UserError
from recurra.nn.products import ROWS_MULTIPLE, linear, product

__all__ = ["AdaptiveSoftmax", "FullSoftmax", "OutputLayer", "cluster_widths", "cutoffs_by_coverage"]

# Scores held at a time. 2**23 float32 scores are 32 MiB: peak memory does not grow with time x batch x vocabulary, and
# even with 30,000 words there are rows enough in a chunk for products to run at full speed.
SCORES_PER_CHUNK = 2**23
# Words of a product: oneDNN lays out anew what it multiplies by, and the copy should be small.
WORDS_PER_BLOCK = 2048


class OutputLayer(Protocol):
    """What a language model asks of its output layer."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The training loss, summed over the tokens, in nats."""

    def log_probs(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Exact natural-log probabilities of every word, or of ``targets`` alone."""


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of ``-log softmax(hidden @ weight.T + bias)[target]`` over rows, a chunk of rows at a time.

    The gradient with respect to the scores is ``softmax - one_hot``, so the gradients of all three inputs are made in
    the forward pass while the scores of a chunk are at hand, and only scaled in the backward pass, in place: the same
    three matrix products as the plain way, without ever holding all the scores.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        nats, ctx.gradients = _SummedCrossEntropy._run(hidden, weight, bias, targets, ctx.needs_input_grad)
        return nats

    @staticmethod
    def _run(
        hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        for_hidden, for_weight, for_bias, _ = wanted
        precise = torch.promote_types(hidden.dtype, torch.float32)  # of all sums, where the products are in bfloat16
        grad_hidden = torch.zeros_like(hidden, dtype=precise) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if for_bias else None
        nats = hidden.new_zeros((), dtype=precise)
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight):
            raise IndexError(
                f"targets: expected ids from 0 to {len(weight) - 1}, got {targets.min()} to {targets.max()}"
            )
        width = WORDS_PER_BLOCK if hidden.device.type == "cpu" else len(weight)
        blocks = [slice(start, start + width) for start in range(0, len(weight), width)]
        for rows in _chunks(len(hidden), len(weight)):
            h, y = hidden[rows], targets[rows]
            count = len(h)
            h = _padded(h)
            scores = [linear(h, weight[words], bias[words])[:count].to(precise) for words in blocks]  # [rows, words]
            highest = torch.stack([part.amax(1) for part in scores]).amax(0)[:, None]
            of_targets = torch.empty_like(highest)
            places = []
            for words, part in zip(blocks, scores, strict=True):
                here = ((y >= words.start) & (y < words.stop)).nonzero()[:, 0]
                place = here, y[here] - words.start
                of_targets[here, 0] = part[place]
                places.append(place)
                part.sub_(highest).exp_()  # in place, and one exponential a score: on a CPU it is what costs
            total = torch.stack([part.sum(1) for part in scores]).sum(0)[:, None]
            nats += (total.log() + highest - of_targets).sum()
            if not any(wanted):
                continue
            for words, part, place in zip(blocks, scores, places, strict=True):
                delta = part.div_(total)
                delta[place] -= 1
                if grad_bias is not None:
                    grad_bias[words] += delta.sum(0)
                delta = delta.to(h.dtype)
                if grad_weight is not None:
                    product(delta.t(), h[:count], out=grad_weight[words], add=True)
                if grad_hidden is not None:
                    delta = _padded(delta)
                    grad_hidden[rows] += linear(delta, weight[words].t())[:count]
        return nats, (grad_hidden, grad_weight, grad_bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again: made anew, by operations that autograd can follow
            delta = torch.addmm(bias, hidden, weight.t()).softmax(1) - nn.functional.one_hot(targets, len(weight))
            delta = delta * grad
            return delta @ weight, delta.t() @ hidden, delta.sum(0), None
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # gone to the caller in an earlier pass over the same graph
            _, gradients = _SummedCrossEntropy._run(hidden, weight, bias, targets, ctx.needs_input_grad)
        given = hidden, weight, bias
        return (*(g if g is None else g.mul_(grad).to(x.dtype) for g, x in zip(gradients, given, strict=True)), None)


def _scores(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``hidden @ weight.T + bias`` for ``hidden [..., features]``, faster where nothing is to be differentiated."""
    if torch.is_grad_enabled():
        return nn.functional.linear(hidden, weight, bias)
    return linear(hidden.reshape(-1, hidden.shape[-1]), weight, bias).view(*hidden.shape[:-1], len(weight))


def _padded(hidden: Tensor) -> Tensor:
    """``hidden [rows, features]`` with rows of zeros up to a number that comes up often."""
    return nn.functional.pad(hidden, (0, 0, 0, -len(hidden) % ROWS_MULTIPLE))


def _chunks(rows: int, classes: int) -> Iterator[slice]:
    most = max(ROWS_MULTIPLE, SCORES_PER_CHUNK // classes)
    chunks = max(1, -(-rows // most))
    step = -(-rows // chunks // ROWS_MULTIPLE) * ROWS_MULTIPLE  # all but the last of one size
    return (slice(start, start + step) for start in range(0, rows, max(1, step)))


def _cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    nats: Tensor = _SummedCrossEntropy.apply(hidden, weight, bias, targets)
    return nats


def _target_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities ``[rows]`` of the targets alone, a chunk of rows at a time."""
    parts = [
        scores.gather(1, targets[rows, None])[:, 0] - scores.logsumexp(1)
        for rows in _chunks(len(hidden), len(weight))
        for scores in (_scores(_padded(hidden[rows]), weight, bias)[: len(targets[rows])],)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def unigram_log_probs(counts: Sequence[int]) -> Tensor:
    """Add-one smoothed log-probabilities of the words by their counts: the best bias before anything is learnt."""
    smoothed = torch.tensor(counts, dtype=torch.float64, device="cpu") + 1
    return smoothed.log() - smoothed.sum().log()


class FullSoftmax(nn.Module):
    r"""Softmax over the whole vocabulary: :math:`P(w) = \mathrm{softmax}(U h + b)_w`.

    Args:
        features: size of the hidden vectors.
        counts: how often each word was seen in training, by id; the bias starts at their log-probabilities.
        weight: a matrix ``[vocabulary, features]`` to share, as when tied to the embedding (Press & Wolf 2017).
    """

    def __init__(self, features: int, counts: Sequence[int], *, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = (
            weight if weight is not None else nn.Parameter(torch.randn(len(counts), features) * features**-0.5)
        )
        self.bias = nn.Parameter(unigram_log_probs(counts).to(self.weight.dtype))

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy in nats, in chunks: peak memory does not grow with time x batch x vocabulary."""
        return _cross_entropy(hidden.reshape(-1, hidden.shape[-1]), self.weight, self.bias, targets.reshape(-1))

    def log_probs(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Log-probabilities ``[..., vocabulary]``, or ``[...]`` of the targets."""
        if targets is None:
            return torch.log_softmax(_scores(hidden, self.weight, self.bias), -1)
        flat = hidden.reshape(-1, hidden.shape[-1])
        return _target_log_probs(flat, self.weight, self.bias, targets.reshape(-1)).view(targets.shape)


class AdaptiveSoftmax(nn.Module):
    r"""Adaptive softmax (Grave et al. 2017): frequent words in the head, rare ones in clusters of smaller width.

    Ids are in falling order of frequency. Words ``[0, cutoffs[0])`` stand in the head beside one entry a cluster;
    cluster *k* holds words ``[cutoffs[k], cutoffs[k+1])`` and sees the hidden vector through a projection to
    ``widths[k]``:

    .. math:: \log P(w) = \log P_{head}(k) + \log \mathrm{softmax}(E_k A_k h + b_k)_w

    Args:
        features: size of the hidden vectors.
        counts: counts of the words in training, by id; biases start at the log-probabilities they give.
        cutoffs: first word of each cluster, rising; ``None`` chooses them from the counts
            (:func:`cutoffs_by_coverage`).
        shrink: each cluster's width is that of the one before divided by this (4 in the paper).

    The tables ``head``, ``tails`` and ``projections`` can serve as the embedding too
    (:class:`recurra.nn.embedding.AdaptiveEmbedding`), which ties input and output (Baevski & Auli 2019).
    """

    def __init__(
        self, features: int, counts: Sequence[int], *, cutoffs: Sequence[int] | None = None, shrink: float = 4.0
    ) -> None:
        super().__init__()
        cutoffs = list(cutoffs_by_coverage(counts) if cutoffs is None else cutoffs)
        if sorted(set(cutoffs)) != cutoffs or not all(0 < c < len(counts) for c in cutoffs):
            raise UserError(
                f"cutoffs must rise strictly and lie between 1 and {len(counts) - 1} (the vocabulary has {len(counts)}"
                f" words), got {cutoffs}"
            )
        self.bounds = [*cutoffs, len(counts)]
        widths = cluster_widths(features, len(cutoffs), shrink)
        words = unigram_log_probs(counts)
        clusters = [words[start:end] for start, end in zip(self.bounds, self.bounds[1:], strict=False)]
        masses = [cluster.logsumexp(0, keepdim=True) for cluster in clusters]
        dtype = torch.get_default_dtype()
        scale = features**-0.5
        self.head = nn.Parameter(torch.randn(self.bounds[0] + len(clusters), features) * scale)
        self.head_bias = nn.Parameter(torch.cat([words[: self.bounds[0]], *masses]).to(dtype))
        self.projections = nn.ParameterList(torch.randn(width, features) * scale for width in widths)
        self.tails = nn.ParameterList(
            torch.randn(len(cluster), width) * width**-0.5 for cluster, width in zip(clusters, widths, strict=True)
        )
        self.tail_biases = nn.ParameterList(
            (cluster - mass).to(dtype) for cluster, mass in zip(clusters, masses, strict=True)
        )

    def _clusters(self, targets: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Each cluster that occurs in ``targets [rows]``: its number, the rows it occurs in, the words within it."""
        for k, (start, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            rows = ((targets >= start) & (targets < end)).nonzero()[:, 0]
            if len(rows):
                yield k, rows, targets[rows] - start

    def _head_targets(self, targets: Tensor) -> Tensor:
        bounds = torch.tensor(self.bounds[:-1], device=targets.device)
        cluster = torch.bucketize(targets.contiguous(), bounds, right=True)  # 0: a word of the head
        return torch.where(cluster > 0, self.bounds[0] + cluster - 1, targets)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed exact cross-entropy in nats; a cluster costs only the rows whose target lies in it."""
        hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        nats = _cross_entropy(hidden, self.head, self.head_bias, self._head_targets(targets))
        for k, rows, words in self._clusters(targets):
            narrow = nn.functional.linear(hidden[rows], self.projections[k])
            nats = nats + _cross_entropy(narrow, self.tails[k], self.tail_biases[k], words)
        return nats

    def log_probs(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
        """Log-probabilities ``[..., vocabulary]``, or ``[...]`` of the targets."""
        if targets is None:
            head = torch.log_softmax(_scores(hidden, self.head, self.head_bias), -1)
            parts = [head[..., : self.bounds[0]]]
            for k, (projection, tail, bias) in enumerate(
                zip(self.projections, self.tails, self.tail_biases, strict=True)
            ):
                scores = _scores(_scores(hidden, projection), tail, bias)
                parts.append(torch.log_softmax(scores, -1) + head[..., self.bounds[0] + k, None])
            return torch.cat(parts, -1)
        flat, words = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        result = _target_log_probs(flat, self.head, self.head_bias, self._head_targets(words))
        for k, rows, within in self._clusters(words):
            narrow = nn.functional.linear(flat[rows], self.projections[k])
            cluster = _target_log_probs(narrow, self.tails[k], self.tail_biases[k], within)
            result = result.index_add(0, rows, cluster.to(result.dtype))
        return result.view(targets.shape)


def cluster_widths(features: int, clusters: int, shrink: float = 4.0) -> list[int]:
    """Width of each cluster: ``features / shrink**k``, never below 8."""
    return [max(min(8, features), round(features / shrink ** (k + 1))) for k in range(clusters)]


def cutoffs_by_coverage(counts: Sequence[int], coverage: Sequence[float] = (0.75, 0.92)) -> list[int]:
    """Cut-offs such that the words before each cover a given share of the training text.

    A head that covers three quarters of the text keeps its own cost, which every token pays, near that of the clusters,
    which few pay (Grave et al. 2017, section 4), while the words that matter most keep their full width. On WikiText-2
    these are words 2,000 and 10,000, to within a few hundred.

    Args:
        counts: of the words in training, by id, falling.
        coverage: share of the text that the words before each cut-off make up, rising.

    Returns:
        The first id of each cluster, rising strictly; fewer than asked where the vocabulary is small.
    """
    share = np.cumsum(np.asarray(counts, dtype=np.float64) + 1)
    found = np.searchsorted(share / share[-1], coverage) + 1
    return sorted({int(cut) for cut in found if 0 < cut < len(counts)})

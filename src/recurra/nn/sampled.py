"""Output layers trained on a sample of the vocabulary: sampled softmax, noise-contrastive estimation, BlackOut.

The full softmax computes a score of every word for every token. These compute those of the target and of a few
thousand words drawn for the whole batch, and read, and give gradients to, the rows of these words alone
(:mod:`recurra.nn.rows`). They are layers for training only: in evaluation each is the full softmax over the same
parameters, loss and probabilities alike.

Letters: V is the number of words, S that of samples, N that of tokens. ``q`` is the proposal, a distribution over
words, and ``Q(w)`` the probability that *w* is among the samples; from every score ``log Q`` is taken off before the
losses see it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recurra.config import UserError
from recurra.nn.products import linear, product
from recurra.nn.rows import rows
from recurra.nn.softmax import FullSoftmax, _padded

__all__ = ["NCE", "PROPOSALS", "BlackOut", "DistinctDraws", "SampledOutput", "SampledSoftmax"]

PROPOSALS = ("log-uniform", "unigram")

# Scores held at a time, with their gradients and what lies between: few enough to stay in a CPU's caches, enough rows
# for products to run at full speed.
SCORES_PER_CHUNK = 2**21
# The score of a sample that is the target itself: none of the losses feels it. Finite, so that a row all of whose
# samples are such has no inf - inf.
NO_SCORE = -1e30


class SampledOutput(FullSoftmax, ABC):
    r"""What the sampled losses have in common: all but the loss of given scores.

    Args:
        features: size of the hidden vectors.
        counts: how often each word was seen in training, by id, falling; the bias starts at their log-probabilities.
        samples: how many different words are drawn for each call of :meth:`loss`, from 1 to V.
        proposal: what they are drawn from. ``log-uniform``, :math:`q(w) = log((w + 2) / (w + 1)) / log(V + 1)`, is near
            Zipf's law if ids are in falling order of frequency; ``unigram`` is
            :math:`q(w) \propto (c(w) + 1)^{power}`.
        power: of the unigram proposal: 1 is the words' own distribution, 0 the uniform one.
        weight: a matrix ``[vocabulary, features]`` to share, as when tied to the embedding.

    Raises:
        UserError: more samples than words, or none; an unknown proposal; a power out of 0 to 1.

    Attributes:
        draws: the sampler.
        log_expected: log Q of every word, ``[V]``; not part of what is saved.
    """

    read_by_rows: ClassVar[tuple[str, ...]] = ("weight", "bias")
    log_expected: Tensor
    keep_hits: ClassVar[bool] = False  # whether a sample that is the target of a row counts in that row

    def __init__(
        self,
        features: int,
        counts: Sequence[int],
        *,
        samples: int,
        proposal: str = "log-uniform",
        power: float = 1.0,
        weight: torch.nn.Parameter | None = None,
    ) -> None:
        if not 1 <= samples <= len(counts):
            raise UserError(
                f"samples: expected 1 to {len(counts)}, the number of words, got {samples}; draw fewer (--samples), or"
                " use the full softmax"
            )
        super().__init__(features, counts, weight=weight)
        self.draws = DistinctDraws(proposal_probabilities(proposal, counts, power), samples)
        self.register_buffer("log_expected", self.draws.log_expected.to(self.bias.dtype), persistent=False)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """What training minimises, summed over the tokens, in nats; in evaluation the exact cross-entropy.

        In training mode it draws from torch's global generator, S words for all rows together.

        Raises:
            IndexError: a target is no word.
        """
        if not self.training:
            return super().loss(hidden, targets)
        hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1).contiguous()
        samples = self.draws.draw().to(targets.device)
        place = torch.searchsorted(samples, targets).clamp_(max=len(samples) - 1)
        hits = torch.where((samples[place] == targets) & (not self.keep_hits), place, -1)
        words = torch.cat([samples, targets])
        weight, bias = rows(self.weight, words), rows(self.bias, words) - self.log_expected[words]
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
        nats: Tensor = _SummedLoss.apply(hidden, weight, bias, hits, self._summed_loss)
        return nats

    @staticmethod
    @abstractmethod
    def _summed_loss(target: Tensor, others: Tensor) -> Tensor:
        """The loss of corrected scores: of the targets, ``[n]``, and of the samples, ``[n, S]``; summed over rows."""


class SampledSoftmax(SampledOutput):
    r"""Sampled softmax (Bengio & Senécal 2008; Jean et al. 2015; Jozefowicz et al. 2016).

    With :math:`z = s - \log Q` the loss is a cross-entropy over the target *t* and the samples *S*:

    .. math:: -\log \frac{e^{z_t}}{e^{z_t} + \sum_{j \in S \setminus t} e^{z_j}}

    It is an estimate of the exact one that grows better with the number of samples, and is that with all words.
    """

    @staticmethod
    def _summed_loss(target: Tensor, others: Tensor) -> Tensor:
        return (torch.logaddexp(target, others.logsumexp(1)) - target).sum()


class NCE(SampledOutput):
    r"""Noise-contrastive estimation (Gutmann & Hyvärinen 2010; Mnih & Teh 2012).

    Each word is told from noise by itself: with :math:`z = s - \log Q`, the log-odds that it is no noise,

    .. math:: -\log \sigma(z_t) - \sum_{j \in S} \log \sigma(-z_j)

    A sample that is the target counts as noise like any other, so that where the loss is least the scores are the
    log-probabilities :math:`\log P`, without having been normalised. (Left out, they would be the log-odds
    :math:`\log P / (1 - P)`.) The loss in training is this sum, not a cross-entropy; the exact softmax of the scores
    says what was learnt.
    """

    keep_hits: ClassVar[bool] = True

    @staticmethod
    def _summed_loss(target: Tensor, others: Tensor) -> Tensor:
        return F.softplus(-target).sum() + F.softplus(others).sum()


class BlackOut(SampledOutput):
    r"""BlackOut (Ji et al. 2016): a softmax over target and samples that also pushes each sample away.

    With :math:`p` the softmax of :math:`z = s - \log Q` over the target *t* and the samples *S*,

    .. math:: -\log p_t - \sum_{j \in S \setminus t} \log(1 - p_j)

    (equation 6, the weights being 1 / Q). The loss in training is this sum, not a cross-entropy.
    """

    @staticmethod
    def _summed_loss(target: Tensor, others: Tensor) -> Tensor:
        # Only the likeliest sample can be so likely that 1 - p is lost to rounding: log(1 - p) of it comes from the
        # scores of the rest, that of the others, whose p is below one half, from p.
        top, place = others.max(1, keepdim=True)
        others = others.scatter(1, place, NO_SCORE)
        top = top[:, 0]
        rest = torch.logaddexp(target, others.logsumexp(1))
        total = torch.logaddexp(rest, top)
        p = (others - total[:, None]).exp()
        return (total - target).sum() + F.softplus(top - rest).sum() - torch.log1p(-p).sum()


class _SummedLoss(torch.autograd.Function):
    """A loss of ``hidden @ weight.T + bias``, summed over rows, a chunk of rows at a time.

    As with the full softmax, gradients are made in the forward pass while the scores of a chunk are at hand: never are
    all of them held.

    ``weight [S + N, features]`` and ``bias [S + N]`` are those of the samples, then those of each row's own target;
    ``hits [N]`` says which sample is a row's target, or -1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        hits: Tensor,
        summed_loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        precise = torch.promote_types(hidden.dtype, torch.float32)
        samples = len(weight) - len(hidden)
        shared, own = weight.split([samples, len(hidden)])
        shared_bias, own_bias = bias.split([samples, len(hidden)])
        nats = hidden.new_zeros((), dtype=precise)
        if wanted:
            grad_hidden = torch.empty_like(hidden, dtype=precise)
            grad_weight = torch.zeros_like(weight, dtype=precise)
            grad_bias = torch.zeros_like(bias, dtype=precise)
        for start in range(0, len(hidden), step := max(16, SCORES_PER_CHUNK // samples)):
            part = slice(start, start + step)
            h, w, hit = hidden[part], own[part].to(precise), hits[part]
            target = (h * w).sum(1) + own_bias[part]
            others = linear(_padded(h), shared, shared_bias)[: len(h)].to(precise)
            row = (hit >= 0).nonzero()[:, 0]
            others[row, hit[row]] = NO_SCORE
            with torch.set_grad_enabled(wanted):
                loss = summed_loss(target.requires_grad_(wanted), others.requires_grad_(wanted))
            nats += loss.detach()
            if not wanted:
                continue
            of_target, delta = torch.autograd.grad(loss, (target, others))
            grad_bias[:samples] += delta.sum(0)
            grad_bias[samples:][part] = of_target
            grad_weight[samples:][part] = of_target[:, None] * h
            grad_hidden[part] = of_target[:, None] * w
            delta = delta.to(h.dtype)
            product(delta.t(), h, out=grad_weight[:samples], add=True)
            grad_hidden[part] += linear(_padded(delta), shared.t())[: len(h)]
        if wanted:
            gradients = zip((grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True)
            ctx.save_for_backward(*(gradient.to(given.dtype) for gradient, given in gradients))
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradient * grad for gradient in ctx.saved_tensors), None, None)


def proposal_probabilities(proposal: str, counts: Sequence[int], power: float = 1.0) -> Tensor:
    """The distribution that samples are drawn from, float64 ``[V]`` on the CPU; see :class:`SampledOutput`."""
    if not 0 <= power <= 1:
        raise UserError(f"power of the proposal: expected 0 to 1, got {power}")
    match proposal:
        case "log-uniform":
            masses = torch.arange(1, len(counts) + 1, dtype=torch.float64, device="cpu").reciprocal_().log1p_()
        case "unigram":
            masses = (torch.tensor(counts, dtype=torch.float64, device="cpu") + 1) ** power
        case _:
            raise UserError(f"unknown proposal {proposal!r}; choose from {', '.join(PROPOSALS)}")
    return masses / masses.sum()


class DistinctDraws:
    r"""Draws different words: one after the other from ``probabilities``, passing over those that are there already.

    Args:
        probabilities: of the words, all above 0, float64 ``[V]``.
        samples: how many to draw, up to V.

    Attributes:
        tries: the expected number of draws, repeats included: T, solved from :math:`\sum_w Q(w) = S`.
        log_expected: log of :math:`Q(w) = 1 - (1 - q(w))^T`, the probability that *w* is among the samples, float64
            ``[V]``; all zeros where every word is.
    """

    def __init__(self, probabilities: Tensor, samples: int) -> None:
        assert 1 <= samples <= len(probabilities)
        self.samples, self.words = samples, len(probabilities)
        self.tries, self.log_expected = math.inf, torch.zeros_like(probabilities)
        if samples == self.words:
            return
        log_missed = torch.log1p(-probabilities.clamp(max=1 - 2**-53))  # one may be 1 to within rounding
        self.tries = _solve_tries(log_missed, samples)
        self.log_expected = (-torch.expm1(self.tries * log_missed)).log()
        # Either way the draws are the same in distribution. Where most words are drawn, most draws would be repeats.
        self._one_by_one = self.tries < self.words / 4
        self._table = probabilities.cumsum(0) if self._one_by_one else probabilities
        if self._one_by_one:
            self._table /= self._table[-1].clone()

    def draw(self) -> Tensor:
        """S different words in rising order, int64, on the CPU; O(S log V) where S is small against V.

        Random numbers come from torch's global generator of the CPU, whatever the device of the model.
        """
        if self.samples == self.words:
            return torch.arange(self.words, device="cpu")
        if not self._one_by_one:
            # Exponential variables of these rates fall due in the order of successive draws (the Gumbel trick).
            due = torch.empty_like(self._table).exponential_().div_(self._table)
            return due.topk(self.samples, largest=False).indices.sort().values
        drawn = torch.empty(0, dtype=torch.int64, device="cpu")
        while True:
            thresholds = torch.rand(int(1.1 * self.tries) + 16, dtype=torch.float64, device="cpu")
            drawn = torch.cat([drawn, torch.searchsorted(self._table, thresholds, right=True)])
            words, order = drawn.sort(stable=True)
            first = order[words.diff(prepend=words.new_tensor([-1])) != 0]  # where each word was drawn first
            if len(first) >= self.samples:
                return drawn[first.sort().values[: self.samples]].sort().values


def _solve_tries(log_missed: Tensor, samples: int) -> float:
    """T with ``sum(1 - exp(T * log_missed)) = samples``, by Newton's method.

    The sum is concave in T and not above T itself, so that from T = samples every step goes up, and none too far.
    """
    tries = float(samples)
    while True:
        expected = -torch.expm1(tries * log_missed)
        slope = -(log_missed * (1 - expected)).sum()
        step = float((samples - expected.sum()) / slope)
        tries += step
        if not step > 1e-9 * tries:
            return tries

"""The maximum-entropy language model of hashed n-grams, without a recurrent part (Mikolov et al. 2011)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recurra.config import setting
from recurra.models.neural import NeuralLM
from recurra.nn.classes import ClassSoftmax
from recurra.nn.hashed import HashedNgrams
from recurra.text.vocabulary import LINE_END, Vocabulary

__all__ = ["MaxEntLM", "MaxEntSettings"]


@dataclass(frozen=True, kw_only=True)
class MaxEntSettings:
    """What a maximum-entropy model is made of, and how fast its n-grams' weights learn."""

    order: int = setting(3, "words of the longest n-gram", minimum=2)
    bits: int = setting(24, "weights of n-grams: 2 to the power of this", minimum=8, maximum=34)
    classes: int | None = setting(None, "classes of words; as many as cost least if not given", minimum=1)
    cutoffs: tuple[int, ...] = setting(
        (1, 2, 3),
        "times that 2-grams, 3-grams, ... must have been seen to have a weight; the last is for all longer",
        minimum=1,
    )
    dropout: float | None = setting(None, "chance that an n-gram is left out in training", minimum=0, maximum=0.99)
    rate: float = setting(0.15, "learning rate of the n-grams' weights", minimum=0)
    reset: str = setting("none", "where a text starts anew", choices=("none", "documents", "lines"))


class MaxEntLM(NeuralLM):
    r"""A language model of weights :math:`\theta` of classes and words, alone and after the last one, two, ... words.

    .. math:: P(c \mid h) = \mathrm{softmax}\Bigl(a + \sum_k \theta_{h_k}\Bigr)_c, \qquad
              P(w \mid c, h) = \mathrm{softmax}_{v \in c}\Bigl(b + \sum_k \theta_{h_k}\Bigr)_w

    with :math:`h_k` the last ``k`` words, up to ``order - 1``; no n-gram reaches over a line end. Before training it is
    the unigram model, to the digit: ``a`` and ``b`` start at the logarithms of counts, the rest at zero.

    Args:
        settings: of the model.
        vocabulary: the words, with their counts in training.

    Raises:
        UserError: sizes that cannot be.
    """

    settings: MaxEntSettings
    output: ClassSoftmax

    def __init__(self, settings: MaxEntSettings, vocabulary: Vocabulary) -> None:
        super().__init__(settings, vocabulary)
        hashed = HashedNgrams(
            settings.order,
            settings.bits,
            line_end=LINE_END,
            cutoffs=settings.cutoffs,
            dropout=settings.dropout or 0.0,
            rate=settings.rate,
        )
        self.output = ClassSoftmax(0, vocabulary.counts, classes=settings.classes, hashed=hashed)

    def initial_state(self, batch_size: int) -> tuple[()]:
        """Nothing: all there is to remember are the words of n-grams."""
        return ()

    def vectors(self, inputs: Tensor, state: tuple[()], *, lengths: Tensor | None = None) -> tuple[Tensor, tuple[()]]:
        """Vectors of no size, beside which the n-grams stand; see :meth:`NeuralLM.vectors`."""
        return torch.zeros(*inputs.shape, 0, dtype=self.output.bias.dtype, device=inputs.device), ()

    def vectors_with_resets(self, inputs: Tensor, state: tuple[()], resets: Tensor) -> tuple[Tensor, tuple[()]]:
        """The same: there is nothing to forget."""
        return self.vectors(inputs, state)

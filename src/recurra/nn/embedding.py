"""From token ids to vectors."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from recurra.nn.rows import rows
from recurra.nn.softmax import AdaptiveSoftmax

__all__ = ["AdaptiveEmbedding", "Embedding"]


def _words_kept(dropout: float, tokens: Tensor, like: Tensor) -> Tensor:
    """One number a token: 0 where its word is dropped, else ``1 / (1 - dropout)`` (Gal & Ghahramani 2016).

    Drawn for the words that are there alone: nothing here takes longer for a larger vocabulary.
    """
    words, token_words = tokens.unique(return_inverse=True)
    kept = torch.empty(len(words), dtype=like.dtype, device=like.device).bernoulli_(1 - dropout) / (1 - dropout)
    return kept[token_words]


class Embedding(nn.Module):
    """A row of ``weight [vocabulary, features]`` for each token; whole words are dropped out in training.

    Args:
        words: size of the vocabulary.
        features: size of a vector.
        dropout: probability that a word of the vocabulary is dropped, everywhere in the batch alike.

    The gradient of the weight may be made of the rows that were read (:mod:`recurra.nn.rows`), so that a step costs the
    same whatever the vocabulary.
    """

    read_by_rows: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, words: int, features: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.randn(words, features) * features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors ``[..., features]`` of ``tokens [...]``."""
        vectors = rows(self.weight, tokens)
        if self.training and self.dropout:
            vectors = vectors * _words_kept(self.dropout, tokens, vectors)[..., None]
        return vectors


class AdaptiveEmbedding(nn.Module):
    """The tables of an :class:`~recurra.nn.softmax.AdaptiveSoftmax` read the other way (Baevski & Auli 2019).

    A word of the head has a vector of full width; one of a cluster has a narrow vector, widened by the transpose of the
    cluster's projection. Rare words thereby share most of what is learnt, and there is nothing to update for words
    that a batch does not hold but the narrow tables.

    Args:
        softmax: the output layer whose tables are shared; its parameters belong to it, not to this module.
        dropout: probability that a word of the vocabulary is dropped, everywhere in the batch alike.
    """

    def __init__(self, softmax: AdaptiveSoftmax, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.softmax = softmax

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors ``[..., features]`` of ``tokens [...]``."""
        tables = self.softmax
        flat = tokens.reshape(-1)
        vectors = nn.functional.embedding(flat.clamp(max=tables.bounds[0] - 1), tables.head)
        for k, places, words in tables._clusters(flat):
            wide = nn.functional.embedding(words, tables.tails[k]) @ tables.projections[k]
            vectors = vectors.index_copy(0, places, wide.to(vectors.dtype))
        if self.training and self.dropout:
            vectors = vectors * _words_kept(self.dropout, flat, vectors)[:, None]
        return vectors.view(*tokens.shape, -1)

"""From token ids to vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recurra.nn.softmax import AdaptiveSoftmax

__all__ = ["AdaptiveEmbedding", "Embedding"]


def _words_kept(dropout: float, words: int, like: Tensor) -> Tensor:
    """One number a word: 0 for a word dropped, else ``1 / (1 - dropout)`` (Gal & Ghahramani 2016)."""
    return torch.empty(words, dtype=like.dtype, device=like.device).bernoulli_(1 - dropout) / (1 - dropout)


class Embedding(nn.Module):
    """A row of ``weight [vocabulary, features]`` for each token; whole words are dropped out in training.

    Args:
        words: size of the vocabulary.
        features: size of a vector.
        dropout: probability that a word of the vocabulary is dropped, everywhere in the batch alike.

    Attributes:
        row_sparse: give the weight a gradient of only the rows that were read (``torch.sparse_coo``), so that a step
            costs the same whatever the vocabulary. Not every optimiser can use it:
            :func:`recurra.optimization.build_optimizer` decides.
    """

    def __init__(self, words: int, features: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.row_sparse = dropout, False
        self.weight = nn.Parameter(torch.randn(words, features) * features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors ``[..., features]`` of ``tokens [...]``."""
        vectors = nn.functional.embedding(tokens, self.weight, sparse=self.row_sparse)
        if self.training and self.dropout:
            vectors = vectors * _words_kept(self.dropout, len(self.weight), vectors)[tokens, None]
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
        for k, rows, words in tables._clusters(flat):
            wide = nn.functional.embedding(words, tables.tails[k]) @ tables.projections[k]
            vectors = vectors.index_copy(0, rows, wide.to(vectors.dtype))
        if self.training and self.dropout:
            vectors = vectors * _words_kept(self.dropout, tables.bounds[-1], vectors)[flat, None]
        return vectors.view(*tokens.shape, -1)

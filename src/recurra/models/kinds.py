"""Every kind of language model, by the name that commands and model directories know it by."""

from __future__ import annotations

from typing import Any, NamedTuple

from recurra.models.fixed_window import FixedWindowLM, FixedWindowSettings
from recurra.models.kneser_ney import NgramLM, NgramSettings
from recurra.models.max_entropy import MaxEntLM, MaxEntSettings
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.models.sparse_nonnegative import SparseNonnegativeLM, SparseNonnegativeLMSettings

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """A kind of language model.

    Attributes:
        title: what it is, in a few words.
        settings: the dataclass of its settings.
        model: its class, a :class:`recurra.models.protocol.StoredModel`.
        counted: it is made by counting (:class:`recurra.models.protocol.CountedModel`), not by gradient.
    """

    title: str
    settings: type[Any]
    model: type[Any]
    counted: bool = False


KINDS = {
    "lm": Kind("recurrent language model", RecurrentLMSettings, RecurrentLM),
    "window": Kind("fixed-window neural language model", FixedWindowSettings, FixedWindowLM),
    "maxent": Kind("maximum-entropy model of hashed n-grams", MaxEntSettings, MaxEntLM),
    "ngram": Kind("interpolated Kneser-Ney n-gram model", NgramSettings, NgramLM, counted=True),
    "snm": Kind("sparse non-negative matrix model", SparseNonnegativeLMSettings, SparseNonnegativeLM, counted=True),
}

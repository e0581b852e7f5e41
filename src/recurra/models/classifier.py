"""Classifiers: one label for a text, such as its sentiment, its topic or its language.

The text's units (words, characters or byte pairs) become vectors, a recurrent stack reads them, its states are pooled
into one vector, and a softmax over the labels follows. With one direction a label can be had after every unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.models.protocol import State
from recurra.models.task import Codec, TaskModel
from recurra.models.words import UNSCORED, WordReader, Words, WordSettings, settle_words
from recurra.nn.encoder import Encoder
from recurra.nn.pooling import POOLINGS, Pooling
from recurra.text.documents import Document, Text
from recurra.text.examples import Encoded, ExampleBatch
from recurra.text.readers import Labelled
from recurra.text.tokenizer import (
    JOINER,
    Tokenizer,
    TokenizerSettings,
    build_tokenizer,
    split_words,
    tokenizer_from_mapping,
)

__all__ = ["Classifier", "ClassifierCodec", "ClassifierSettings"]


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings(WordSettings):
    """What a classifier is made of; ``None`` is settled from the data before the model is built."""

    units: str = setting("words", "what a text is read by", choices=("words", "characters", "byte-pairs"))
    vocabulary_size: int = setting(4000, "most byte pairs there are", minimum=300)
    hidden_size: int | tuple[int, ...] = setting(96, "units of a layer and direction, or of each layer", minimum=1)
    word_dropout: float = setting(0.1, "chance that a word is taken for an unknown one", minimum=0, maximum=0.99)
    input_dropout: float = setting(0.4, "locked dropout on word vectors", minimum=0, maximum=0.99)
    dropout: float = setting(
        0.4, "locked dropout between layers; in self-attention, dropout of weights and results", minimum=0, maximum=0.99
    )
    output_dropout: float = setting(0.4, "locked dropout on the encoder's states", minimum=0, maximum=0.99)
    pooling: str = setting("max", "how states become one vector", choices=POOLINGS)
    label_smoothing: float = setting(
        0.1, "share of a target that all labels have alike, in training", minimum=0, maximum=0.99
    )
    class_weights: str = setting(
        "none", "of examples in the loss; balanced: each label has the same sum", choices=("none", "balanced")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.units != "words" and self.characters != "none":
            raise UserError(
                f"characters {self.characters} are those of words: with units {self.units} leave it at none"
            )


class ClassifierCodec(Codec[Labelled]):
    """Units of texts, and labels.

    Args:
        words: the units there are.
        labels: that the model chooses from.
        counts: how often each was seen in training.
        kind: how texts are cut into units: ``words`` apart from symbols, ``whitespace`` where the training texts were
            cut so already (see :meth:`units`), ``characters`` or ``byte-pairs``.
        tokenizer: for byte pairs.
    """

    def __init__(
        self,
        words: Words,
        labels: Sequence[str],
        counts: Sequence[int],
        *,
        kind: str,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.words, self.labels, self.counts = words, list(labels), list(counts)
        self.kind, self.tokenizer = kind, tokenizer
        self._ids = {label: number for number, label in enumerate(self.labels)}

    @classmethod
    def build(cls, examples: Sequence[Labelled], settings: ClassifierSettings) -> Self:
        """As in :class:`~recurra.models.task.Codec`.

        Raises:
            UserError: there are fewer than two labels, a text has none, or no text holds anything.
        """
        counts = Counter(_label(example) for example in examples)
        if len(counts) < 2:
            found = f"only {next(iter(counts))!r}" if counts else "none"
            raise UserError(f"expected texts of two labels or more to learn from, got {found}")
        texts = [example.text for example in examples]
        kind, tokenizer = settings.units, None
        if kind == "byte-pairs":
            wanted = TokenizerSettings(
                tokenizer=kind, vocabulary_size=settings.vocabulary_size, lowercase=settings.lowercase
            )
            tokenizer = build_tokenizer(Text((Document("the training texts", texts.__iter__),)), wanted)
            settings = replace(settings, lowercase=False)  # the tokenizer does it; its tokens are no plain text
        elif kind == "words" and _cut_already(texts):
            kind = "whitespace"
        words = Words.build((_units(text, kind, tokenizer) for text in texts), settings)
        labels = sorted(counts, key=lambda label: (-counts[label], label))
        return cls(words, labels, [counts[label] for label in labels], kind=kind, tokenizer=tokenizer)

    def units(self, text: str) -> list[str]:
        """Cut a text into what the model reads one after the other.

        Where the training texts came cut into words, a text that does not is cut further: at words that are unknown,
        if they have parts that are known.
        """
        units = _units(text, self.kind, self.tokenizer)
        if self.kind != "whitespace" or all(map(self.words.knows, units)):
            return units
        return [part for unit in units for part in self._parts(unit)]

    def _parts(self, unit: str) -> list[str]:
        parts = [unit] if self.words.knows(unit) else _units(unit, "words", None)
        return parts if any(map(self.words.knows, parts)) else [unit]

    def summary(self) -> str:
        """How texts are cut, what labels there are; as in :class:`~recurra.models.task.Codec`."""
        cut = "cut into words already" if self.kind == "whitespace" else f"cut into {self.kind}"
        found = f"texts: {cut}; {len(self.labels):,} labels, the most frequent {self.labels[0]!r}"
        return "; ".join(filter(None, (found, self.words.summary())))

    def reload(self, settings: ClassifierSettings) -> None:
        """As in :class:`~recurra.models.task.Codec`."""
        self.words.reload(settings)

    def encode(self, example: Labelled, *, targets: bool = True) -> Encoded:
        """Turn a text into arrays: those of :meth:`Words.encode`, and the number of its ``label``, int64.

        A label that training had not is ``UNSCORED``: the text is read, but not scored.

        Raises:
            UserError: targets are asked for, and the text has no label.
        """
        units = self.units(example.text)
        arrays = self.words.encode(units)
        if not targets:
            return Encoded(arrays, len(units), 0)
        label = self._ids.get(_label(example), UNSCORED)
        arrays["label"] = np.array(label, np.int64)
        return Encoded(arrays, len(units), int(label != UNSCORED))

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "words": self.words.to_mapping(),
            "labels": self.labels,
            "counts": self.counts,
            "kind": self.kind,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.to_mapping(),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        found = mapping["tokenizer"]
        return cls(
            Words.from_mapping(mapping["words"]),
            mapping["labels"],
            mapping["counts"],
            kind=mapping["kind"],
            tokenizer=None if found is None else tokenizer_from_mapping(found),
        )


def _label(example: Labelled) -> str:
    if example.label is None:
        text = example.text if len(example.text) <= 60 else f"{example.text[:57]}..."
        raise UserError(f"expected a label for each text, got none for {text!r}")
    return example.label


def _units(text: str, kind: str, tokenizer: Tokenizer | None) -> list[str]:
    match kind:
        case "words":
            tokens = (token for chunk in text.split() for token in split_words(chunk))
            return [token.strip(JOINER) or token for token in tokens]
        case "whitespace":
            return text.split()
        case "characters":
            return list(text)
    assert tokenizer is not None
    return [tokenizer.token(number) for number in tokenizer.encode(text).tolist()]


def _cut_already(texts: Iterable[str]) -> bool:
    """Whether most commas and full stops stand by themselves."""
    stops = Counter(len(word) == 1 for text in texts for word in text.split() if word[-1] in ",.")
    return stops[True] > stops[False]


class _Running(NamedTuple):
    """What is known of texts that are read a unit at a time."""

    encoder: State
    pooled: Tensor  # [N, F]: the last state, the highest of each feature, or a sum
    mass: Tensor  # [N]: of attention, the sum of weights; of means, the number of states
    highest: Tensor  # [N]: of attention, the score that weights are relative to


class Classifier(TaskModel):
    """A label for a text.

    A prediction is ``{"label": ..., "probabilities": {label: probability}}``. That of an empty text is what is
    likeliest before anything is read.

    Args:
        settings: with nothing left to choose.
        codec: of the training examples.
    """

    codec_type: ClassVar[type[Codec[Any]]] = ClassifierCodec
    settings: ClassifierSettings
    codec: ClassifierCodec
    weights: Tensor  # of an example in the loss, by its label

    def __init__(self, settings: ClassifierSettings, codec: ClassifierCodec) -> None:
        super().__init__(settings, codec)
        self.words = WordReader(settings, codec.words)
        self.encoder = Encoder(settings, self.words.output_size)
        self.pooling = Pooling(settings.pooling, self.encoder.output_size, directions=self.encoder.directions)
        self.scores = nn.Linear(self.pooling.output_size, len(codec.labels))
        counts = torch.tensor(codec.counts, dtype=torch.float32)
        balanced = counts.sum() / (len(counts) * counts)  # 1 on average over the examples
        weights = balanced if settings.class_weights == "balanced" else torch.ones_like(counts)
        self.register_buffer("weights", weights, persistent=False)

    @classmethod
    def settle(
        cls, settings: ClassifierSettings, examples: Sequence[Labelled], codec: ClassifierCodec
    ) -> ClassifierSettings:
        """Choose what is left open of word vectors and encoder."""
        return settle_words(settings, codec.words)

    def loss(self, batch: ExampleBatch) -> Tensor:
        """Summed -log p of the labels, times their weights; smoothed in training."""
        labels = batch.arrays["label"]
        scored = labels != UNSCORED
        pooled, _ = self._pooled(batch)
        smoothing = self.settings.label_smoothing if self.training else 0.0
        nats = F.cross_entropy(self.scores(pooled)[scored], labels[scored], reduction="none", label_smoothing=smoothing)
        return (nats * self.weights[labels[scored]]).sum()

    def predict(self, batch: ExampleBatch, *, attention: bool = False) -> list[Any]:
        """As in :class:`~recurra.models.task.TaskModel`.

        Args:
            batch: encoded without targets.
            attention: give ``weights`` too, how much of each of :meth:`ClassifierCodec.units` attention took.

        Raises:
            UserError: weights are asked for, and the model pools in another way.
        """
        if attention and self.pooling.kind != "attention":
            raise UserError(f"only pooling by attention has weights, this model pools by {self.pooling.kind}")
        pooled, states = self._pooled(batch)
        predictions = self._predictions(pooled)
        if attention:
            lengths = batch.lengths["words"]
            rows = self.pooling.weights(states, lengths).t().tolist() if len(states) else [[]] * batch.size
            for prediction, row, length in zip(predictions, rows, lengths.tolist(), strict=True):
                prediction["weights"] = row[:length]
        return predictions

    # ---- a unit at a time -----------------------------------------------------------------------------------------

    def start(self, batch_size: int) -> State:
        """Return the state of texts of which nothing has been read.

        Raises:
            UserError: the encoder needs to have all of a text.
        """
        encoder = self.encoder.start(batch_size)
        nothing = self.scores.weight.new_zeros(batch_size, self.pooling.features)
        pooled = nothing - torch.inf if self.pooling.kind == "max" else nothing
        return _Running(encoder, pooled, nothing.new_zeros(batch_size), nothing.new_full((batch_size,), -torch.inf))

    def step(self, batch: ExampleBatch, state: State) -> tuple[list[Any], State]:
        """Read one unit of every text.

        Args:
            batch: of texts of one unit each, encoded without targets (``codec.words.encode([unit])``).
            state: what was read before.

        Returns:
            The predictions for what was read so far, as if each text ended there; and the new state.

        Raises:
            ValueError: a text of no units, or several.
        """
        before: _Running = state
        found, encoder = self.encoder.step(self.words.step(batch), before.encoder)
        pooled, mass, highest = found, before.mass, before.highest
        match self.pooling.kind:
            case "max":
                pooled = torch.maximum(before.pooled, found)
            case "mean":
                pooled, mass = before.pooled + found, mass + 1
            case "attention":  # the softmax of all scores so far, from that of the scores before
                score = self.pooling.hidden(found).tanh() @ self.pooling.query
                highest = torch.maximum(highest, score)
                kept, new = (before.highest - highest).exp(), (score - highest).exp()
                pooled = before.pooled * kept[:, None] + found * new[:, None]
                mass = mass * kept + new
        divided = pooled / mass[:, None] if self.pooling.kind in ("mean", "attention") else pooled
        return self._predictions(divided), _Running(encoder, pooled, mass, highest)

    def _pooled(self, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
        """One vector for each text ``[batch, features]``, and the states ``[time, batch, features]``."""
        lengths = batch.lengths["words"]
        states, _ = self.encoder(self.words(batch), lengths)
        return self.pooling(states, lengths), states

    def _predictions(self, pooled: Tensor) -> list[dict[str, Any]]:
        labels = self.codec.labels
        shares = self.scores(pooled).softmax(-1)
        best = shares.argmax(-1).tolist()
        return [
            {"label": labels[number], "probabilities": dict(zip(labels, row, strict=True))}
            for number, row in zip(best, shares.tolist(), strict=True)
        ]

"""Taggers: a tag for every word of a sentence, such as parts of speech or named entities.

A word's vector and one made of its characters are read by a recurrent stack, by default in both directions; from each
state the tag's scores follow. They are normalised word by word, or over whole sequences of tags by a conditional random
field (Ling et al. 2015; Lample et al. 2016, "Neural Architectures for Named Entity Recognition").
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
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
from recurra.nn.crf import LinearChainCRF, bio_constraints
from recurra.nn.encoder import Encoder
from recurra.nn.pooling import valid_steps
from recurra.text.columns import Sentence
from recurra.text.examples import Encoded, ExampleBatch
from recurra.text.tag_schemes import convert, detect_scheme, parse_tag, spans

__all__ = ["Tagger", "TaggerCodec", "TaggerSettings"]

SCHEME_CHOICES = ("keep", "bio", "bioes")


@dataclass(frozen=True, kw_only=True)
class TaggerSettings(WordSettings):
    """What a tagger is made of; ``None`` is settled from the data before the model is built."""

    hidden_size: int | tuple[int, ...] = setting(128, "units of a layer and direction, or of each layer", minimum=1)
    layers: int = setting(2, "layers of the stack", minimum=1)
    input_dropout: float = setting(0.25, "locked dropout on word vectors", minimum=0, maximum=0.99)
    dropout: float = setting(
        0.25,
        "locked dropout between layers; in self-attention, dropout of weights and results",
        minimum=0,
        maximum=0.99,
    )
    output_dropout: float = setting(0.25, "locked dropout on the encoder's states", minimum=0, maximum=0.99)
    characters: str = setting("lstm", "what reads a word's characters", choices=("none", "lstm", "cnn"))
    output: str | None = setting(
        None,
        "how tags are normalised: softmax word by word, crf over the sentence; auto is crf for spans such as entities",
        choices=("softmax", "crf"),
    )
    scheme: str = setting(
        "keep", "scheme in which tags of spans are learnt; answers come in that of the data", choices=SCHEME_CHOICES
    )
    constrained: bool = setting(True, "answer with tags of spans that are valid in their scheme only")


class TaggerCodec(Codec[Sentence]):
    """Words and tags of taggers.

    Tags are those of spans if :func:`recurra.text.tag_schemes.detect_scheme` finds them so. Then the model learns them
    in the scheme that the settings ask for, with all tags that it has for the types of span seen.

    Args:
        words: which there are.
        tags: that the model chooses from.
        scheme: of the data, ``bio``, ``iob1``, ``bioes`` or ``bilou``; None where tags are not of spans.
        learnt: the scheme that the model learns: one of the first three; BILOU is learnt as BIOES.

    Attributes:
        repaired: what was found in training that is not valid in the scheme of the data, and what it is read as, with
            counts; not saved.
    """

    def __init__(self, words: Words, tags: Sequence[str], *, scheme: str | None, learnt: str | None) -> None:
        self.words, self.tags, self.scheme, self.learnt = words, list(tags), scheme, learnt
        self.repaired: Counter[tuple[str, str]] = Counter()
        self._ids = {tag: number for number, tag in enumerate(self.tags)}

    @classmethod
    def build(cls, examples: Sequence[Sentence], settings: TaggerSettings) -> Self:
        """As in :class:`~recurra.models.task.Codec`."""
        tagged = [_tags(example) for example in examples]
        scheme = detect_scheme(tagged)
        if scheme is None and settings.scheme != "keep":
            odd = next(tag for tags in tagged for tag in tags if parse_tag(tag) is None)
            raise UserError(f"scheme {settings.scheme} is for tags of spans, such as B-PER and O, got {odd}; use keep")
        learnt = scheme if settings.scheme == "keep" else settings.scheme
        learnt = "bioes" if learnt == "bilou" else learnt
        words = Words.build((example.words for example in examples), settings)
        if scheme is None or learnt is None:
            counts = Counter(itertools.chain.from_iterable(tagged))
            return cls(words, sorted(counts, key=lambda tag: (-counts[tag], tag)), scheme=None, learnt=None)
        types = sorted({span.type for tags in tagged for span in spans(tags)})
        letters = "BIES" if learnt == "bioes" else "BI"
        chosen = [f"{letter}-{kind}" if kind else letter for kind in types for letter in letters]
        codec = cls(words, ["O", *chosen], scheme=scheme, learnt=learnt)
        pairs = (pair for tags in tagged for pair in zip(tags, convert(tags, scheme), strict=True))
        codec.repaired.update((tag, valid) for tag, valid in pairs if tag != valid)
        return codec

    def summary(self) -> str:
        """The scheme of the tags, and what was repaired; as in :class:`~recurra.models.task.Codec`."""
        if self.scheme is None:
            odd = next(tag for tag in self.tags if parse_tag(tag) is None)
            found = f"tags: {len(self.tags):,} kinds, not of spans (such as {odd})"
        else:
            found = f"tags: of spans, in {self.scheme}"
        if self.repaired:
            shown = ", ".join(f"{tag} as {valid}" for (tag, valid), _ in self.repaired.most_common(3))
            found += f"; {self.repaired.total():,} are not valid there and are read as others: {shown}"
        return "; ".join(filter(None, (found, self.words.summary())))

    def reload(self, settings: TaggerSettings) -> None:
        """As in :class:`~recurra.models.task.Codec`."""
        self.words.reload(settings)

    def encode(self, example: Sentence, *, targets: bool = True) -> Encoded:
        """Turn a sentence into arrays: those of :meth:`Words.encode`, and int64 ``tags [time]``.

        Tags of spans are repaired where they are not valid; what is no such tag counts as O. A sentence with a tag that
        training had not is read, but not scored: all of its targets are ``UNSCORED``.

        Raises:
            UserError: targets are asked for, and there are none, or not one for each word.
        """
        arrays = self.words.encode(example.words)
        if not targets:
            return Encoded(arrays, len(example.words), 0)
        tags: Sequence[str] = _tags(example)
        if self.learnt is not None:
            tags = convert(tags, self.learnt)
        ids = np.array([self._ids.get(tag, UNSCORED) for tag in tags], np.int64)
        if (ids == UNSCORED).any():
            ids[:] = UNSCORED
        arrays["tags"] = ids
        return Encoded(arrays, len(ids), int((ids != UNSCORED).sum()))

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Return tags of a whole sentence, in the scheme of the data."""
        tags = [self.tags[number] for number in ids]
        if self.scheme is None or self.scheme == self.learnt:
            return tags
        return list(convert(tags, self.scheme))

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        words = self.words.to_mapping()
        return {"words": words, "tags": self.tags, "scheme": self.scheme, "learnt": self.learnt}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        words = Words.from_mapping(mapping["words"])
        return cls(words, mapping["tags"], scheme=mapping["scheme"], learnt=mapping["learnt"])


def _tags(example: Sentence) -> Sequence[str]:
    """The tags of a sentence to learn from."""
    if example.tags is None:
        raise UserError(f"expected a tag for each word, got none in the sentence {_shown(example)}")
    if len(example.tags) != len(example.words):
        raise UserError(
            f"expected a tag for each of {len(example.words)} words, got {len(example.tags)} in the sentence"
            f" {_shown(example)}"
        )
    return example.tags


def _shown(example: Sentence) -> str:
    words = " ".join(example.words)
    return repr(words if len(words) <= 60 else f"{words[:57]}...")


class _Running(NamedTuple):
    """What is known of sentences that are read a word at a time."""

    encoder: State
    last: Tensor | None  # [N]: tags of the last words


class Tagger(TaskModel):
    """A tag for every word.

    A prediction is a list of tags, one a word, in the scheme of the training data; of an empty sentence, an empty one.

    Args:
        settings: with nothing left to choose.
        codec: of the training examples.
    """

    codec_type: ClassVar[type[Codec[Any]]] = TaggerCodec
    settings: TaggerSettings
    codec: TaggerCodec

    def __init__(self, settings: TaggerSettings, codec: TaggerCodec) -> None:
        super().__init__(settings, codec)
        self.words = WordReader(settings, codec.words)
        self.encoder = Encoder(settings, self.words.output_size)
        self.emissions = nn.Linear(self.encoder.output_size, len(codec.tags))
        self._allowed = None  # all tags may follow all others
        if settings.constrained and codec.learnt is not None:
            self._allowed = bio_constraints([parse_tag(tag) or ("O", "") for tag in codec.tags], codec.learnt)
        self.crf = self._field() if settings.output == "crf" else None

    @classmethod
    def settle(cls, settings: TaggerSettings, examples: Sequence[Sentence], codec: TaggerCodec) -> TaggerSettings:
        """Choose the output by whether tags are of spans."""
        output = settings.output or ("softmax" if codec.scheme is None else "crf")
        return replace(settle_words(settings, codec.words), output=output)

    def loss(self, batch: ExampleBatch) -> Tensor:
        """Summed -log p of the tags: word by word, or by a CRF of whole sentences."""
        emissions, targets, lengths = self._emissions(batch), batch.arrays["tags"], batch.lengths["tags"]
        emissions = emissions[: len(targets)]
        scored = targets[:1] != UNSCORED  # all words of a sentence, or none
        if self.crf is not None:
            ends = torch.where(scored.cpu().any(0), lengths, 0)
            return self.crf.loss(emissions, targets, ends)
        valid = valid_steps(lengths.to(targets.device), len(targets))
        return F.cross_entropy(emissions[valid], targets[valid], reduction="sum", ignore_index=UNSCORED)

    def predict(self, batch: ExampleBatch, *, probabilities: bool = False) -> list[Any]:
        """As in :class:`~recurra.models.task.TaskModel`.

        Args:
            batch: encoded without targets.
            probabilities: give ``{"tags": [...], "probabilities": [{tag: probability}, ...]}`` for each sentence. They
                are those of single words, given the sentence: a softmax's, or a CRF's marginals. The tags there are
                those of the scheme that was learnt.
        """
        emissions, lengths = self._emissions(batch), batch.lengths["words"]
        field = self.crf
        if field is None and self._allowed is not None:
            field = self._field().to(emissions)
        best = emissions.argmax(-1) if field is None else field.decode(emissions, lengths)[0]
        rows = best.t().tolist() if len(best) else [[]] * batch.size
        tags = [self.codec.decode(row[:length]) for row, length in zip(rows, lengths.tolist(), strict=True)]
        if not probabilities:
            return tags
        shares = emissions.softmax(-1) if self.crf is None else self.crf.marginals(emissions, lengths)
        predictions = []
        for column, own in enumerate(tags):
            rows = shares[: len(own), column].tolist()
            each = [dict(zip(self.codec.tags, row, strict=True)) for row in rows]
            predictions.append({"tags": own, "probabilities": each})
        return predictions

    # ---- a word at a time -----------------------------------------------------------------------------------------

    def start(self, batch_size: int) -> State:
        """Return the state of sentences of which nothing has been read.

        Raises:
            UserError: tags depend on words that come later: the encoder is bidirectional or the like, the output is a
                CRF, or the scheme is one in which a tag says whether its span ends.
        """
        self.encoder.check_streams()
        if self.crf is not None:
            raise UserError(
                "this model cannot tag a word at a time: its CRF chooses all tags at once; use output softmax"
            )
        if self.codec.scheme != self.codec.learnt:
            raise UserError(
                f"this model cannot tag a word at a time: it learnt {self.codec.learnt} tags, and makes"
                f" {self.codec.scheme} ones of them at the end; train with --scheme keep"
            )
        if self.codec.learnt == "bioes" and self._allowed is not None:
            raise UserError(
                "this model cannot tag a word at a time: a bioes tag says whether its span ends, which depends on the"
                " words that follow; train with --scheme bio on tags that are so, or with --no-constrained"
            )
        return _Running(self.encoder.start(batch_size), None)

    def step(self, batch: ExampleBatch, state: State) -> tuple[list[str], State]:
        """Read one word of every sentence, and tag it by what was read so far.

        Args:
            batch: of sentences of one word each, encoded without targets.
            state: what was read before.

        Returns:
            A tag for each, the likeliest of those that may follow the one before; and the new state.

        Raises:
            ValueError: a sentence of no words, or several.
        """
        before: _Running = state
        states, encoder = self.encoder.step(self.words.step(batch), before.encoder)
        scores = self.emissions(states)
        if self._allowed is not None:
            starts, transitions = (part.to(scores.device) for part in (self._allowed.starts, self._allowed.transitions))
            allowed = starts.expand_as(scores) if before.last is None else transitions[before.last]
            scores = scores.masked_fill(~allowed, -torch.inf)
        last = scores.argmax(-1)
        return [self.codec.tags[number] for number in last.tolist()], _Running(encoder, last)

    def _emissions(self, batch: ExampleBatch) -> Tensor:
        """Scores ``[time, batch, tags]``; what stands in padding means nothing."""
        states, _ = self.encoder(self.words(batch), batch.lengths["words"])
        scores: Tensor = self.emissions(states)
        return scores

    def _field(self) -> LinearChainCRF:
        """A field of the tags, in which all that is allowed is as good, before it is trained."""
        return LinearChainCRF(len(self.codec.tags), allowed=self._allowed, labels=self.codec.tags)

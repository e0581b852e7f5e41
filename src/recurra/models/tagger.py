"""Taggers: a tag for every word of a sentence, such as parts of speech or named entities.

A word's vector and one made of its characters are read by a recurrent stack, by default in both directions; from each
state the tag's scores follow. They are normalised word by word, or over whole sequences of tags by a conditional random
field (Ling et al. 2015; Lample et al. 2016, "Neural Architectures for Named Entity Recognition").

``Words``, ``WordSettings`` and ``WordReader`` are how other models of words, too, turn them into vectors.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.models.protocol import State
from recurra.models.task import Codec, TaskModel
from recurra.nn.characters import CharacterCNN, CharacterLSTM
from recurra.nn.crf import LinearChainCRF, bio_constraints
from recurra.nn.embedding import Embedding
from recurra.nn.encoder import Encoder, EncoderSettings
from recurra.nn.int8 import version_of
from recurra.nn.pooling import valid_steps
from recurra.text.columns import Sentence
from recurra.text.examples import Encoded, ExampleBatch
from recurra.text.tag_schemes import convert, detect_scheme, spans
from recurra.text.vectors import read_vectors
from recurra.text.vocabulary import SPECIAL, UNKNOWN, Vocabulary

__all__ = ["Tagger", "TaggerCodec", "TaggerSettings", "WordReader", "WordSettings", "Words", "settle_words"]

LONGEST = 48  # characters that are read of a word
KEPT_WORDS = 20_000  # vectors of unseen words that are kept
SPELLED_AT_ONCE = 1024  # unseen words: bounds the memory that takes
WORD_SIZE = 100  # of a word's vector, where none is given
SCHEME_CHOICES = ("keep", "bio", "bioes")
UNSCORED = -1  # the target of a word that is read but not scored

Arrays: TypeAlias = dict[str, NDArray[Any]]
Chosen = TypeVar("Chosen", bound="WordSettings")


@dataclass(frozen=True, kw_only=True)
class WordSettings(EncoderSettings):
    """How words become vectors, and what reads these; ``None`` is settled from the data."""

    word_size: int | None = setting(None, "size of a word's own vector", minimum=1)
    lowercase: bool = setting(True, "look words up in small letters; their characters keep the case")
    min_count: int = setting(1, "least count of a word with a vector of its own", minimum=1)
    word_dropout: float = setting(0.02, "chance that a word is taken for an unknown one", minimum=0, maximum=0.99)
    rare_word_dropout: float = setting(
        0.25, "A: a word seen n times is taken for an unknown one with chance A / (A + n) besides", minimum=0
    )
    characters: str = setting("none", "what reads a word's characters", choices=("none", "lstm", "cnn"))
    character_size: int = setting(24, "size of a character's vector", minimum=1)
    character_features: int = setting(64, "size of the vector made of a word's characters", minimum=1)
    vectors: str | None = setting(None, "file of pretrained word vectors")
    tune_vectors: bool = setting(False, "train pretrained vectors further")


class Words:
    """Which words there are: those with a vector of their own, and those whose spelling is known.

    A word is two numbers: one of its vector, ``UNKNOWN`` where it has none; and one of its spelling. An example brings
    the spellings of its own that were not seen in training, numbered on from those that were, so that no word is taken
    for another, and nothing needs to be remembered from one example to the next.

    Args:
        vocabulary: words as they are looked up, with their counts in training.
        spellings: words as they are written, ``<unk>`` first; None where characters are not read.
        lowercase: whether words are looked up in small letters.
        covered: for which words of the vocabulary there is a pretrained vector; None where none were asked for.
        pretrained: vectors ``[vocabulary, features]``; a new model starts from them. They are not saved here: a model
            that is opened has its own.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        spellings: Sequence[str] | None,
        *,
        lowercase: bool,
        covered: Sequence[bool] | None = None,
        pretrained: NDArray[np.float32] | None = None,
    ) -> None:
        self.vocabulary, self.lowercase, self.pretrained = vocabulary, lowercase, pretrained
        self.covered = None if covered is None else list(covered)
        self.spellings = None if spellings is None else list(spellings)
        self._spelled = {word: number for number, word in enumerate(self.spellings or ())}

    @classmethod
    def build(cls, texts: Iterable[Sequence[str]], settings: WordSettings) -> Self:
        """Count the words of training texts.

        Raises:
            UserError: there are none, or what is wrong with the file of pretrained vectors.
        """
        written = Counter(itertools.chain.from_iterable(texts))
        if not written:
            raise UserError("expected words to learn from, got none; give examples that are not empty")
        looked_up: Counter[str] = Counter()
        for word, count in written.items():
            looked_up[word.lower() if settings.lowercase else word] += count
        vocabulary = Vocabulary.from_counts(looked_up, line_ends=0, min_count=settings.min_count)
        frequent = sorted(written, key=lambda word: (-written[word], word))
        spellings = [SPECIAL[UNKNOWN], *(word for word in frequent if word != SPECIAL[UNKNOWN])]
        words = cls(vocabulary, None if settings.characters == "none" else spellings, lowercase=settings.lowercase)
        if settings.vectors is not None:
            found = read_vectors(settings.vectors, vocabulary.tokens, features=settings.word_size)
            words.pretrained, words.covered = found.matrix, found.covered.tolist()
            words.covered[: len(SPECIAL)] = [False] * len(SPECIAL)  # what is unknown here is not what was unknown there
        return words

    @property
    def covered_share(self) -> float | None:
        """The part of the training text's words that have a pretrained vector; None where none were asked for."""
        if self.covered is None:
            return None
        return float(np.dot(self.covered, self.vocabulary.counts) / sum(self.vocabulary.counts))

    def encode(self, words: Sequence[str]) -> Arrays:
        """Return arrays for an :class:`~recurra.text.examples.Encoded`: int64 ``words [time]``.

        Where characters are read, ``spellings [time]`` too, and as int32 code points, zeros behind them,
        ``unseen [spellings not seen in training, LONGEST]``.
        """
        ids = self.vocabulary.ids
        looked_up = [word.lower() for word in words] if self.lowercase else words
        arrays: Arrays = {"words": np.array([ids.get(word, UNKNOWN) for word in looked_up], np.int64)}
        if self.spellings is not None:
            known, seen = self._spelled, len(self.spellings)
            unseen: dict[str, int] = {}
            numbers = [known[w] if w in known else seen + unseen.setdefault(w, len(unseen)) for w in words]
            arrays["spellings"] = np.array(numbers, np.int64)
            arrays["unseen"] = _code_points(list(unseen))
        return arrays

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "vocabulary": self.vocabulary.to_mapping(),
            "spellings": self.spellings,
            "lowercase": self.lowercase,
            "covered": self.covered,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        vocabulary = Vocabulary.from_mapping(mapping["vocabulary"])
        return cls(vocabulary, mapping["spellings"], lowercase=mapping["lowercase"], covered=mapping["covered"])


def settle_words(settings: Chosen, words: Words) -> Chosen:
    """Choose the size of word vectors, where it is left open: that of pretrained ones, or ``WORD_SIZE``."""
    given = WORD_SIZE if words.pretrained is None else words.pretrained.shape[1]
    return replace(settings, word_size=settings.word_size or given)


def _code_points(words: Sequence[str]) -> NDArray[np.int32]:
    """Code points ``[words, LONGEST]`` of words, zeros behind them."""
    letters = np.array([word[:LONGEST] for word in words], f"<U{LONGEST}")
    return letters.view(np.int32).reshape(len(words), LONGEST)


def _texts(code_points: Tensor) -> list[str]:
    """Undo :func:`_code_points`, for some rows of it."""
    rows = np.ascontiguousarray(code_points.cpu().numpy())
    texts: list[str] = rows.view(f"<U{LONGEST}").reshape(len(rows)).tolist()
    return texts


class WordReader(nn.Module):
    """From words to vectors: one looked up, beside one made of the characters.

    In training a word is now and then looked up as an unknown one, rare ones more often, so that the vector of unknown
    words is learnt (Kiperwasser and Goldberg 2016, section 4); its characters are read all the same.

    Args:
        settings: with no size left to choose.
        words: which there are.
    """

    chances: Tensor  # that a word is taken for an unknown one, by id
    covered: Tensor  # which words have a pretrained vector, if any

    def __init__(self, settings: WordSettings, words: Words) -> None:
        super().__init__()
        assert settings.word_size is not None
        self.embedding = Embedding(len(words.vocabulary), settings.word_size)
        covered = torch.tensor(words.covered or [], dtype=torch.bool)
        self.register_buffer("covered", covered, persistent=False)
        self.frozen: nn.Parameter | None = None  # a table of its own, so that no optimiser moves it
        if words.covered is not None and not settings.tune_vectors:
            self.frozen = nn.Parameter(torch.zeros_like(self.embedding.weight), requires_grad=False)
        with torch.no_grad():
            if words.pretrained is not None and covered.any():
                given = torch.from_numpy(words.pretrained)[covered]
                table = self.embedding.weight if self.frozen is None else self.frozen
                self.embedding.weight.mul_(given.std(correction=0) * settings.word_size**0.5)  # as large as the others
                table[covered] = given.to(table.dtype)
            self.embedding.weight[UNKNOWN] = 0  # where nothing trains it
        counts = torch.tensor(words.vocabulary.counts, dtype=torch.float32)
        rare = settings.rare_word_dropout / (settings.rare_word_dropout + counts.clamp(min=1))
        self.register_buffer("chances", 1 - (1 - settings.word_dropout) * (1 - rare), persistent=False)
        self._seen = len(words.spellings or ())
        self.characters = _character_layer(settings, words.spellings) if words.spellings else None
        self._kept: dict[str, Tensor] = {}  # vectors of unseen words
        self._made_of: tuple[tuple[int, int], ...] = ()  # address and version of each parameter then

    @property
    def output_size(self) -> int:
        """Size of a word's vector, characters included."""
        return self.embedding.weight.shape[1] + (self.characters.features if self.characters is not None else 0)

    def forward(self, batch: ExampleBatch) -> Tensor:
        """Vectors ``[time, batch, output_size]`` of examples encoded by :class:`Words`, zeros in padding.

        Where all are empty there is one step of padding.
        """
        words = batch.arrays["words"]
        steps, columns = valid_steps(batch.lengths["words"].to(words.device), len(words)).nonzero(as_tuple=True)
        looked_up = words[steps, columns]
        if self.training:
            taken = torch.rand(len(looked_up), device=words.device) < self.chances[looked_up]
            looked_up = looked_up.masked_fill(taken, UNKNOWN)
        found: Tensor = self.embedding(looked_up)
        if self.frozen is not None:
            found = torch.where(self.covered[looked_up, None], F.embedding(looked_up, self.frozen), found)
        if self.characters is not None:
            found = torch.cat((found, self._spelled(batch, steps, columns)), 1)
        time = max(1, len(words))  # locked dropout needs a step to draw for
        return found.new_zeros(time, batch.size, found.shape[1]).index_put((steps, columns), found)

    def _spelled(self, batch: ExampleBatch, steps: Tensor, columns: Tensor) -> Tensor:
        """Vectors ``[words, features]`` by the characters of the words at these places."""
        assert self.characters is not None
        numbers = batch.arrays["spellings"][steps, columns]
        seen = self._seen
        unseen = (numbers >= seen).nonzero()[:, 0]
        if not len(unseen):
            all_seen: Tensor = self.characters(numbers)
            return all_seen
        found: Tensor = self.characters(numbers.index_fill(0, unseen, UNKNOWN))
        texts = _texts(batch.arrays["unseen"][numbers[unseen] - seen, columns[unseen]])
        different = {word: number for number, word in enumerate(dict.fromkeys(texts))}
        vectors = self._spell(list(different))
        places = torch.tensor([different[word] for word in texts], device=vectors.device)
        return found.index_copy(0, unseen, vectors[places])

    def _spell(self, words: Sequence[str]) -> Tensor:
        """Vectors ``[words, features]`` of words that training had not; without gradients they are kept."""
        assert self.characters is not None
        if torch.is_grad_enabled():
            self._kept.clear()  # the parameters are about to change
            return self.characters.spell(words)
        now = tuple((parameter.data_ptr(), version_of(parameter)) for parameter in self.characters.parameters())
        if now != self._made_of or len(self._kept) + len(words) > KEPT_WORDS:
            self._kept, self._made_of = {}, now
        missing = [word for word in words if word not in self._kept]
        with torch.autocast(self.chances.device.type, enabled=False):  # they are kept for longer than it may last
            for part in (missing[i : i + SPELLED_AT_ONCE] for i in range(0, len(missing), SPELLED_AT_ONCE)):
                self._kept.update(zip(part, self.characters.spell(part), strict=True))
        return torch.stack([self._kept[word] for word in words])


def _character_layer(settings: WordSettings, spellings: Sequence[str]) -> CharacterCNN | CharacterLSTM:
    size, features = settings.character_size, settings.character_features
    if settings.characters == "cnn":
        # Trigrams (Ma and Hovy 2016), and half as many of the next shorter and longer ones.
        filters = [(2, features // 2), (3, features), (4, features // 2)]
        filters = [(width, max(1, count)) for width, count in filters]
        return CharacterCNN(
            spellings, features, character_size=size, filters=filters, highway_layers=0, longest=LONGEST + 2
        )
    return CharacterLSTM(spellings, features, character_size=size, hidden_size=features, longest=LONGEST + 2)


# ---- the tagger -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaggerSettings(WordSettings):
    """What a tagger is made of; ``None`` is settled from the data before the model is built."""

    hidden_size: int | tuple[int, ...] = setting(128, "units of a layer and direction, or of each layer", minimum=1)
    layers: int = setting(2, "layers of the stack", minimum=1)
    input_dropout: float = setting(0.25, "locked dropout on word vectors", minimum=0, maximum=0.99)
    dropout: float = setting(0.25, "locked dropout between layers", minimum=0, maximum=0.99)
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
        scheme: of the data, ``bio``, ``iob1`` or ``bioes``; None where tags are not of spans.
        learnt: the scheme that the model learns, likewise.
    """

    def __init__(self, words: Words, tags: Sequence[str], *, scheme: str | None, learnt: str | None) -> None:
        self.words, self.tags, self.scheme, self.learnt = words, list(tags), scheme, learnt
        self._ids = {tag: number for number, tag in enumerate(self.tags)}

    @classmethod
    def build(cls, examples: Sequence[Sentence], settings: TaggerSettings) -> Self:
        """As in :class:`~recurra.models.task.Codec`."""
        tagged = [_tags(example) for example in examples]
        scheme = detect_scheme(tagged)
        if scheme is None and settings.scheme != "keep":
            odd = next((tag for tags in tagged for tag in tags if detect_scheme([[tag]]) is None), "none")
            raise UserError(f"scheme {settings.scheme} is for tags of spans, such as B-PER and O, got {odd}; use keep")
        learnt = scheme if settings.scheme == "keep" else settings.scheme
        words = Words.build((example.words for example in examples), settings)
        if learnt is None:
            counts = Counter(itertools.chain.from_iterable(tagged))
            return cls(words, sorted(counts, key=lambda tag: (-counts[tag], tag)), scheme=None, learnt=None)
        types = sorted({span.type for tags in tagged for span in spans(tags)})
        letters = "BIES" if learnt == "bioes" else "BI"
        return cls(words, ["O", *(f"{b}-{kind}" for kind in types for b in letters)], scheme=scheme, learnt=learnt)

    def encode(self, example: Sentence, *, targets: bool = True) -> Encoded:
        """Turn a sentence into arrays: those of :meth:`Words.encode`, and int64 ``tags [time]``.

        Tags of spans are repaired where they are not valid. A sentence with a tag that training had not is read, but
        not scored: all of its targets are ``UNSCORED``.

        Raises:
            UserError: targets are asked for, and there are none, or not one for each word.
        """
        arrays = self.words.encode(example.words)
        if not targets:
            return Encoded(arrays, len(example.words), 0)
        tags: Sequence[str] = _tags(example)
        if self.learnt is not None and detect_scheme([tags]) is not None:
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

    def predict(self, batch: ExampleBatch, *, probabilities: bool = False, **options: Any) -> list[Any]:
        """As in :class:`~recurra.models.task.TaskModel`.

        Args:
            batch: encoded without targets.
            probabilities: give ``{"tags": [...], "probabilities": [{tag: probability}, ...]}`` for each sentence. They
                are those of single words, given the sentence: a softmax's, or a CRF's marginals. The tags there are
                those of the scheme that was learnt.
            options: there are no others.
        """
        assert not options, options
        emissions, lengths = self._emissions(batch), batch.lengths["words"]
        field = self.crf
        if field is None and self.settings.constrained and self.codec.learnt is not None:
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
                CRF, or the scheme of the data has to be told from the next tag.
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
        return self.encoder.start(batch_size)

    def step(self, batch: ExampleBatch, state: State) -> tuple[list[str], State]:
        """Read one word of every sentence, and tag it by what was read so far.

        Args:
            batch: of sentences of one word each, encoded without targets.
            state: what was read before.

        Returns:
            A tag for each, the likeliest by itself; and the new state.
        """
        states, state = self.encoder.step(self.words(batch)[0], state)
        return [self.codec.tags[number] for number in self.emissions(states).argmax(-1).tolist()], state

    def _emissions(self, batch: ExampleBatch) -> Tensor:
        """Scores ``[time, batch, tags]``; what stands in padding means nothing."""
        states, _ = self.encoder(self.words(batch), batch.lengths["words"])
        scores: Tensor = self.emissions(states)
        return scores

    def _field(self) -> LinearChainCRF:
        """A field of the tags, in which all that is allowed is as good, before it is trained."""
        learnt, tags = self.codec.learnt, self.codec.tags
        allowed = None if learnt is None else bio_constraints(tags, learnt)
        return LinearChainCRF(len(tags), allowed=allowed, labels=tags)

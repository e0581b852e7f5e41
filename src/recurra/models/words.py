"""Words as vectors: a vector of a word's own, and one made of its characters; what taggers and others read.

A word that training had not still has its characters, in whatever batch it comes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.nn.characters import CharacterCNN, CharacterLSTM
from recurra.nn.embedding import Embedding
from recurra.nn.encoder import EncoderSettings, settle_encoder
from recurra.nn.int8 import version_of
from recurra.nn.pooling import valid_steps
from recurra.text.examples import ExampleBatch
from recurra.text.vectors import listed_words, read_vectors
from recurra.text.vocabulary import SPECIAL, UNKNOWN, Vocabulary

__all__ = ["UNSCORED", "WordReader", "WordSettings", "Words", "settle_words"]

LONGEST = 48  # characters that are read of a word
KEPT_WORDS = 20_000  # vectors of unseen words that are kept
SPELLED_AT_ONCE = 1024  # unseen words: bounds the memory that takes
WORD_SIZE = 100  # of a word's vector, where none is given
UNSCORED = -1  # the target of what is read but not scored

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
    vector_words: int = setting(
        100_000, "most words that are known by the file of vectors alone, the first in it; 0 for none", minimum=0
    )
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
        further: words that have nothing but a pretrained vector, numbered on from the vocabulary's, with how often
            training had them.

    Attributes:
        pretrained: vectors ``[vocabulary and further words, features]``; a new model starts from them. They are not
            saved here: a model that is opened has its own.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        spellings: Sequence[str] | None,
        *,
        lowercase: bool,
        covered: Sequence[bool] | None = None,
        further: Mapping[str, int] | None = None,
    ) -> None:
        self.vocabulary, self.lowercase, self.further = vocabulary, lowercase, dict(further or {})
        self.covered = None if covered is None else list(covered)
        self.pretrained: NDArray[np.float32] | None = None
        self._ids = {word: number for number, word in enumerate([*vocabulary.tokens, *self.further])}
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
        further: dict[str, int] = {}
        if settings.vectors is not None and settings.vector_words:
            usable = (
                word
                for word in listed_words(settings.vectors, errors="replace")
                if word not in vocabulary.ids and (word == word.lower() or not settings.lowercase)
            )
            further = {word: looked_up[word] for word in itertools.islice(usable, settings.vector_words)}
        given = None if settings.characters == "none" else spellings
        words = cls(vocabulary, given, lowercase=settings.lowercase, further=further)
        if settings.vectors is not None:
            words.pretrained, words.covered = words._read(settings.vectors, settings.word_size)
            if not words.covered_share:
                raise UserError(
                    f"{settings.vectors}: has no vector for any word of the training text; is it the right file?"
                )
        return words

    def reload(self, settings: WordSettings) -> None:
        """Read the pretrained vectors again, which are not saved here.

        Raises:
            UserError: what is wrong with their file, or it is not what it was.
        """
        if settings.vectors is not None:
            self.pretrained, covered = self._read(settings.vectors, settings.word_size)
            if covered != self.covered:
                raise UserError(f"{settings.vectors}: no longer has the words that it had; train anew with --overwrite")

    def _read(self, file: str, features: int | None) -> tuple[NDArray[np.float32], list[bool]]:
        """The vectors of a file, and for which words of the vocabulary it has one."""
        found = read_vectors(file, list(self._ids), features=features, errors="replace")
        found.covered[: len(SPECIAL)] = False  # what is unknown here is not what was unknown there
        if not found.covered[len(self.vocabulary) :].all():
            raise UserError(f"{file}: no longer has the words that it had; train anew with --overwrite")
        return found.matrix, found.covered[: len(self.vocabulary)].tolist()

    @property
    def counts(self) -> list[int]:
        """How often training had each word, the further ones included."""
        return [*self.vocabulary.counts, *self.further.values()]

    @property
    def covered_share(self) -> float | None:
        """The part of the training text's words that have a pretrained vector; None where none were asked for."""
        if self.covered is None:
            return None
        found = np.dot(self.covered, self.vocabulary.counts) + sum(self.further.values())
        return float(found / sum(self.vocabulary.counts))

    def summary(self) -> str | None:
        """What a user should know of the pretrained vectors; None where none were asked for."""
        share = self.covered_share
        if share is None:
            return None
        return (
            f"pretrained vectors: of {share:.1%} of the training text's words, and of"
            f" {sum(not count for count in self.further.values()):,} that it has not"
        )

    def knows(self, word: str) -> bool:
        """Whether a word has a vector of its own."""
        return (word.lower() if self.lowercase else word) in self._ids

    def encode(self, words: Sequence[str]) -> Arrays:
        """Return arrays for an :class:`~recurra.text.examples.Encoded`: int64 ``words [time]``.

        Where characters are read, ``spellings [time]`` too, and as int32 code points, zeros behind them,
        ``unseen [spellings not seen in training, LONGEST]``.
        """
        ids = self._ids
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
            "further": self.further,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        vocabulary = Vocabulary.from_mapping(mapping["vocabulary"])
        names = ("lowercase", "covered", "further")
        return cls(vocabulary, mapping["spellings"], **{name: mapping[name] for name in names})


def settle_words(settings: Chosen, words: Words) -> Chosen:
    """Choose what is left open of the encoder, and the size of word vectors: that of given ones, or ``WORD_SIZE``."""
    given = WORD_SIZE if words.pretrained is None else words.pretrained.shape[1]
    return replace(settle_encoder(settings), word_size=settings.word_size or given)


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

    Pretrained vectors that are not trained are a table of their own, so that no optimiser moves it and words that are
    only in their file take no more memory than that.

    Args:
        settings: with no size left to choose.
        words: which there are.
    """

    chances: Tensor  # that a word is taken for an unknown one, by its number
    places: Tensor  # of words in the table of pretrained vectors, by their numbers; -1 for those that are not there

    def __init__(self, settings: WordSettings, words: Words) -> None:
        super().__init__()
        assert settings.word_size is not None
        own = len(words.vocabulary)
        self.embedding = Embedding(own, settings.word_size)
        # In NumPy, as the module may be made without storage, to see how large it is.
        covered = np.array([*(words.covered or [False] * own), *[True] * len(words.further)])
        fixed = covered & (np.arange(len(covered)) >= own) if settings.tune_vectors else covered
        self.register_buffer("places", torch.from_numpy(np.where(fixed, fixed.cumsum() - 1, -1)), persistent=False)
        self.frozen: nn.Parameter | None = None
        if fixed.any():
            self.frozen = nn.Parameter(torch.zeros(int(fixed.sum()), settings.word_size), requires_grad=False)
        with torch.no_grad():
            if words.pretrained is not None and covered.any() and not self.embedding.weight.is_meta:
                given = words.pretrained[covered]
                self.embedding.weight.mul_(float(given.std()) * settings.word_size**0.5)  # as large as the others
                if self.frozen is not None:
                    self.frozen.copy_(torch.from_numpy(words.pretrained[fixed]))
                tuned = np.flatnonzero(covered & ~fixed)
                self.embedding.weight[tuned] = torch.from_numpy(words.pretrained[tuned]).to(self.embedding.weight)
            self.embedding.weight[UNKNOWN] = 0  # where nothing trains it
        counts = torch.tensor(words.counts, dtype=torch.float32)
        rare = settings.rare_word_dropout / (settings.rare_word_dropout + counts.clamp(min=1))
        self.register_buffer("chances", 1 - (1 - settings.word_dropout) * (1 - rare), persistent=False)
        self._seen = len(words.spellings or ())
        self.characters = _character_layer(settings, words.spellings) if words.spellings else None
        self._kept = _Kept((), {})

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
        found = self._looked_up(looked_up)
        if self.characters is not None:
            found = torch.cat((found, self._spelled(batch, steps, columns)), 1)
        time = max(1, len(words))  # locked dropout needs a step to draw for
        return found.new_zeros(time, batch.size, found.shape[1]).index_put((steps, columns), found)

    def step(self, batch: ExampleBatch) -> Tensor:
        """Vectors ``[batch, output_size]`` of examples of one word each.

        Raises:
            ValueError: one has none, or several.
        """
        lengths = batch.lengths["words"].tolist()
        if set(lengths) != {1}:
            raise ValueError(f"expected examples of one word each, got lengths {lengths}")
        vectors: Tensor = self(batch)[0]
        return vectors

    def _looked_up(self, words: Tensor) -> Tensor:
        """Vectors ``[words, size]`` of words by their numbers."""
        if self.frozen is None:
            found: Tensor = self.embedding(words)
            return found
        places = self.places[words]
        own = (places < 0).nonzero()[:, 0]
        given = F.embedding(places.clamp(min=0), self.frozen)
        return given.index_copy(0, own, self.embedding(words[own]).to(given.dtype))

    def _spelled(self, batch: ExampleBatch, steps: Tensor, columns: Tensor) -> Tensor:
        """Vectors ``[words, features]`` by the characters of the words at these places."""
        assert self.characters is not None
        if torch.is_grad_enabled():
            self._kept = _Kept((), {})  # the parameters are about to change, which fused optimisers do not tell
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
            return self.characters.spell(words)
        now = tuple((parameter.data_ptr(), version_of(parameter)) for parameter in self.characters.parameters())
        kept = self._kept.vectors if now == self._kept.made_of else {}
        # Of its own, as other threads may add to what is kept, or begin anew.
        found = {word: vector for word in words if (vector := kept.get(word)) is not None}
        missing = [word for word in words if word not in found]
        spelled: dict[str, Tensor] = {}
        with torch.autocast(self.chances.device.type, enabled=False):  # they are kept for longer than it may last
            for part in (missing[i : i + SPELLED_AT_ONCE] for i in range(0, len(missing), SPELLED_AT_ONCE)):
                spelled.update(zip(part, self.characters.spell(part), strict=True))
        if len(kept) + len(spelled) > KEPT_WORDS:
            kept = {}
        kept.update(itertools.islice(spelled.items(), KEPT_WORDS))
        self._kept = _Kept(now, kept)
        found |= spelled
        return torch.stack([found[word] for word in words])


class _Kept(NamedTuple):
    """Vectors of unseen words by their characters."""

    made_of: tuple[tuple[int, int], ...]  # address and version of each parameter then
    vectors: dict[str, Tensor]


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

"""Words as vectors: a vector of a word's own, and one made of its characters; what taggers and others read.

A word that training had not still has its characters, in whatever batch it comes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.nn.characters import CharacterCNN, CharacterLSTM
from recurra.nn.embedding import Embedding
from recurra.nn.encoder import EncoderSettings
from recurra.nn.int8 import version_of
from recurra.nn.pooling import valid_steps
from recurra.text.examples import ExampleBatch
from recurra.text.vectors import read_vectors
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

"""Word vectors made of spellings: a convolution over characters, or a recurrent network that reads them both ways.

Both stand in the place of :class:`recurra.nn.embedding.Embedding`: ``forward(tokens [...]) -> [..., features]``. Words
that share letters share what is learnt, a rare word is not a stranger, and the number of parameters does not grow with
the vocabulary. A word that is in no vocabulary has a vector too: ``spell(words)``.

A word is read as its Unicode code points between a begin-of-word and an end-of-word mark. Words that are no words,
``<unk>`` and ``<eos>``, are single symbols between those marks. A code point that no word of the vocabulary has is read
as the unknown character, whose vector starts at zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError

from .int8 import version_of
from .layers import LSTM
from .products import ROWS_MULTIPLE, linear_layer

__all__ = ["CharacterCNN", "CharacterLSTM", "Highway"]

SYMBOLS = ("<unk>", "<eos>")  # words that are not spelled
UNKNOWN, BEGIN, END = range(3)  # characters that are no code points; those follow
CODE_POINTS = 0x110000  # of Unicode; symbols are numbered on from there
NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}  # that never fall
WORDS_AT_ONCE = 1024  # that are read without gradients: bounds the memory that takes


class _Table(NamedTuple):
    """Vectors of the words met since the parameters last changed."""

    vectors: Tensor  # [words, features]; memory that was never written to is mostly not there
    known: Tensor  # which rows are vectors, bool [words]
    made_of: tuple[tuple[int, int], ...]  # address and version of each parameter then


class _Spelled(nn.Module, ABC):
    """What both kinds have in common: all but how a word's characters become a vector.

    With gradients, each different word of a call is read once. Without, vectors are kept, and a word is read when it is
    first met after a parameter has changed: then a step looks a row up, as an embedding does. A change through
    ``parameter.data`` goes unseen until the next call with gradients. The table is as large as an embedding, of which
    only the rows in use fill memory; it is not saved, nor are the spellings, since the vocabulary has them.

    Args:
        words: spelling of each word, by id.
        features: size of a word's vector.
        character_size: size of a character's vector.
        dropout: probability that a word is dropped in training, everywhere in the batch alike.
        longest: characters that are read of a word, marks included (50 as in Jozefowicz et al. 2016). Of a longer word
            the end is cut off; the end-of-word mark stays.
    """

    _characters: Tensor  # of all words, one after the other: uint8, int16 or int32
    _starts: Tensor  # where each word begins there, and where the last one ends: int64 [words + 1]

    def __init__(self, words: Sequence[str], features: int, *, character_size: int, dropout: float, longest: int):
        super().__init__()
        if longest < 3:
            raise UserError(f"longest: expected 3 or more, a character between two marks, got {longest}")
        self.features, self.dropout, self.longest = features, dropout, longest
        codes = _codes("".join(word[: longest - 2] for word in words if word not in SYMBOLS))
        seen = np.zeros(CODE_POINTS, np.bool_)
        seen[codes] = True
        self._alphabet = np.append(np.flatnonzero(seen), CODE_POINTS + np.arange(len(SYMBOLS)))  # rising
        characters, starts = self._spellings(words)
        self.register_buffer("_characters", torch.from_numpy(characters), persistent=False)
        self.register_buffer("_starts", torch.from_numpy(starts), persistent=False)
        self._table: _Table | None = None

        self.character_vectors = nn.Parameter(torch.randn(END + 1 + len(self._alphabet), character_size))
        with torch.no_grad():
            self.character_vectors[UNKNOWN] = 0  # nothing trains it

    def forward(self, tokens: Tensor) -> Tensor:
        """Vectors ``[..., features]`` of ``tokens [...]``.

        Raises:
            IndexError: a token that is no word.
        """
        dropping = self.training and self.dropout > 0
        if not torch.is_grad_enabled() and not dropping:
            return self._looked_up(tokens)
        self._table = None  # the parameters are about to change
        words, places = tokens.unique(return_inverse=True)
        vectors = self._read(self._characters, self._starts, words)
        if dropping:
            vectors = vectors * vectors.new_empty(len(words), 1).bernoulli_(1 - self.dropout) / (1 - self.dropout)
        return F.embedding(places, vectors)

    def spell(self, words: Sequence[str]) -> Tensor:
        """Vectors ``[len(words), features]`` of any words, in a vocabulary or not; no word is dropped."""
        characters, starts = (torch.from_numpy(part).to(self._starts.device) for part in self._spellings(words))
        return self._read(characters, starts, torch.arange(len(words), device=starts.device))

    @abstractmethod
    def compose(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """Vectors ``[words, features]`` of words by their characters.

        Args:
            characters: ids ``[words, longest here]``; what lies beyond a word's length is of no word.
            lengths: how many of them are the word's, falling, int64 ``[words]``, 1 or more.
        """

    def _read(self, characters: Tensor, starts: Tensor, words: Tensor) -> Tensor:
        """Vectors ``[n, features]`` of ``words [n]``, rising numbers of words in a table of spellings."""
        if not len(words):
            return self.character_vectors.new_zeros(0, self.features)
        if words[0] < 0:
            raise IndexError(f"tokens: expected ids from 0 to {len(starts) - 2}, got {int(words[0])}")
        lengths, order = (starts[words + 1] - starts[words]).sort(descending=True)
        steps = torch.arange(int(lengths[0]), device=words.device)
        places = (starts[words[order], None] + steps).clamp_(max=len(characters) - 1)
        return self.compose(characters[places].long(), lengths)[order.argsort()]

    def _looked_up(self, tokens: Tensor) -> Tensor:
        """Vectors ``[..., features]`` by the table, after reading those words that it does not have."""
        parameters = [parameter for module in self.modules() for parameter in module._parameters.values()]
        now = tuple((parameter.data_ptr(), version_of(parameter)) for parameter in parameters if parameter is not None)
        table, like = self._table, self.character_vectors
        if table is None or table.made_of != now:
            with torch.inference_mode(False):  # so that it can be written to in that mode and out of it
                vectors = torch.empty(len(self._starts) - 1, self.features, dtype=like.dtype, device=like.device)
                known = torch.zeros(len(vectors), dtype=torch.bool, device=like.device)
            table = self._table = _Table(vectors, known, now)
        known = table.known[tokens]
        if not known.all():
            missing = tokens[~known].unique()
            with torch.autocast(like.device.type, enabled=False):  # they may be kept for longer than it lasts
                for words in missing.split(WORDS_AT_ONCE):
                    table.vectors[words] = self._read(self._characters, self._starts, words)
            table.known[missing] = True
        return F.embedding(tokens, table.vectors)

    def _spellings(self, words: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The characters of all words, one after the other, and where each word begins and the last one ends."""
        symbols = [(place, SYMBOLS.index(word)) for place, word in enumerate(words) if word in SYMBOLS]
        letters = [word[: self.longest - 2] for word in words]
        for place, _ in symbols:
            letters[place] = " "  # as long as a symbol
        lengths = np.fromiter(map(len, letters), np.int64, len(letters))
        codes = _codes("".join(letters))
        first = np.cumsum(lengths) - lengths
        for place, symbol in symbols:
            codes[first[place]] = CODE_POINTS + symbol

        places = np.searchsorted(self._alphabet, codes)  # the last symbol is above all
        characters = np.where(self._alphabet[places] == codes, END + 1 + places, UNKNOWN)
        starts = np.concatenate([[0], np.cumsum(lengths + 2)])
        count = END + 1 + len(self._alphabet)
        kind = next(kind for kind in (np.uint8, np.int16, np.int32) if count - 1 <= np.iinfo(kind).max)
        spellings = np.empty(starts[-1], kind)
        inner = np.ones(starts[-1], np.bool_)
        for ends, mark in ((starts[:-1], BEGIN), (starts[1:] - 1, END)):
            spellings[ends], inner[ends] = mark, False
        spellings[inner] = characters
        return spellings, starts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._table = None
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # copies make their own


class CharacterCNN(_Spelled):
    r"""Word vectors by a convolution over characters (Kim et al. 2016, "Character-Aware Neural Language Models").

    With ``c`` the vectors of a word's characters side by side and ``*`` a convolution by filters of width ``k``:

    .. math:: y_k = \sigma(\max_t (W_k * c)_t + b_k), \quad
              x = W_p \, \mathrm{highway}(\dots \mathrm{highway}([y_1, y_2, \dots])) + b_p

    The nonlinearity never falls, so that the highest of its values is its value of the highest. Filters see whole
    windows of the word; of a filter wider than the word, marks included, only the first columns see something.

    Args:
        words: spelling of each word, by id.
        features: size of a word's vector.
        character_size: size of a character's vector.
        filters: width and number of each kind of filter; the paper's small model by default.
        highway_layers: how many there are.
        nonlinearity: sigma, ``'tanh'`` (Kim et al. 2016) or ``'relu'`` (Jozefowicz et al. 2016).
        dropout: probability that a word is dropped in training, everywhere in the batch alike.
        longest: characters that are read of a word, marks included; the end of a longer word is cut off.

    Raises:
        UserError: filters without width or number, an unknown nonlinearity, ``longest`` below 3.
    """

    def __init__(
        self,
        words: Sequence[str],
        features: int,
        *,
        character_size: int = 15,
        filters: Sequence[tuple[int, int]] = ((1, 25), (2, 50), (3, 75), (4, 100), (5, 125), (6, 150)),
        highway_layers: int = 1,
        nonlinearity: str = "tanh",
        dropout: float = 0.0,
        longest: int = 50,
    ) -> None:
        super().__init__(words, features, character_size=character_size, dropout=dropout, longest=longest)
        if not filters or min(map(min, filters)) < 1:
            raise UserError(f"filters: expected pairs of a width and a number, both 1 or more, got {list(filters)}")
        if nonlinearity not in NONLINEARITIES:
            raise UserError(f"nonlinearity: expected one of {', '.join(NONLINEARITIES)}, got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        self.filters = nn.ParameterList()  # of each kind [count, width * character_size]
        for width, count in filters:
            bound = (width * character_size) ** -0.5
            self.filters.append(nn.Parameter(torch.empty(count, width * character_size).uniform_(-bound, bound)))
        width = sum(count for _, count in filters)
        self.bias = nn.Parameter(torch.zeros(width))
        self.highway = nn.Sequential(*(Highway(width) for _ in range(highway_layers)))
        self.projection = nn.Linear(width, features)

    def compose(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """As in ``_Spelled``: the convolution is one matrix product for each kind of filter and length of word."""
        size = self.character_vectors.shape[1]
        found = []
        bounds = [0, *lengths.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()]
        for start, end in pairwise(bounds):
            alike = characters[start:end, : int(lengths[start])]  # words of one length: no padding
            vectors = F.embedding(alike, self.character_vectors).flatten(1)  # [words, length * size]
            highest = []
            for filters in self.filters:
                reach = min(filters.shape[1], vectors.shape[1])
                windows = vectors.unfold(1, reach, size)  # [words, windows, reach]
                products = F.linear(windows.reshape(-1, reach), filters[:, :reach])
                highest.append(products.view(len(vectors), -1, len(filters)).amax(1))
            found.append(torch.cat(highest, 1))
        padded = F.pad(torch.cat(found), (0, 0, 0, -len(characters) % ROWS_MULTIPLE))
        vectors = self.highway(NONLINEARITIES[self.nonlinearity](padded + self.bias))
        return linear_layer(vectors, self.projection)[: len(characters)]


class CharacterLSTM(_Spelled):
    r"""Word vectors by an LSTM that reads the characters both ways (Ling et al. 2015, "Finding Function in Form").

    With :math:`h^f` and :math:`h^b` the last states of both directions:

    .. math:: x = D^f h^f + D^b h^b + b

    Args:
        words: spelling of each word, by id.
        features: size of a word's vector.
        character_size: size of a character's vector.
        hidden_size: units of each direction.
        dropout: probability that a word is dropped in training, everywhere in the batch alike.
        longest: characters that are read of a word, marks included; the end of a longer word is cut off.

    Raises:
        UserError: ``longest`` below 3.
    """

    def __init__(
        self,
        words: Sequence[str],
        features: int,
        *,
        character_size: int = 50,
        hidden_size: int = 150,
        dropout: float = 0.0,
        longest: int = 50,
    ) -> None:
        super().__init__(words, features, character_size=character_size, dropout=dropout, longest=longest)
        self.lstm = LSTM(character_size, hidden_size, bidirectional=True, forget_bias=1.0)
        self.projection = nn.Linear(2 * hidden_size, features)

    def compose(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """As in ``_Spelled``."""
        vectors = F.embedding(characters.t(), self.character_vectors)  # [time, words, character_size]
        _, (hidden, _) = self.lstm(vectors, lengths=lengths)  # [2, words, hidden_size]
        projected: Tensor = self.projection(torch.cat((hidden[0], hidden[1]), 1))
        return projected


class Highway(nn.Module):
    r"""A layer that passes on part of what it reads (Srivastava et al. 2015, "Highway Networks").

    .. math:: y = t \odot \mathrm{relu}(W x + b) + (1 - t) \odot x, \quad t = \mathrm{sigmoid}(W_t x + b_t)

    Args:
        features: size of x and y.
        transform_bias: where ``b_t`` starts; below 0, so that at first most passes as it is (-2 in Kim et al. 2016).

    The rows of ``linear`` are those of ``W``, then those of ``W_t``.
    """

    def __init__(self, features: int, *, transform_bias: float = -2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 2 * features)
        with torch.no_grad():
            self.linear.bias[features:] = transform_bias

    def forward(self, input: Tensor) -> Tensor:
        """Of ``input [..., features]``, a tensor of the same shape."""
        rows = linear_layer(input.reshape(-1, input.shape[-1]), self.linear)
        proposed, transform = rows.view(*input.shape[:-1], -1).chunk(2, -1)
        return input + transform.sigmoid() * (proposed.relu() - input)


def _codes(text: str) -> NDArray[np.uint32]:
    """The code points of a text; a copy, to be written to."""
    return np.frombuffer(bytearray(text.encode("utf-32-le", "surrogatepass")), np.uint32)

"""What every language model does, whatever it is made of; evaluation and generation know only this.

Letters used for shapes: T is time steps, N rows of a batch, V tokens of the vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from recurra.text.batches import TokenStream
from recurra.text.vocabulary import Vocabulary

State: TypeAlias = Any
"""What a model remembers of the text that each row of a batch has read. Only the model itself looks inside."""


class LanguageModelProtocol(Protocol):
    """A distribution over the next token, given the tokens before it.

    Tokens are int64 tensors of ids from 0 to V - 1, on the model's device. Log-probabilities are natural logarithms
    and exactly normalised: those of one step sum to probability 1 over the vocabulary. The rows of a batch are
    independent texts: none changes what is said of another.

    A text begins with the line end. Before its first token the model reads ``LINE_END``, so that
    ``step(torch.full((N,), LINE_END), start(N))`` gives the distribution of the first token.

    A state goes in and comes out, and the one that went in is spent: a model may reuse its memory. To go on from one
    state twice, copy it with `select` before.
    """

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens."""

    def start(self, batch_size: int) -> State:
        """Return the state of `batch_size` rows that have read nothing yet."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token in every row.

        Args:
            tokens: The token that each row reads, [N].
            state: What the rows have read before.

        Returns:
            The log-probabilities of what follows, [N, V], and the new state.
        """

    def score(self, inputs: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Read T tokens in every row, and say how likely each given next token was: T steps at once.

        Args:
            inputs: The tokens that are read, [T, N].
            targets: What follows each of them, [T, N]: in running text ``inputs[t + 1]`` is ``targets[t]``.
            state: What the rows have read before.

        Returns:
            The log-probabilities of the targets, [T, N], and the state after the last input.
        """

    def select(self, state: State, rows: Tensor) -> State:
        """Return a state made of copies of some rows of `state`.

        Args:
            state: A state of N rows.
            rows: Row numbers, int64 [K], in any order, each any number of times: row k of the result goes on from row
                ``rows[k]``.
        """


class StoredModel(LanguageModelProtocol, Protocol):
    """A language model that can be saved: settings, and tensors by name.

    Models that are made by counting, not by gradient, have ``estimate`` besides; see :class:`CountedModel`.
    """

    @property
    def settings(self) -> Any:
        """The frozen dataclass it was made with; its field ``reset`` says where the state starts anew."""

    @property
    def parameters_count(self) -> int:
        """How many numbers were learnt or counted."""

    def tensors(self) -> dict[str, Tensor]:
        """What is saved beside the settings and the vocabulary."""

    @classmethod
    def from_tensors(cls, settings: Any, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> Self:
        """The model that :meth:`tensors` came from; they may be mapped from a file, and are not written to.

        Raises:
            UserError: they are not those that the settings ask for.
        """


class CountedModel(StoredModel, Protocol):
    """A language model that is made by counting what stands in a text."""

    @classmethod
    def estimate(
        cls, settings: Any, stream: TokenStream, vocabulary: Vocabulary, *, say: Callable[[str], None] = ...
    ) -> Self:
        """Make the model of a text.

        Args:
            settings: of the model.
            stream: the training text as ids.
            vocabulary: what the ids stand for.
            say: is called with a line of text at each stage.
        """


class LossSum(NamedTuple):
    """The loss of some tokens, summed, so that losses of chunks and of ranks add up and are divided once, at the end.

    Attributes:
        nats: The sum of -log p over the tokens, in nats; a scalar tensor, so that it can be differentiated.
        tokens: How many tokens it is the sum of.
    """

    nats: Tensor
    tokens: int

    def __add__(self, other: LossSum) -> LossSum:  # type: ignore[override]  # a sum, not a longer tuple
        return LossSum(self.nats + other.nats, self.tokens + other.tokens)

    @property
    def mean(self) -> Tensor:
        """Nats per token."""
        return self.nats / self.tokens


def device_of(model: object) -> torch.device:
    """Return where a model wants its tokens: where its first parameter or buffer is; the CPU if it has none."""
    tensors = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Switch dropout and the like off for the time of the block, in every part of a model that is a module."""
    modes = [(part, part.training) for part in model.modules()] if isinstance(model, nn.Module) else []
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

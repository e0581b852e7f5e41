"""What language models that are trained by gradient have in common: all but how they read.

A subclass says how it reads: :meth:`NeuralLM.initial_state` and :meth:`NeuralLM.vectors`, from tokens to the vectors
that the output layer sees. The training loss, the three ways of the protocol to ask for probabilities, resets and
saving follow; and so does the memory of the last words where hashed n-grams stand beside the output layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.models.protocol import LossSum, State
from recurra.models.tensors import take_over
from recurra.nn.classes import ClassSoftmax, assign_ngrams
from recurra.nn.hashed import HashedNgrams
from recurra.nn.sampled import NCE, BlackOut, SampledOutput, SampledSoftmax
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END, Vocabulary

__all__ = ["NeuralLM", "NeuralState", "OutputSettings", "Reading", "build_output", "map_state"]

SAMPLED: dict[str, Callable[..., SampledOutput]] = {"sampled": SampledSoftmax, "nce": NCE, "blackout": BlackOut}


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """The output layer; ``None`` is settled from the corpus before the model is built."""

    output: str | None = setting(
        None, "output layer", choices=("full", "adaptive", "classes", "sampled", "nce", "blackout")
    )
    cutoffs: tuple[int, ...] | None = setting(None, "first word of each cluster of the adaptive softmax", minimum=1)
    shrink: float = setting(2.0, "how many times narrower each cluster is than the one before", minimum=1)
    classes: int | None = setting(None, "classes of the class-factored softmax", minimum=1)
    samples: int | None = setting(None, "words that a sampled loss draws for a batch", minimum=1)
    proposal: str = setting("log-uniform", "what samples are drawn from", choices=("log-uniform", "unigram"))
    proposal_power: float = setting(1.0, "power that the unigram proposal is raised to", minimum=0, maximum=1)
    maxent_order: int = setting(
        0, "longest hashed n-gram that adds to the scores; 0 for none (needs --output classes)", minimum=0
    )
    maxent_bits: int = setting(24, "weights of hashed n-grams: 2 to the power of this", minimum=8, maximum=34)
    maxent_cutoffs: tuple[int, ...] = setting(
        (1, 2, 3),
        "times that 2-grams, 3-grams, ... must have been seen to have a weight; the last is for all longer",
        minimum=1,
    )
    maxent_dropout: float | None = setting(
        None, "chance that an n-gram is left out in training", minimum=0, maximum=0.99
    )
    maxent_rate: float = setting(0.15, "learning rate of the n-grams' weights", minimum=0)


@dataclass(frozen=True)
class Reading:
    """What the output layer is given.

    Attributes:
        hidden: a vector for each token read, [time, batch, features] or [tokens, features].
        histories: hashes of the last word read, of the last two, ..., [..., K], K being the order of the longest n-gram
            less one; ``None`` for an output layer without n-grams.
    """

    hidden: Tensor
    histories: Tensor | None = None

    def __getitem__(self, index: Any) -> Reading:
        """That of some of the tokens."""
        return Reading(self.hidden[index], None if self.histories is None else self.histories[index])


class NeuralState(NamedTuple):
    """What a model remembers: a nest of tuples of tensors whose next-to-last dimension is the batch.

    Attributes:
        own: what its way of reading does.
        words: the last words, for hashed n-grams, [batch, K]; nothing without n-grams.
    """

    own: State
    words: Any = ()


class NeuralLM(nn.Module, ABC):
    """A language model made of a way of reading and an output layer.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`; its states are :class:`NeuralState`.

    Attributes:
        settings: what it was made with.
        vocabulary_size: V.
        output: from vectors to a distribution; set by the subclass.
    """

    settings: Any
    vocabulary_size: int
    output: Any

    def __init__(self, settings: Any, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.settings = settings
        self.vocabulary_size = len(vocabulary)

    # ---- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """What rows that have read nothing remember: any nest of tuples of tensors ``[..., batch, features]``."""

    @abstractmethod
    def vectors(self, inputs: Tensor, state: State, *, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Read ``inputs [time, batch]``: the vectors ``[time, batch, features]`` that the output layer sees.

        Args:
            inputs: tokens.
            state: what was read before, as :meth:`initial_state` has it.
            lengths: valid steps of each column, falling; what is read beyond does not matter, nor does the state then.
        """

    def vectors_with_resets(self, inputs: Tensor, state: State, resets: Tensor) -> tuple[Tensor, State]:
        """The same, starting anew before the inputs where ``resets [time, batch]`` is true.

        Piece by piece: no state is reset within a piece, so that any kernel can run it. To be replaced where there is a
        quicker way.
        """
        starts = sorted({0, *resets.any(1).nonzero()[:, 0].tolist()})
        pieces = []
        for start, end in zip(starts, [*starts[1:], len(inputs)], strict=True):
            state = self._restarted(state, resets[start])
            piece, state = self.vectors(inputs[start:end], state)
            pieces.append(piece)
        return torch.cat(pieces), state

    # ---- what follows from it -------------------------------------------------------------------------------------

    @property
    def hashed(self) -> HashedNgrams | None:
        """The n-gram features, which are the output layer's; None without."""
        return self.output.hashed if isinstance(self.output, ClassSoftmax) else None

    def start(self, batch_size: int) -> NeuralState:
        """The state of rows that have read nothing."""
        words = () if self.hashed is None else self.hashed.start(batch_size)
        return NeuralState(self.initial_state(batch_size), words)

    def read(
        self, inputs: Tensor, state: NeuralState, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Reading, NeuralState]:
        """Read ``inputs [time, batch]``: what the output layer is given, and the new state.

        Args:
            inputs: tokens.
            state: what was read before.
            lengths: valid steps of each column, falling; what is read beyond does not matter, nor does the state then.
            resets: where the state starts anew before the input is read, ``[time, batch]``; not with ``lengths``.
        """
        if resets is None:
            hidden, own = self.vectors(inputs, state.own, lengths=lengths)
        else:
            assert lengths is None
            hidden, own = self.vectors_with_resets(inputs, state.own, resets)
        if self.hashed is None:
            return Reading(hidden), NeuralState(own)
        histories, words = self.hashed.histories(inputs, state.words, resets=resets)
        return Reading(hidden, histories), NeuralState(own, words)

    def forward(self, batch: Batch, state: NeuralState | None = None) -> tuple[LossSum, NeuralState]:
        """The training loss of a batch.

        Args:
            batch: ``inputs`` and ``targets [time, batch]``; with ``lengths [batch]`` where sequences end, or ``resets
                [time, batch]`` where the state starts anew.
            state: from the chunk before; ``None`` starts from the beginning.

        Returns:
            The summed loss in nats over the valid targets, with their number, and the state to go on from.
        """
        state = self.start(batch.inputs.shape[1]) if state is None else state
        targets = batch.targets
        reading, state = self.read(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
        if batch.lengths is not None:
            steps = torch.arange(len(targets), device=targets.device)[:, None]
            valid = steps < batch.lengths.to(targets.device)
            reading, targets = reading[valid], targets[valid]
        nats = self.output.loss(reading.hidden, targets, *_given(reading.histories))
        return LossSum(nats, targets.numel()), state

    def step(self, tokens: Tensor, state: NeuralState) -> tuple[Tensor, NeuralState]:
        """Read ``tokens [batch]``; log-probabilities ``[batch, vocabulary]`` of what follows.

        A model whose lines are independent (``reset`` is ``lines``) forgets what was before a line end when it reads
        one, as it did in training: so it writes line after line. :meth:`score` leaves resets to its caller.
        """
        resets = (tokens == LINE_END)[None] if self.settings.reset == "lines" else None
        reading, state = self.read(tokens[None], state, resets=resets)
        return self.reading_log_probs(reading[0]), state

    def score(self, inputs: Tensor, targets: Tensor, state: NeuralState) -> tuple[Tensor, NeuralState]:
        """Log-probabilities ``[time, batch]`` of ``targets``, each after the inputs up to its own step."""
        reading, state = self.read(inputs, state)
        return self.reading_log_probs(reading, targets), state

    def reading_log_probs(self, reading: Reading, targets: Tensor | None = None) -> Tensor:
        """Log-probabilities of all words ``[..., vocabulary]``, or ``[...]`` of the targets, after a reading."""
        log_probs: Tensor = self.output.log_probs(reading.hidden, targets, *_given(reading.histories))
        return log_probs

    def select(self, state: NeuralState, rows: Tensor) -> NeuralState:
        """The state of some rows of the batch, in the order of ``rows``."""
        selected: NeuralState = map_state(lambda value: value.index_select(-2, rows), state)
        return selected

    def detach(self, state: NeuralState) -> NeuralState:
        """The same state, cut off from the graph: gradients flow no further back (truncated BPTT)."""
        detached: NeuralState = map_state(Tensor.detach, state)
        return detached

    def assign_ngrams(self, tokens: NDArray[np.integer[Any]]) -> dict[str, Any] | None:
        """Give the n-grams that the training text has often enough a weight; to be done before training.

        Args:
            tokens: the text, int ``[tokens]``, line ends among them; may be mapped from a file.

        Returns:
            None without hashed n-grams. ``rows``: of the table. ``rows_used``: those that have an owner. ``pairs``: of
            a history of words and a row's worth of classes or words, how many there are, ``wanted``: how many of them
            were seen as often as the cutoff asks, and ``placed``: how many of those have a row; three lists that begin
            with 2-grams, and count of longer ones those alone whose shorter one has a row. ``crowded_out``: the part of
            the wanted, 0 to 1, that found their row taken; each bit more in the table about halves it.
        """
        if self.hashed is None:
            return None
        found = assign_ngrams(self.output, tokens)
        wanted, placed = sum(found.wanted), sum(found.placed)
        return {
            "rows": len(self.hashed.table),
            "rows_used": int((self.hashed.prints != 0).sum()),
            **found._asdict(),
            "crowded_out": 1 - placed / max(1, wanted),
        }

    @property
    def parameters_count(self) -> int:
        """How many numbers were learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, by name: the parameters, and whose the rows of n-grams are."""
        owners = {} if self.hashed is None else {"output.hashed.prints": self.hashed.prints}
        return {**dict(self.named_parameters()), **owners}

    @classmethod
    def from_tensors(cls, settings: Any, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> Self:
        """The model that :meth:`tensors` came from.

        Raises:
            UserError: they are not those that the settings ask for.
        """
        model = cls(settings, vocabulary)
        model.load_tensors(tensors)
        return model

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned."""
        take_over(self.tensors(), tensors)

    def _restarted(self, state: State, rows: Tensor) -> State:
        """A state of the way of reading, those rows, ``[batch]`` of truth values, as if they had read nothing."""
        fresh = self.initial_state(len(rows))
        return map_state(lambda new, old: torch.where(rows[:, None], new, old), fresh, state)


def build_output(
    settings: OutputSettings, features: int, counts: Sequence[int], *, weight: nn.Parameter | None = None
) -> Any:
    """The output layer that the settings describe, an :class:`recurra.nn.softmax.OutputLayer`.

    Args:
        settings: with nothing left to choose but ``cutoffs`` and ``classes``.
        features: size of the vectors that it sees.
        counts: counts of the words in training, by id.
        weight: a matrix ``[vocabulary, features]`` to share, where the layer has one of that shape.

    Raises:
        UserError: settings that do not fit together.
    """
    if settings.maxent_order and settings.output != "classes":
        raise UserError(
            f"hashed n-grams need the class-factored output layer, not {settings.output!r}: give --output classes"
        )
    for name, needed in (("cutoffs", ("adaptive",)), ("classes", ("classes",)), ("samples", tuple(SAMPLED))):
        if getattr(settings, name) is not None and settings.output not in needed:
            raise UserError(
                f"{name}: is for --output {' or '.join(needed)}, not {settings.output!r}; leave it out, or say"
                f" --{name} auto where a preset gives it"
            )
    match settings.output:
        case "full":
            return FullSoftmax(features, counts, weight=weight)
        case "adaptive":
            return AdaptiveSoftmax(features, counts, cutoffs=settings.cutoffs, shrink=settings.shrink)
        case "classes":
            hashed = None
            if settings.maxent_order:
                hashed = HashedNgrams(
                    settings.maxent_order,
                    settings.maxent_bits,
                    line_end=LINE_END,
                    cutoffs=settings.maxent_cutoffs,
                    dropout=settings.maxent_dropout or 0.0,
                    rate=settings.maxent_rate,
                )
            return ClassSoftmax(features, counts, classes=settings.classes, weight=weight, hashed=hashed)
        case "sampled" | "nce" | "blackout":
            if settings.samples is None:
                raise UserError("settings still to be chosen: samples")
            return SAMPLED[settings.output](
                features,
                counts,
                weight=weight,
                samples=settings.samples,
                proposal=settings.proposal,
                power=settings.proposal_power,
            )
    raise UserError("settings still to be chosen: output")


def map_state(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """Apply ``function`` to every tensor of a state, or to those in the same place of several states.

    Tuples and named tuples are kept.
    """
    if isinstance(state, Tensor):
        return function(state, *others)
    parts = [map_state(function, *parts) for parts in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def _given(histories: Tensor | None) -> tuple[Tensor, ...]:
    return () if histories is None else (histories,)

"""What language models that are trained by gradient have in common: all but how they read.

A subclass says how it reads: :meth:`NeuralLM.start` and :meth:`NeuralLM.read`, from tokens to the vectors that the
output layer sees. The training loss, the three ways of the protocol to ask for probabilities, resets and saving follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.models.protocol import LossSum, State
from recurra.nn.classes import ClassSoftmax
from recurra.nn.hashed import HashedNgrams
from recurra.nn.sampled import NCE, BlackOut, SampledSoftmax
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END, Vocabulary

__all__ = ["NeuralLM", "OutputSettings", "Reading", "build_output", "map_state"]

SAMPLED = {"sampled": SampledSoftmax, "nce": NCE, "blackout": BlackOut}


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
    maxent_dropout: float = setting(0.0, "chance that an n-gram is left out in training", minimum=0, maximum=0.99)
    maxent_rate: float = setting(0.15, "learning rate of the n-grams' weights", minimum=0)


@dataclass(frozen=True)
class Reading:
    """What the output layer is given.

    Attributes:
        hidden: a vector for each token read, [time, batch, features] or [tokens, features].
        histories: hashes of the words before, [..., order]; ``None`` for an output layer without n-grams.
    """

    hidden: Tensor
    histories: Tensor | None = None

    def __getitem__(self, index: Any) -> Reading:
        """That of some of the tokens."""
        return Reading(self.hidden[index], None if self.histories is None else self.histories[index])


class NeuralLM(nn.Module):
    """A language model made of a way of reading and an output layer.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`. A state is a nest of tuples of tensors whose
    next-to-last dimension is the batch.

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

    def start(self, batch_size: int) -> State:
        """The state of rows that have read nothing."""
        raise NotImplementedError

    def read(self, inputs: Tensor, state: State, *, lengths: Tensor | None = None) -> tuple[Reading, State]:
        """Read ``inputs [time, batch]``.

        Args:
            inputs: tokens.
            state: what was read before.
            lengths: valid steps of each column, falling; what is read beyond does not matter, nor does the state then.
        """
        raise NotImplementedError

    def read_with_resets(self, inputs: Tensor, state: State, resets: Tensor) -> tuple[Reading, State]:
        """Read ``inputs [time, batch]``, the state starting anew before those where ``resets [time, batch]`` is true.

        Piece by piece: no state is reset within a piece, so that any kernel can run it.
        """
        starts = sorted({0, *resets.any(1).nonzero()[:, 0].tolist()})
        pieces: list[Reading] = []
        for start, end in zip(starts, [*starts[1:], len(inputs)], strict=True):
            state = self._restarted(state, resets[start])
            piece, state = self.read(inputs[start:end], state)
            pieces.append(piece)
        histories = [piece.histories for piece in pieces if piece.histories is not None]
        hidden = torch.cat([piece.hidden for piece in pieces])
        return Reading(hidden, torch.cat(histories) if histories else None), state

    # ---- what follows from it -------------------------------------------------------------------------------------

    def forward(self, batch: Batch, state: State | None = None) -> tuple[LossSum, State]:
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
        if batch.resets is not None:
            reading, state = self.read_with_resets(batch.inputs, state, batch.resets)
        else:
            reading, state = self.read(batch.inputs, state, lengths=batch.lengths)
        if batch.lengths is not None:
            steps = torch.arange(len(targets), device=targets.device)[:, None]
            valid = steps < batch.lengths.to(targets.device)
            reading, targets = reading[valid], targets[valid]
        nats = self.output.loss(reading.hidden, targets, *_given(reading.histories))
        return LossSum(nats, targets.numel()), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read ``tokens [batch]``; log-probabilities ``[batch, vocabulary]`` of what follows.

        A model whose lines are independent (``reset`` is ``lines``) forgets what was before a line end when it reads
        one, as it did in training: so it writes line after line. :meth:`score` leaves resets to its caller.
        """
        if self.settings.reset == "lines":
            state = self._restarted(state, tokens == LINE_END)
        reading, state = self.read(tokens[None], state)
        return self.reading_log_probs(reading[0]), state

    def score(self, inputs: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities ``[time, batch]`` of ``targets``, each after the inputs up to its own step."""
        reading, state = self.read(inputs, state)
        return self.reading_log_probs(reading, targets), state

    def reading_log_probs(self, reading: Reading, targets: Tensor | None = None) -> Tensor:
        """Log-probabilities of all words ``[..., vocabulary]``, or ``[...]`` of the targets, after a reading."""
        log_probs: Tensor = self.output.log_probs(reading.hidden, targets, *_given(reading.histories))
        return log_probs

    def select(self, state: State, rows: Tensor) -> State:
        """The state of some rows of the batch, in the order of ``rows``."""
        return map_state(lambda value: value.index_select(-2, rows), state)

    def detach(self, state: State) -> State:
        """The same state, cut off from the graph: gradients flow no further back (truncated BPTT)."""
        return map_state(Tensor.detach, state)

    @property
    def parameters_count(self) -> int:
        """How many numbers were learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: the parameters by name."""
        return dict(self.named_parameters())

    @classmethod
    def from_tensors(cls, settings: Any, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> Self:
        """The model that :meth:`tensors` came from.

        Raises:
            UserError: they are not those that the settings ask for.
        """
        model = cls(settings, vocabulary)
        model.load_tensors(tensors)
        return model

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned."""
        own = dict(self.named_parameters())
        for name in sorted(own.keys() | tensors.keys()):
            expected = tuple(own[name].shape) if name in own else "none"
            found = tuple(tensors[name].shape) if name in tensors else "none"
            if expected != found:
                raise UserError(f"{name}: expected {expected} by the settings, found {found}")
        for name, parameter in own.items():
            parameter.copy_(tensors[name])

    def _restarted(self, state: State, rows: Tensor) -> State:
        """The state with those rows, ``[batch]`` of truth values, as if they had read nothing."""
        return map_state(lambda fresh, old: torch.where(rows[:, None], fresh, old), self.start(len(rows)), state)


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
    match settings.output:
        case "full":
            return FullSoftmax(features, counts, weight=weight)
        case "adaptive":
            return AdaptiveSoftmax(features, counts, cutoffs=settings.cutoffs, shrink=settings.shrink)
        case "classes":
            hashed = (
                HashedNgrams(
                    settings.maxent_order,
                    settings.maxent_bits,
                    dropout=settings.maxent_dropout,
                    rate=settings.maxent_rate,
                )
                if settings.maxent_order
                else None
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

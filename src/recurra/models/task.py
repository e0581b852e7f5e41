"""What models have in common that turn an example into something else: tags, a label, a translation, a transcript.

A kind of model is two classes: a :class:`Codec`, which is built from the training examples and turns examples into
arrays and outputs back into what a user reads, and a :class:`TaskModel`, the network between them. What is read from
files, measured and written for each kind is said in :mod:`recurra.tasks`.

Letters used for shapes: T is time steps, N examples of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from torch import Tensor, nn

from recurra.config import UserError
from recurra.models.protocol import LossSum
from recurra.models.tensors import take_over
from recurra.text.examples import Encoded, ExampleBatch

__all__ = ["Codec", "Look", "TaskModel"]

Example = TypeVar("Example")  # of recurra.text.readers


class Codec(ABC, Generic[Example]):
    """Vocabularies: between examples and arrays. Saved as JSON beside the weights."""

    @classmethod
    @abstractmethod
    def build(cls, examples: Sequence[Example], settings: Any) -> Self:
        """Make the vocabularies from training examples.

        Args:
            examples: all of them.
            settings: of the model.

        Raises:
            UserError: there is nothing to learn from them.
        """

    @abstractmethod
    def encode(self, example: Example, *, targets: bool = True) -> Encoded:
        """Turn an example into arrays; without ``targets`` what is to be predicted is left out, and need not be there.

        Every example of one call of :func:`recurra.text.examples.collate` must have arrays of the same names.

        Raises:
            UserError: an example that cannot be learnt from, in one line.
        """

    def summary(self) -> str | None:
        """What a user should know of what was built, in a line; None where there is nothing to be said."""
        return None

    def reload(self, settings: Any) -> None:
        """Read anew what is not saved with the codec, before a model is made of it that starts from the beginning.

        Args:
            settings: of the model.

        Raises:
            UserError: it is not there, or not what it was.
        """

    @abstractmethod
    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""

    @classmethod
    @abstractmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""


class Look(NamedTuple):
    """Where attention looked, for one example.

    Attributes:
        rows: what looked: tokens of a target, or hops.
        columns: what there was to see.
        weights: a row for each that looked, a share for each of the columns.
    """

    rows: list[str]
    columns: list[str]
    weights: list[list[float]]


class TaskModel(nn.Module, ABC):
    """A network from encoded examples to predictions.

    Constructed as ``Model(settings, codec)`` with nothing left to choose in the settings: :meth:`settle` has done so.

    Attributes:
        settings: what it is made of.
        codec: its vocabularies.
        codec_type: their class.
    """

    codec_type: ClassVar[type[Codec[Any]]]

    def __init__(self, settings: Any, codec: Any) -> None:
        super().__init__()
        self.settings, self.codec = settings, codec

    # ---- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, batch: ExampleBatch) -> Tensor:
        """Summed loss in nats over all that is to be predicted in a batch of one example or more."""

    @abstractmethod
    def predict(self, batch: ExampleBatch, *args: Any, **options: Any) -> list[Any]:
        """A prediction for each example of a batch; called in evaluation mode, without gradients.

        What a prediction is, the model's docstring says; it is made of plain Python values, ready for JSON.

        Args:
            batch: encoded without targets.
            args: there are none; with them a subclass may name its options.
            options: of decoding, such as ``beam``; one that the model does not have is a TypeError.
        """

    @classmethod
    def settle(cls, settings: Any, examples: Sequence[Any], codec: Any) -> Any:
        """Settings in which everything that was left to be chosen (None) is chosen from the data."""
        return settings

    def look(self, example: Any) -> Look:
        """Where attention looks; called in evaluation mode.

        Raises:
            UserError: the model has none.
        """
        raise UserError("this model has no attention to show; translators and readers have")

    # ---- what follows from it -------------------------------------------------------------------------------------

    def forward(self, batch: ExampleBatch, state: None = None) -> tuple[LossSum, None]:
        """The training loss of a batch, as the Trainer asks for it; there is no state from batch to batch."""
        if batch.size == 0:  # this process's share, where there are more processes than examples
            return LossSum(next(part for part in self.parameters() if part.requires_grad).sum() * 0, 0), None
        return LossSum(self.loss(batch), batch.tokens), None

    @property
    def parameters_count(self) -> int:
        """How many numbers were learnt."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved: the parameters by name."""
        return dict(self.named_parameters())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned.

        Raises:
            UserError: they are not those that the settings ask for.
        """
        take_over(dict(self.named_parameters()), tensors)

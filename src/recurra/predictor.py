"""What a user holds of a model that is no language model: it reads examples and says what it makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recurra import distributed
from recurra.checkpoint import SETTINGS, WEIGHTS, CheckpointError, read_settings, read_tensors, write_tensors
from recurra.config import from_mapping
from recurra.models.protocol import evaluating
from recurra.models.task import TaskModel
from recurra.tasks import TASKS, Task
from recurra.text.examples import ExampleBatches

__all__ = ["Predictor"]

BATCH_SIZE = 64
BATCH_TOKENS = 8192  # time steps of a batch that is only read
WINDOW = 4096  # examples that are sorted by length at a time where more come than are held


class Predictor:
    """A model with its vocabularies and settings.

    Attributes:
        model: the network.
        kind: a name of :data:`recurra.tasks.TASKS`.
        task: what it says.
        settings: all that ``settings.json`` holds.
    """

    def __init__(self, model: TaskModel, kind: str, settings: Mapping[str, Any]) -> None:
        self.model, self.kind, self.settings = model, kind, dict(settings)
        self.task: Task = TASKS[kind]

    @classmethod
    def load(cls, directory: str | Path, *, device: str | None = None) -> Predictor:
        """Read a model from its folder.

        Raises:
            UserError: there is none, it is of another kind, or a file of it is missing or damaged.
        """
        directory = Path(directory)
        content = read_settings(directory)
        kind = content["kind"]
        if kind not in TASKS:
            raise CheckpointError(f"{directory}: holds a model of kind {kind!r}, expected {', '.join(TASKS)}")
        model = build(kind, content, str(directory / SETTINGS))
        tensors, _ = read_tensors(directory / WEIGHTS)
        model.load_tensors(tensors)
        return cls(model.to(distributed.choose_device(device)).eval(), kind, content)

    def save_weights(self, directory: Path) -> None:
        """Write ``weights.safetensors``."""
        write_tensors(directory / WEIGHTS, self.model.tensors(), {})

    @property
    def data_settings(self) -> Any:
        """How the data was read that it was trained on."""
        given = {name: value for name, value in self.settings["data"].items() if name != "sources"}
        return from_mapping(self.task.data, given, "data")

    def predict(self, examples: Iterable[Any], **options: Any) -> list[Any]:
        """A prediction for each example, in their order.

        Args:
            examples: of the kind of :mod:`recurra.text.readers` that the task reads, or what a user would write in
                their place: a sentence, a list of words, a pair of question and context.
            options: of decoding, such as ``beam``; see the model's ``predict``.
        """
        return [prediction for _, prediction in self.stream(examples, **options)]

    def stream(self, examples: Iterable[Any], *, window: int = WINDOW, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Examples with their predictions, in the order they came, in memory that does not grow with their number."""
        rest = iter(examples)
        while some := [self.task.example(each) for each in itertools.islice(rest, window)]:
            yield from zip(some, self._predicted(some, options), strict=True)

    def evaluate(self, examples: Sequence[Any] | str | Path, **options: Any) -> dict[str, Any]:
        """The scores of the task's field: how near predictions come to what the examples say.

        Args:
            examples: with what is to be predicted; or where they are read from.
            options: of decoding.
        """
        if isinstance(examples, str | Path):
            examples = list(self.task.read([str(examples)], self.data_settings))
        return self.task.score(examples, self.predict(examples, **options))

    def _predicted(self, examples: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
        device = next(self.model.parameters()).device
        encoded = [self.model.codec.encode(example, targets=False) for example in examples]
        batches = ExampleBatches(encoded, batch_size=BATCH_SIZE, batch_tokens=BATCH_TOKENS, shuffled=False)
        found: list[Any] = [None] * len(examples)
        with torch.no_grad(), evaluating(self.model):
            for places, batch in zip(batches.order, batches, strict=True):
                for place, prediction in zip(places, self.model.predict(batch.to(device), **options), strict=True):
                    found[place] = prediction
        return found


def build(kind: str, content: Mapping[str, Any], where: str) -> TaskModel:
    """The model, with weights that are still random, that the content of ``settings.json`` describes."""
    task = TASKS[kind]
    try:
        codec = task.model.codec_type.from_mapping(content["codec"])
        settings = from_mapping(task.settings, content["model"], where)
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{where}: damaged ({error}); restore it or train again") from error
    return task.model(settings, codec)

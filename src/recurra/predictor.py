"""What a user holds of a model that is no language model: it reads examples and says what it makes of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recurra import distributed
from recurra.checkpoint import SETTINGS, WEIGHTS, CheckpointError, read_settings, read_tensors, write_tensors
from recurra.config import UserError, from_mapping
from recurra.models.protocol import evaluating
from recurra.models.task import Look, TaskModel
from recurra.nn import Recurrent
from recurra.tasks import TASKS, Say, Task
from recurra.text.examples import Encoded, ExampleBatches

__all__ = ["Predictor"]

HEARING = ("resample", "mix_down")  # how sounds of another kind are read
BATCH_SIZE = 64
BATCH_TOKENS = 8192  # time steps of a batch that is only read
WINDOW = 4096  # examples that are sorted by length at a time where more come than are held, at most
WINDOW_TOKENS = 1 << 18  # time steps of them, at most but for the last


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

    def read(
        self, sources: Sequence[str], *, labelled: bool = False, say: Say = lambda _: None, **given: Any
    ) -> Iterator[Any]:
        """Examples from files, one by one, read like those that the model was trained on.

        Where they need not be labelled, the training data's format says nothing of standard input, nor that two files
        are parallel; and lines that are no table are read as they are, whatever its columns were.

        Args:
            sources: files, folders, globs or ``-``.
            labelled: whether what is to be predicted must be there.
            say: is told at the end what was passed over.
            given: what is otherwise than in training: fields of the task's data settings, such as ``text_column``; of
                recordings also ``resample`` and ``mix_down``, from now on.

        Raises:
            UserError: a setting that there is not; while reading: what is wrong with which file, in which line.
        """
        codec: Any = self.model.codec
        heard = {name: given.pop(name) for name in HEARING if name in given and self.hears}
        if heard:
            codec.features = dataclasses.replace(codec.features, **heard)
        saved = {name: value for name, value in self.settings["data"].items() if name != "sources"}
        if not labelled and ("-" in sources or saved.get("format") == "parallel"):
            saved["format"] = None
        saved = {name: value for name, value in saved.items() if value is not None}
        settings = from_mapping(self.task.data, {**saved, **given}, "data")
        return self.task.read(sources, settings, labelled=labelled, say=say)

    @property
    def recurrent(self) -> Recurrent | None:
        """The stack of recurrent layers that reads its examples; None where it has none."""
        encoder: Any = getattr(self.model, "encoder", None)
        return None if encoder is None else encoder.recurrent

    @property
    def hears(self) -> bool:
        """Whether it reads sounds, and so can convert those that are not like the training data's."""
        return hasattr(self.model.codec, "features")

    def predict(self, examples: Iterable[Any], **options: Any) -> list[Any]:
        """A prediction for each example, in their order.

        Args:
            examples: of the kind of :mod:`recurra.text.readers` that the task reads, or what a user would write in
                their place: a sentence, a list of words, a pair of question and context.
            options: of decoding, such as ``beam``; see the model's ``predict``.

        Raises:
            UserError: a single text in place of several examples, what is no example, or an unknown option.
        """
        return [prediction for _, prediction in self.stream(examples, **options)]

    def stream(self, examples: Iterable[Any], **options: Any) -> Iterator[tuple[Any, Any]]:
        """Examples with their predictions, in the order they came, in memory that does not grow with their number."""
        if isinstance(examples, str | bytes | Path):
            raise UserError(f"expected examples, got a single text: put it in a list, [{str(examples)[:20]!r}]")
        self._check_options(options)
        return self._streamed(examples, options)

    def look(self, example: Any) -> Look:
        """Where attention looks for one example: for the target that a translator is given, or else for its own.

        Raises:
            UserError: no such example, or the model has no attention.
        """
        with evaluating(self.model):
            return self.model.look(self.task.example(example))

    def evaluate(self, examples: Iterable[Any] | str | Path, **options: Any) -> dict[str, Any]:
        """The scores of the task's field: how near predictions come to what the examples say.

        What examples share is predicted once: of a text with several translations, one is made.

        Args:
            examples: with what is to be predicted; or where they are read from.
            options: of decoding.

        Raises:
            UserError: an example does not say what is to be predicted, or what is needed to score it is not installed.
        """
        if isinstance(examples, str | Path):
            examples = self.read([str(examples)], labelled=True)
        known = [self.task.example(each) for each in examples]
        for number, example in enumerate(known, 1):
            if not self.task.known(example):
                raise UserError(f"example {number}: says not what is to be predicted, so there is nothing to compare")
        self.task.check(known)
        different = {self.task.reads(example): example for example in known}
        found = dict(zip(different, self.predict(different.values(), **options), strict=True))
        return self.task.score(known, [found[self.task.reads(example)] for example in known])

    def predict_encoded(self, encoded: Sequence[Encoded], **options: Any) -> list[Any]:
        """A prediction for each example that the codec has encoded without targets."""
        self._check_options(options)
        device = next(self.model.parameters()).device
        batches = ExampleBatches(encoded, batch_size=BATCH_SIZE, batch_tokens=BATCH_TOKENS, shuffled=False)
        found: list[Any] = [None] * len(encoded)
        with torch.no_grad(), evaluating(self.model):
            for places, batch in zip(batches.order, batches, strict=True):
                for place, prediction in zip(places, self.model.predict(batch.to(device), **options), strict=True):
                    found[place] = prediction
        return found

    def _streamed(self, examples: Iterable[Any], options: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
        rest = iter(examples)
        while True:
            some, encoded, steps = [], [], 0
            for given in rest:
                some.append(self.task.example(given))
                encoded.append(self.model.codec.encode(some[-1], targets=False))
                steps += encoded[-1].length
                if len(some) == WINDOW or steps >= WINDOW_TOKENS:
                    break
            if not some:
                return
            yield from zip(some, self.predict_encoded(encoded, **options), strict=True)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        parameters = inspect.signature(self.model.predict).parameters.values()
        known = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
        for name in options:
            if name not in known:
                raise UserError(f"unknown option {name!r}; a {self.task.title} has {', '.join(known) or 'none'}")


def build(kind: str, content: Mapping[str, Any], where: str, *, fresh: bool = False) -> TaskModel:
    """The model, with weights that are still random, that the content of ``settings.json`` describes.

    Args:
        kind: a name of :data:`recurra.tasks.TASKS`.
        content: of the file.
        where: it lies, for messages.
        fresh: whether it is to be trained from the beginning, which may take what is not saved with it.
    """
    task = TASKS[kind]
    try:
        codec = task.model.codec_type.from_mapping(content["codec"])
        settings = from_mapping(task.settings, content["model"], where)
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{where}: damaged ({error}); restore it or train again") from error
    if fresh:
        codec.reload(settings)
    return task.model(settings, codec)

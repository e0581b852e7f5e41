"""From examples to a trained model directory: the recipe that all kinds of :mod:`recurra.tasks` share."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recurra import distributed
from recurra.checkpoint import clear_directory, prepare_directory, read_settings, write_json, write_settings
from recurra.config import UserError, from_mapping, resolve, to_mapping
from recurra.predictor import Predictor, build
from recurra.tasks import TASKS
from recurra.text.examples import Encoded, ExampleBatches
from recurra.training import ExampleTrainingSettings, Trainer, Watcher, check_support

__all__ = ["TaskOutcome", "sections", "train_task"]

DEFAULT_MINUTES = 10.0
LIMITS = frozenset(
    {"epochs", "max_steps", "max_minutes", "early_stopping", "save_every", "log_every", "device", "threads"}
)
VALID_SCORED = 2000  # examples that a validation in training decodes, at most: an estimate


def sections(kind: str) -> dict[str, type[Any]]:
    """The settings classes of a kind of model, by the section of a settings file that holds them."""
    task = TASKS[kind]
    return {"data": task.data, "model": task.settings, "training": ExampleTrainingSettings}


@dataclass(frozen=True)
class TaskOutcome:
    """What training led to.

    Attributes:
        predictor: the model, with the best weights found.
        scores: of the splits ``valid`` and ``test``; empty when training was stopped by a signal.
        stopped: the signal, if one came.
    """

    predictor: Predictor
    scores: dict[str, dict[str, Any]]
    stopped: signal.Signals | None = None


def train_task(
    kind: str,
    data: str | Path | Sequence[str | Path] = (),
    directory: str | Path = "",
    *,
    config: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    watch: Watcher | None = None,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> TaskOutcome:
    """Train a tagger, classifier, translator, reader or transcriber and leave it in a folder.

    Args:
        kind: a name of :data:`recurra.tasks.TASKS`.
        data: files or folders of examples; needed but for resuming.
        directory: the model's folder.
        config: a settings file; keywords win over it.
        overwrite: replace a model that is there.
        resume: go on with the run that was stopped there; the data must be as it was.
        watch: is called with the progress of training.
        say: is called with a line of text at each stage.
        settings: any field of the kind's :func:`sections`.

    Raises:
        UserError: whatever is wrong with what was given, in one line.
        recurra.training.Diverged: the loss was no longer finite.
    """
    if kind not in TASKS:
        raise UserError(f"unknown kind of model {kind!r}; there are {', '.join(TASKS)}")
    if not str(directory):
        raise UserError("no folder given for the model")
    directory = Path(directory)
    sources = [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
    chosen = resolve(sections(kind), file=config, flags=settings)
    wanted = chosen["training"].device
    device = distributed.choose_device(None if wanted == "auto" else wanted)
    with distributed.process_group(device):
        problem: Exception | None = None
        if distributed.is_writer():
            try:
                prepare_directory(directory, overwrite=overwrite, resume=resume)
                if resume:
                    _take_over_limits(kind, directory, sources, settings, chosen)
                else:
                    _prepare(kind, sources, directory, chosen, device, say)
            except Exception as error:
                problem = error
        if not distributed.all_succeeded(problem is None):
            raise problem or SystemExit(2)  # the writing process says why
        return _train(kind, directory, device, resume, watch, say)


def _read(kind: str, sources: Sequence[str], settings: Any, say: Callable[[str], None]) -> dict[str, list[Any]]:
    """The examples of each split; those of ``train`` at least."""
    task = TASKS[kind]
    if not sources:
        raise UserError("no data given: name the files or folders that hold the examples")
    if "-" in sources:
        raise UserError("standard input can be read once, and training reads its data again to resume: give a file")
    say(f"reading {', '.join(sources)}")
    splits = task.splits(sources, settings, say)
    if not splits["train"]:
        raise UserError(f"{', '.join(sources)}: there is not an example to train on")
    return splits


def _prepare(
    kind: str,
    sources: Sequence[str],
    directory: Path,
    chosen: Mapping[str, Any],
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Settings settled and written, vocabularies with them; an older model there goes only when all this has worked."""
    task, training = TASKS[kind], _settled(kind, chosen["training"])
    check_support(training, device)
    splits = _read(kind, sources, chosen["data"], say)
    train = splits["train"]
    codec = task.model.codec_type.build(train, chosen["model"])
    model = task.model.settle(chosen["model"], train, codec)
    encoded = _encoded(codec, train)
    with torch.device("meta"):  # without storage: sizes that do not fit are refused here
        count = task.model(model, codec).parameters_count
    found = ", ".join(f"{len(examples):,} for {split}" for split, examples in splits.items())
    say(f"examples: {found}; {task.title} of {count:,} parameters")
    clear_directory(directory)
    (directory / "training").mkdir()
    content = {
        "data": {"sources": [str(Path(source).resolve()) for source in sources], **to_mapping(chosen["data"])},
        "training": to_mapping(training),
        "model": to_mapping(model),
        "codec": codec.to_mapping(),
        "data_digest": _digest(encoded),
    }
    write_settings(directory, kind, content)


def _settled(kind: str, training: ExampleTrainingSettings) -> ExampleTrainingSettings:
    """Training settings with an end."""
    usual = TASKS[kind].training
    chosen = {name: value for name, value in usual.items() if getattr(training, name) is None}
    if not (training.epochs or training.max_steps or training.max_minutes is not None or training.early_stopping):
        chosen["max_minutes"] = DEFAULT_MINUTES
    return dataclasses.replace(training, **chosen)


def _take_over_limits(
    kind: str, directory: Path, sources: Sequence[str], given: Mapping[str, Any], chosen: Mapping[str, Any]
) -> None:
    """Take over the limits given for a resumed run; anything else must be as it was."""
    content = read_settings(directory, kind)
    if not (directory / "training").is_dir():
        raise UserError(f"{directory}: the model was not trained there; it cannot go on")
    before = content["data"]["sources"]
    if sources and [str(Path(source).resolve()) for source in sources] != before:
        raise UserError(f"a run that is resumed reads what it read before: {', '.join(before)}; name nothing else")
    for section, settings in chosen.items():
        values = to_mapping(settings)
        for name in (name for name in given if name in values):
            if section == "training" and name in LIMITS:
                content[section][name] = values[name]
            elif values[name] is not None and content[section].get(name) != values[name]:
                raise UserError(
                    f"{name} cannot change in a run that is resumed: it was {content[section].get(name)}, now"
                    f" {values[name]}; leave it out"
                )
    write_json(directory / "settings.json", content)


def _train(
    kind: str,
    directory: Path,
    device: torch.device,
    resume: bool,
    watch: Watcher | None,
    say: Callable[[str], None],
) -> TaskOutcome:
    content, task = read_settings(directory, kind), TASKS[kind]
    settings = from_mapping(ExampleTrainingSettings, content["training"], str(directory))
    data = dict(content["data"])
    splits = _read(kind, data.pop("sources"), from_mapping(task.data, data, str(directory)), lambda _: None)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = build(kind, content, str(directory)).to(device)
    train = _encoded(model.codec, splits["train"])
    if _digest(train) != content["data_digest"]:
        raise UserError(f"{directory}: the data is not what it was when training began; train anew with --overwrite")
    valid_examples = splits.get("valid", [])[:VALID_SCORED]

    def batches(examples: Sequence[Encoded], epoch: int = 0, *, shuffled: bool = True) -> ExampleBatches:
        assert settings.batch_size is not None
        return ExampleBatches(
            examples,
            batch_size=settings.batch_size,
            batch_tokens=settings.batch_tokens,
            shuffled=shuffled,
            seed=settings.seed,
            epoch=epoch,
            rank=distributed.rank(),
            ranks=distributed.world_size(),
        )

    predictor = Predictor(model, kind, content)

    def score() -> float:
        return task.chosen_by(predictor.evaluate(valid_examples, **task.quick))

    trainer = Trainer(
        model,
        settings,
        lambda epoch: batches(train, epoch),
        valid=batches(_encoded(model.codec, valid_examples), shuffled=False),
        score=score if valid_examples and task.metric else None,
        carry_state=False,
        directory=directory / "training",
        keep=lambda: predictor.save_weights(directory),
        watch=watch,
    )
    if resume:
        found = trainer.resume()
        say(
            f"resuming at step {trainer.run_state.step:,}"
            if found
            else "nothing was saved yet: starting from the beginning"
        )
    stopped = trainer.run()
    about = {
        "steps": trainer.run_state.step,
        "training_seconds": trainer.run_state.seconds,
        "training_targets": trainer.run_state.tokens,
    }
    distributed.barrier()
    del trainer, model, predictor
    predictor = Predictor.load(directory, device=str(device))
    scores: dict[str, dict[str, Any]] = {}
    if not stopped and distributed.is_writer():
        for split in ("valid", "test"):
            if splits.get(split):
                say(f"evaluating on {split}: {len(splits[split]):,} examples")
                begun = time.perf_counter()
                scores[split] = predictor.evaluate(splits[split])
                scores[split]["seconds"] = time.perf_counter() - begun
        write_json(
            directory / "results.json", {**about, "parameters": predictor.model.parameters_count, **_plain(scores)}
        )
    return TaskOutcome(predictor, scores, stopped)


def _encoded(codec: Any, examples: Sequence[Any]) -> list[Encoded]:
    return [codec.encode(example) for example in examples]


def _digest(encoded: Sequence[Encoded]) -> str:
    """SHA-256 of examples as arrays: the same data, read in the same way."""
    digest = hashlib.sha256()
    for example in encoded:
        for name in sorted(example.arrays):
            digest.update(example.arrays[name].tobytes())
    return digest.hexdigest()


def _plain(scores: Any) -> Any:
    """As JSON takes it: no number that is none."""
    if isinstance(scores, dict):
        return {name: _plain(value) for name, value in scores.items()}
    return None if isinstance(scores, float) and not math.isfinite(scores) else scores

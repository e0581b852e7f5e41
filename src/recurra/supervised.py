"""From examples to a trained model directory: the recipe that all kinds of :mod:`recurra.tasks` share."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recurra import distributed
from recurra.checkpoint import SETTINGS, clear_directory, prepare_directory, read_settings, write_json, write_settings
from recurra.config import UserError, from_mapping, read_file, resolve, to_mapping
from recurra.predictor import Predictor, build
from recurra.tasks import TASKS, several
from recurra.text.examples import Encoded, ExampleBatches
from recurra.training import LIMITS, STATE, Diverged, ExampleTrainingSettings, Trainer, Watcher, check_support

__all__ = ["TaskOutcome", "sections", "train_task"]

DEFAULT_MINUTES = 10.0
ENDS = ("epochs", "max_steps", "max_minutes", "early_stopping")
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
        with _together():
            if distributed.is_writer():
                prepare_directory(directory, overwrite=overwrite, resume=resume)
                if resume:
                    given = {name for section in (read_file(config) if config else {}).values() for name in section}
                    _take_over_limits(kind, directory, sources, given | settings.keys(), chosen)
                else:
                    try:
                        _prepare(kind, sources, directory, chosen, device, say)
                    except BaseException:
                        with suppress(OSError):  # no folder is left where there was none
                            directory.rmdir()
                        raise
        with _together():
            trainer, splits = _assembled(kind, directory, device, watch, say)
            if resume:
                found = trainer.resume()
                step = f"resuming at step {trainer.run_state.step:,}"
                say(step if found else "nothing was saved yet: starting from the beginning")
        try:
            stopped = trainer.run()
        except Diverged:
            if distributed.is_writer():
                raise
            raise SystemExit(1) from None  # the writing process says why
    about = {
        "steps": trainer.run_state.step,
        "training_seconds": trainer.run_state.seconds,
        "training_targets": trainer.run_state.tokens,
    }
    del trainer
    predictor = Predictor.load(directory, device=str(device))
    if predictor.settings["summary"]:
        about["summary"] = predictor.settings["summary"]
    if stopped or not distributed.is_writer():  # the others need not wait: they have left the group
        return TaskOutcome(predictor, {}, stopped)
    return TaskOutcome(predictor, _scores(predictor, splits, directory, about, say))


@contextmanager
def _together() -> Iterator[None]:
    """What fails in a process ends all of them, and one says why."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    distributed.raise_together(problem)


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
    task = TASKS[kind]
    check_support(chosen["training"], device)
    splits = _read(kind, sources, chosen["data"], say)
    train = splits["train"]
    if held := [*splits["valid"], *splits["test"]]:
        task.check(held)
    codec = task.model.codec_type.build(train, chosen["model"])
    model = task.model.settle(chosen["model"], train, codec)
    encoded = {split: _encoded(codec, splits[split]) for split in ("train", "valid")}
    summary = codec.summary()
    encoded["test"] = _encoded(codec, splits["test"])
    left = {split: sum(example.targets > 0 for example in examples) for split, examples in encoded.items()}
    if not left["train"]:
        raise UserError(f"{', '.join(sources)}: there is nothing to be predicted in any example to train on")
    training, defaulted = _settled(kind, chosen["training"], validated=left["valid"] > 0)
    with torch.device("meta"):  # without storage: sizes that do not fit are refused here
        count = task.model(model, codec).parameters_count
    found = ", ".join(f"{len(examples):,} for {split}" for split, examples in splits.items())
    say(f"examples: {found}; {task.title} of {count:,} parameters")
    for split in ("train", "valid"):
        number = left[split]
        if passed := len(splits[split]) - number:
            say(f"{passed:,} of {split} passed over in training, in which there is nothing to be predicted")
    if summary:
        say(summary)
    content = {
        "data": {"sources": list(map(os.path.abspath, sources)), **to_mapping(_absolute(chosen["data"]))},
        "training": to_mapping(training),
        "defaulted": defaulted,
        "model": to_mapping(model),
        "codec": codec.to_mapping(),
        "examples": left,
        "summary": summary,
        "data_digest": _digest(encoded),
    }
    clear_directory(directory)
    (directory / "training").mkdir()
    write_settings(directory, kind, content)


def _settled(
    kind: str, training: ExampleTrainingSettings, *, validated: bool
) -> tuple[ExampleTrainingSettings, list[str]]:
    """Training settings with an end, and the names of those that make an end that nobody asked for."""
    usual = dict(TASKS[kind].training)
    if training.optimizer not in ("adam", "adamw"):
        del usual["learning_rate"]  # which is theirs: each of the others has its own
    chosen = {name: value for name, value in usual.items() if getattr(training, name) is None}
    defaulted = []
    if not (training.bounded or training.early_stopping):
        chosen["max_minutes"] = DEFAULT_MINUTES
        defaulted = ["max_minutes"]
    training = dataclasses.replace(training, **chosen)
    training.check_end(validated=validated)
    return training, defaulted


def _absolute(data: Any) -> Any:
    """How data is read, from wherever the program is run."""
    paths = {part: getattr(data, part) for part in ("valid", "test") if getattr(data, part) is not None}
    return dataclasses.replace(
        data, **{part: ",".join(map(os.path.abspath, several(text))) for part, text in paths.items()}
    )


def _take_over_limits(
    kind: str, directory: Path, sources: Sequence[str], given: Iterable[str], chosen: Mapping[str, Any]
) -> None:
    """Take over the limits given for a resumed run; anything else must be as it was."""
    content = read_settings(directory, kind)
    if not (directory / "training").is_dir():
        raise UserError(f"{directory}: the model was not trained there; it cannot go on")
    before = content["data"]["sources"]
    if sources and list(map(os.path.abspath, sources)) != before:
        raise UserError(f"a run that is resumed reads what it read before: {', '.join(before)}; name nothing else")
    training = content["training"]
    if any(name in ENDS and getattr(chosen["training"], name) for name in given):
        training |= dict.fromkeys(content["defaulted"])
        content["defaulted"] = []
    for section, settings in chosen.items():
        values = to_mapping(_absolute(settings) if section == "data" else settings)
        for name in (name for name in given if name in values):
            if section == "training" and name in LIMITS:
                training[name] = values[name]
            elif values[name] is not None and content[section].get(name) != values[name]:
                raise UserError(
                    f"{name} cannot change in a run that is resumed: it was {content[section].get(name)}, now"
                    f" {values[name]}; leave it out"
                )
    settled = from_mapping(ExampleTrainingSettings, training, str(directory / SETTINGS))
    settled.check_end(validated=content["examples"]["valid"] > 0)
    write_json(directory / SETTINGS, content)


def _assembled(
    kind: str, directory: Path, device: torch.device, watch: Watcher | None, say: Callable[[str], None]
) -> tuple[Trainer, dict[str, list[Any]]]:
    """The trainer of what stands prepared in a folder, and the examples of each split."""
    content, task = read_settings(directory, kind), TASKS[kind]
    settings = from_mapping(ExampleTrainingSettings, content["training"], str(directory / SETTINGS))
    data = dict(content["data"])
    splits = _read(kind, data.pop("sources"), from_mapping(task.data, data, str(directory / SETTINGS)), lambda _: None)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    fresh = not (directory / "training" / STATE).exists()
    model = build(kind, content, str(directory / SETTINGS), fresh=fresh).to(device)
    encoded = {split: _encoded(model.codec, examples) for split, examples in splits.items()}
    if _digest(encoded) != content["data_digest"]:
        raise UserError(f"{directory}: the data is not what it was when training began; train anew with --overwrite")
    train = [example for example in encoded["train"] if example.targets]
    places = np.flatnonzero([example.targets for example in encoded["valid"]])
    places = np.sort(np.random.default_rng(0).permutation(places)[:VALID_SCORED])  # files may be sorted
    examples = [splits["valid"][place] for place in places]
    inputs = [model.codec.encode(example, targets=False) for example in examples] if task.metric else []

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

    def score() -> tuple[str, float]:
        return task.chosen_by(task.score(examples, predictor.predict_encoded(inputs, **task.quick)))

    trainer = Trainer(
        model,
        settings,
        lambda epoch: batches(train, epoch),
        valid=batches([encoded["valid"][place] for place in places], shuffled=False),
        score=score if inputs else None,
        carry_state=False,
        directory=directory / "training",
        keep=lambda: predictor.save_weights(directory),
        watch=watch,
    )
    return trainer, splits


def _scores(
    predictor: Predictor,
    splits: Mapping[str, Sequence[Any]],
    directory: Path,
    about: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The scores of what was set aside; written down together with what is known of the run."""
    scores: dict[str, dict[str, Any]] = {}
    for split in ("valid", "test"):
        if splits[split]:
            say(f"evaluating on {split}: {len(splits[split]):,} examples")
            begun = time.perf_counter()
            scores[split] = predictor.evaluate(splits[split])
            scores[split]["seconds"] = time.perf_counter() - begun
    write_json(directory / "results.json", {**about, "parameters": predictor.model.parameters_count, **_plain(scores)})
    return scores


def _encoded(codec: Any, examples: Sequence[Any]) -> list[Encoded]:
    return [codec.encode(example) for example in examples]


def _digest(encoded: Mapping[str, Sequence[Encoded]]) -> str:
    """SHA-256 of the examples of each split as arrays: the same data, read in the same way."""
    digest = hashlib.sha256()
    for split, examples in encoded.items():
        digest.update(f"{split} {len(examples)}\n".encode())
        for example in examples:
            for name, array in sorted(example.arrays.items()):
                digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()


def _plain(scores: Any) -> Any:
    """As JSON takes it: no number that is none."""
    if isinstance(scores, dict):
        return {name: _plain(value) for name, value in scores.items()}
    return None if isinstance(scores, float) and not math.isfinite(scores) else scores

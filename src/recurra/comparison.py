"""Every system of the table of perplexities on one corpus: one vocabulary, an equal time for each, one protocol."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from recurra.checkpoint import SETTINGS, WEIGHTS, write_json
from recurra.config import UserError
from recurra.evaluation import Evaluation
from recurra.files import written_whole
from recurra.language_model import load
from recurra.mixing import mix
from recurra.models.kinds import KINDS
from recurra.plotting import bars
from recurra.presets import PRESETS
from recurra.recipes import train_lm
from recurra.text.batches import TokenStream
from recurra.training import Diverged, TrainingSettings, Watcher

__all__ = ["SYSTEMS", "Comparison", "Row", "System", "compare"]

TRAINING = {each.name for each in fields(TrainingSettings)}
# What depends on the size of the corpus and is settled from it: published values are for a vocabulary of 793,471 words
# and for a text of a billion, read a few times at the most.
SETTLED = {"lm": ("samples", "input_dropout", "dropout", "output_dropout"), "window": ("samples",), "maxent": ()}
CACHE = 2000  # words of the cache beside the models of the second mixture


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        name: of the row and of the folder that its model goes to.
        preset: what it is, of :data:`recurra.presets.PRESETS`; without one it is what Recurra chooses by itself.
        scale: of the preset's sizes.
        settings: those that win over the preset's. What is named in :data:`SETTLED` is not taken from the preset.
    """

    name: str
    preset: str | None = None
    scale: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)


SYSTEMS = (
    System("kneser-ney-5", "kneser-ney-5"),
    System("fixed-window", "fixed-window"),
    System("rnn-1024-maxent-9", "rnn-1024-maxent-9", 1 / 4),
    System("rnn-2048-blackout", "rnn-2048-blackout", 1 / 8),
    System("sparse-nonnegative-matrix", "sparse-nonnegative-matrix"),
    System("lstm-2048-512", "lstm-2048-512", 1 / 4),
    System("lstm-8192-1024", "lstm-8192-1024", 1 / 8),
    System("lstm-8192-1024-char-cnn", "lstm-8192-1024-char-cnn", 1 / 8),
    System("adaptive-lstm-2048", "adaptive-lstm-2048", 1 / 4),
    System("adaptive-2-layer-lstm-2048", "adaptive-2-layer-lstm-2048", 1 / 4),
    System("rnn", settings={"cell": "rnn"}),
    System("recurra"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a system; None where a number does not apply or its run failed.

    Attributes:
        name: of the system.
        title: what the table calls it.
        published: test perplexity on the One Billion Word benchmark.
        valid, test: perplexities here.
        parameters: numbers learnt or counted.
        training_seconds: of its training.
        words_per_second: tokens read in training, by the second.
        size_bytes: of its weights on disk.
        problem: why there are no perplexities.
    """

    name: str
    title: str
    published: float | None = None
    valid: float | None = None
    test: float | None = None
    parameters: int | None = None
    training_seconds: float | None = None
    words_per_second: float | None = None
    size_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The rows so far, and the signal that stopped it, if one did: then it goes on where it was when called again."""

    rows: list[Row]
    stopped: signal.Signals | None = None


def compare(
    corpus: str | Path,
    directory: str | Path,
    *,
    minutes: float = 10.0,
    systems: Sequence[str] | None = None,
    scale: float = 1.0,
    watch: Watcher | None = None,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Comparison:
    """Train and evaluate every system on a corpus, mix them, and write a table and a picture.

    A row that is there already is not made again, and a run that was stopped goes on: call it with the same arguments.
    ``table.md``, ``table.json`` and ``table.png`` are written after each row; each model stays in its folder.

    Args:
        corpus: what to train on; see :func:`recurra.text.corpora.open_corpus`.
        directory: where everything goes.
        minutes: of training for each system that is trained by gradient; counting takes what it takes.
        systems: names of :data:`SYSTEMS`; all if not given.
        scale: what the sizes of all presets are multiplied by, beside the scale of their row.
        watch: is called with the progress of training.
        say: is called with a line of text at each stage.
        settings: of corpus, tokenizer and training, for all systems alike, such as ``vocabulary_size`` or ``seed``.

    Raises:
        UserError: whatever is wrong with what was given, in one line.
    """
    directory = Path(directory)
    known = {system.name: system for system in SYSTEMS}
    for name in systems or ():
        if name not in known:
            raise UserError(f"unknown system {name!r}; there are {', '.join(known)}")
    chosen = [system for system in SYSTEMS if systems is None or system.name in systems]
    protocol = {"corpus": str(corpus), "minutes": minutes, "scale": scale, **_plain(settings)}
    _check_protocol(directory, protocol)
    rows: list[Row] = []
    for system in chosen:
        say(f"--- {system.name}")
        row, stopped = _row(system, corpus, directory / system.name, minutes, scale, watch, say, settings)
        if stopped:
            return Comparison(rows, stopped)
        rows.append(row)
        _write(directory, protocol, rows)
    whole = [row.name for row in rows if row.problem is None]
    for name, title, cache in (
        ("mixture", "Mixture of all", 0),
        ("mixture-cache", "Mixture of all, with caches", CACHE),
    ):
        if len(whole) > 1:
            say(f"--- {name}")
            rows.append(_mixed(name, title, [directory / each for each in whole], directory / name, cache, say))
            _write(directory, protocol, rows)
    return Comparison(rows)


def _check_protocol(directory: Path, protocol: Mapping[str, Any]) -> None:
    """Rows of one table are made alike: refuse to go on in a folder with another protocol."""
    path = directory / "protocol.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in {**before, **protocol} if before.get(name) != protocol.get(name)]
        if changed:
            name = changed[0]
            raise UserError(
                f"{directory}: its rows were made with {name} {before.get(name)}, not {protocol.get(name)}; choose"
                " another folder with -o"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory}: holds something that is no comparison; choose another folder with -o")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, protocol)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _row(
    system: System,
    corpus: str | Path,
    folder: Path,
    minutes: float,
    scale: float,
    watch: Watcher | None,
    say: Callable[[str], None],
    settings: Mapping[str, Any],
) -> tuple[Row, signal.Signals | None]:
    """The row of a system: read where it is done, made or gone on with where it is not."""
    preset = PRESETS[system.preset] if system.preset else None
    about: dict[str, Any] = {
        "name": system.name,
        "title": preset.title if preset else system.name,
        "published": preset.published if preset else None,
    }
    if not (folder / "results.json").exists():
        kind = preset.kind if preset else "lm"
        given = dict(settings)
        if KINDS[kind].counted:
            given = {name: value for name, value in given.items() if name not in TRAINING}
        else:
            given |= {"max_minutes": minutes, **dict.fromkeys(SETTLED[kind])}
        try:
            outcome = train_lm(
                corpus,
                folder,
                preset=system.preset,
                scale=scale * system.scale if preset else 1.0,
                resume=(folder / SETTINGS).exists(),
                watch=watch,
                say=say,
                **{**given, **system.settings},
            )
        except Diverged as error:
            return Row(**about, problem=str(error)), None
        if outcome.stopped:
            return Row(**about), outcome.stopped
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    seconds, tokens = results["training_seconds"], results["training_tokens"]
    return (
        Row(
            **about,
            valid=results["valid"]["perplexity"],
            test=results["test"]["perplexity"],
            parameters=results["parameters"],
            training_seconds=seconds,
            words_per_second=tokens / seconds if seconds else None,
            size_bytes=(folder / WEIGHTS).stat().st_size,
        ),
        None,
    )


def _mixed(name: str, title: str, models: Sequence[Path], folder: Path, cache: int, say: Callable[[str], None]) -> Row:
    streams = {split: TokenStream.open(models[0] / "training" / split) for split in ("valid", "test")}
    if not (folder / SETTINGS).exists():
        mix(models, folder, streams["valid"], cache=cache, say=say)
    path = folder / "results.json"
    if not path.exists():
        lm = load(folder)
        evaluations: dict[str, Evaluation] = {}
        for split, stream in streams.items():
            say(f"evaluating on {split}: {len(stream):,} tokens")
            evaluations[split] = lm.evaluate(stream)
        found = {split: evaluation.to_mapping() for split, evaluation in evaluations.items()}
        write_json(path, {"parameters": lm.model.parameters_count, **found})
    results = json.loads(path.read_text(encoding="utf-8"))
    return Row(
        name=name,
        title=title,
        valid=results["valid"]["perplexity"],
        test=results["test"]["perplexity"],
        parameters=results["parameters"],
    )


# ---- the table ------------------------------------------------------------------------------------------------------


def _write(directory: Path, protocol: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Table and picture of the rows so far."""
    write_json(directory / "table.json", {"protocol": protocol, "rows": [asdict(row) for row in rows]})
    with written_whole(directory / "table.md") as file:
        file.write(table(rows, str(protocol["corpus"])))
    found = [(row.name, row.test) for row in rows if row.test is not None and math.isfinite(row.test)]
    with suppress(UserError):  # without matplotlib there is no picture
        bars(found, directory / "table.png", label=f"test perplexity, {protocol['corpus']}")


def table(rows: Sequence[Row], corpus: str) -> str:
    """The rows as a Markdown table."""
    head = (
        f"| system | published (1B words) | valid, {corpus} | test | parameters | training | words/s | size |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    )
    lines = []
    for row in rows:
        if row.problem:
            lines.append(f"| {row.title} (`{row.name}`) | {_number(row.published, 1)} | {row.problem} |||||| ")
            continue
        cells = (
            f"{row.title} (`{row.name}`)" if row.title != row.name else f"`{row.name}`",
            _number(row.published, 1),
            _number(row.valid, 1),
            _number(row.test, 1),
            _number(row.parameters, 0),
            "" if row.training_seconds is None else f"{row.training_seconds / 60:.1f} min",
            _number(row.words_per_second, 0),
            "" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f} MB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*head, *lines]) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"

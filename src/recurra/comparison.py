"""Every system of the table of perplexities on one corpus: one vocabulary, an equal time for each, one protocol."""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from recurra import distributed
from recurra.checkpoint import SETTINGS, WEIGHTS, read_json, write_json
from recurra.config import UserError
from recurra.evaluation import Evaluation
from recurra.files import written_whole
from recurra.language_model import held_out
from recurra.mixing import mix
from recurra.models.kinds import KINDS
from recurra.plotting import bars
from recurra.presets import PRESETS
from recurra.recipes import train_lm
from recurra.text.corpora import CorpusSettings, open_corpus
from recurra.text.tokenizer import TokenizerSettings, word_kind
from recurra.training import Diverged, TrainingSettings, Watcher

__all__ = ["SYSTEMS", "Comparison", "Row", "System", "compare"]

ROW, RESULTS = "row.json", "results.json"  # in the folder of each system: what it is, and what became of it
# What is not taken from a preset, for any system: how its weights move, and what depends on the size of the corpus. The
# published values are for weeks on a text of a billion words; ten minutes are best used in the same way by all.
EQUAL = {
    "optimizer": "adam",
    "learning_rate": None,
    "schedule": "cosine",
    "warmup": 0.05,
    "clip_norm": None,
    "average": 0.0,
    "batch_size": None,
    "chunk_length": 35,
}
SETTLED = ("samples", "input_dropout", "dropout", "output_dropout")
CACHE = 2000  # words of the cache beside the models of the second mixture


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        name: of the row and of the folder that its model goes to.
        preset: what it is, of :data:`recurra.presets.PRESETS`; without one it is what Recurra chooses by itself.
        scale: of the preset's sizes.
        settings: those that win over the preset's. What :data:`EQUAL` and :data:`SETTLED` name is not the preset's.
        title: what the table calls it, where it is not the published system.
    """

    name: str
    preset: str | None = None
    scale: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    title: str | None = None

    @property
    def kind(self) -> str:
        """Which of :data:`recurra.models.kinds.KINDS` it is."""
        return PRESETS[self.preset].kind if self.preset else "lm"

    def heading(self) -> dict[str, Any]:
        """How its row begins: name, title, and the published number if it is the published system."""
        preset = PRESETS[self.preset] if self.preset else None
        if preset is None or self.title is not None:
            return {"name": self.name, "title": self.title or self.name}
        return {"name": self.name, "title": preset.title, "published": preset.published}


SYSTEMS = (
    System("kneser-ney-5", "kneser-ney-5", settings={"discount_fallback": True}),
    System("sparse-nonnegative-matrix", "sparse-nonnegative-matrix"),
    System("fixed-window", "fixed-window", 4, {"embedding_size": 128, "output": "adaptive"}),
    System("rnn-1024", "rnn-1024-maxent-9", 1 / 4, {"maxent_order": 0}, "RNN-1024 without the n-grams"),
    System("rnn-1024-maxent-9", "rnn-1024-maxent-9", 1 / 4),
    System("rnn-2048-blackout", "rnn-2048-blackout", 1 / 8),
    System("lstm-2048-512", "lstm-2048-512", 1 / 4),
    System("lstm-8192-1024", "lstm-8192-1024", 1 / 8),
    System("lstm-8192-1024-char-cnn", "lstm-8192-1024-char-cnn", 1 / 8),
    System("adaptive-lstm-2048", "adaptive-lstm-2048", 1 / 4),
    System("adaptive-2-layer-lstm-2048", "adaptive-2-layer-lstm-2048", 1 / 4),
    System("recurra", title="what `recurra train lm` chooses"),
)
MIXTURES = (
    System("mixture", title="mixture of those above"),
    System("mixture-cache", settings={"cache": CACHE}, title=f"the same, caches of {CACHE:,} words"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of a system; None where a number does not apply or its run failed.

    Attributes:
        name: of the system.
        title: what the table calls it.
        published: test perplexity on the One Billion Word benchmark, at full size.
        scale: what the published sizes were multiplied by; None where there is nothing to scale.
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
    scale: float | None = None
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
    tokenizer: str
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
    ``table.md``, ``table.json`` and ``table.png`` are written after each row, with all rows there are; each model stays
    in its folder. A system that cannot be trained on the corpus has a row that says why; to try again, delete its
    folder.

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
    if not 0 < minutes < math.inf or not 0 < scale < math.inf:
        raise UserError(f"expected minutes and a scale above 0, got {minutes} minutes and a scale of {scale}")
    if distributed.world_size() > 1:
        raise UserError("systems are compared by one process: run the command without torchrun")
    if directory.exists() and any(directory.iterdir()) and not any(directory.glob(f"*/{ROW}")):
        raise UserError(f"{directory}: holds something that is no comparison; choose another folder with -o")
    shared = {each.name for cls in (CorpusSettings, TokenizerSettings, TrainingSettings) for each in fields(cls)}
    shared.remove("max_minutes")  # which is what `minutes` says
    if strange := [name for name in settings if name not in shared]:
        raise UserError(f"{strange[0]}: expected a setting of corpus, tokenizer or training, for all systems alike")
    settings = json.loads(json.dumps(settings, default=str))
    text, kind = _look_at(corpus, settings)
    settings["tokenizer"] = settings.get("tokenizer") or kind  # the table is of words, unless something else is asked
    protocol = {"corpus": str(corpus), "text": text, "minutes": minutes, "scale": scale, "settings": settings}
    run = _Run(corpus, directory, protocol, watch, say)
    run.check()
    for system in SYSTEMS:
        if systems is None or system.name in systems:
            say(f"--- {system.name}")
            stopped = run.make(system)
            run.write()
            if stopped:
                return Comparison(run.rows(), settings["tokenizer"], stopped)
    for mixture in MIXTURES:
        if len(run.whole()) > 1:
            say(f"--- {mixture.name}")
            run.mix(mixture)
            run.write()
    return Comparison(run.rows(), settings["tokenizer"])


def _look_at(corpus: str | Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    """SHA-256 of all parts of a corpus, as rows of one table are made of the same text; and what its words are.

    Raises:
        UserError: it cannot be read, or read twice, or has no part to validate or test on.
    """
    if str(corpus) == "-":
        raise UserError("standard input can be read once, and every system reads the corpus: give a file")
    known = {each.name for each in fields(CorpusSettings)}
    opened = open_corpus(corpus, CorpusSettings(**{name: settings[name] for name in settings if name in known}))
    digest = hashlib.sha256()
    for split in ("train", "valid", "test"):
        text = getattr(opened, split)
        if text is None:
            raise UserError(f"{corpus}: has no {split} text, and the table needs it; leave --{split}-fraction above 0")
        for line in text.lines():
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        digest.update(b"\0")
    return digest.hexdigest(), word_kind(opened.train)


class _Run:
    """One comparison: what is in its folder, and what is still to be made."""

    def __init__(
        self,
        corpus: str | Path,
        directory: Path,
        protocol: Mapping[str, Any],
        watch: Watcher | None,
        say: Callable[[str], None],
    ) -> None:
        self.corpus, self.directory, self.protocol, self.watch, self.say = corpus, directory, protocol, watch, say

    def check(self) -> None:
        """Refuse a folder with rows that were made in another way: rows of one table are alike."""
        for system in SYSTEMS:
            folder = self.directory / system.name
            if not (folder / ROW).exists():
                continue
            before, now = read_json(folder / ROW), self._identity(system)
            for part in ("protocol", "system"):
                old, new = before.get(part, {}), now[part]
                changed = next((key for key in new if old.get(key) != new[key]), None)
                if changed:
                    raise UserError(
                        f"{self.directory}: the row of {system.name} was made with {changed} {old.get(changed)}, not"
                        f" {new[changed]}; choose another folder with -o, or delete {folder}"
                    )

    def make(self, system: System) -> signal.Signals | None:
        """Train a system where its row is not there yet; returns the signal that stopped it, if one did."""
        folder = self.directory / system.name
        identity = self._identity(system)
        if (folder / ROW).exists():
            if "problem" in read_json(folder / ROW) or (folder / RESULTS).exists():
                return None
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / ROW, identity)
        begun = (folder / SETTINGS).exists()
        try:
            outcome = train_lm(
                self.corpus,
                folder,
                preset=system.preset,
                scale=self.protocol["scale"] * system.scale if system.preset else 1.0,
                resume=begun and not KINDS[system.kind].counted,
                overwrite=begun and KINDS[system.kind].counted,
                watch=self.watch,
                say=self.say,
                **self._settings(system),
            )
        except (Diverged, UserError) as error:
            self.say(str(error))
            write_json(folder / ROW, {**identity, "problem": " ".join(str(error).split())})
            return None
        return outcome.stopped

    def mix(self, mixture: System) -> None:
        """Mix all models there are, and evaluate the mixture, unless this very mixture is there."""
        folder, models = self.directory / mixture.name, [self.directory / name for name in self.whole()]
        made_of = {model.name: hashlib.sha256((model / RESULTS).read_bytes()).hexdigest() for model in models}
        identity = {**self._identity(mixture), "models": made_of}
        if (folder / RESULTS).exists() and read_json(folder / ROW) == identity:
            return
        streams = {}
        for split in ("valid", "test"):
            stream = held_out(models[0], split)
            if stream is None:
                raise UserError(
                    f"{models[0]}: its {split} text is not there any more; delete the folder to train again"
                )
            streams[split] = stream
        (folder / RESULTS).unlink(missing_ok=True)
        lm = mix(models, folder, streams["valid"], cache=mixture.settings.get("cache", 0), overwrite=True, say=self.say)
        evaluations: dict[str, Evaluation] = {}
        for split, stream in streams.items():
            self.say(f"evaluating on {split}: {len(stream):,} tokens")
            evaluations[split] = lm.evaluate(stream)
        found = {split: evaluation.to_mapping() for split, evaluation in evaluations.items()}
        write_json(folder / ROW, identity)
        write_json(folder / RESULTS, {"parameters": lm.model.parameters_count, **found})

    def whole(self) -> list[str]:
        """Names of the systems that are there."""
        return [system.name for system in SYSTEMS if (self.directory / system.name / RESULTS).exists()]

    def rows(self) -> list[Row]:
        """A row for every system and mixture that is there, or that failed."""
        found = []
        for system in (*SYSTEMS, *MIXTURES):
            folder = self.directory / system.name
            if (folder / RESULTS).exists():
                found.append(self._row(system, folder))
            elif (folder / ROW).exists() and "problem" in (about := read_json(folder / ROW)):
                found.append(Row(**self._heading(system), problem=about["problem"]))
        return found

    def write(self) -> None:
        """Table and picture of the rows so far."""
        rows = self.rows()
        write_json(self.directory / "table.json", {"protocol": self.protocol, "rows": [asdict(row) for row in rows]})
        with written_whole(self.directory / "table.md") as file:
            protocol = self.protocol
            file.write(table(rows, str(self.corpus), protocol["settings"]["tokenizer"], protocol["minutes"]))
        numbers = [(row.name, row.test) for row in rows if row.test is not None and math.isfinite(row.test)]
        with suppress(UserError):  # without matplotlib there is no picture
            bars(numbers, self.directory / "table.png", label=f"test perplexity, {self.corpus}")

    def _settings(self, system: System) -> dict[str, Any]:
        """What a system is trained with, beside its preset."""
        given = dict(self.protocol["settings"])
        if KINDS[system.kind].counted:
            own = {each.name for each in fields(TrainingSettings)}
            return {**{name: value for name, value in given.items() if name not in own}, **system.settings}
        model = {each.name for each in fields(KINDS[system.kind].settings)}
        settled = {name: None for name in SETTLED if name in model}
        minutes = {"max_minutes": self.protocol["minutes"]}
        return {**EQUAL, **settled, **given, **minutes, **system.settings}

    def _identity(self, system: System) -> dict[str, Any]:
        """All that a row depends on, as JSON gives it back."""
        made: dict[str, Any] = json.loads(
            json.dumps({"protocol": self.protocol, "system": asdict(system)}, default=str)
        )
        return made

    def _heading(self, system: System) -> dict[str, Any]:
        scale = self.protocol["scale"] * system.scale
        scaled = system.preset is not None and not KINDS[system.kind].counted
        return {**system.heading(), "scale": scale if scaled else None}

    def _row(self, system: System, folder: Path) -> Row:
        results = read_json(folder / RESULTS)
        seconds, tokens = results.get("training_seconds"), results.get("training_tokens")
        weights = folder / WEIGHTS
        return Row(
            **self._heading(system),
            valid=results["valid"]["perplexity"],
            test=results["test"]["perplexity"],
            parameters=results["parameters"],
            training_seconds=seconds,
            words_per_second=tokens / seconds if seconds and tokens else None,
            size_bytes=weights.stat().st_size if weights.exists() else None,
        )


# ---- the table ------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], corpus: str, tokenizer: str, minutes: float) -> str:
    """The rows as a Markdown table, and under it what is to be known of them.

    Perplexities are per token, of the kind that the tokenizer makes.
    """
    head = (
        f"| system | published (1B words) | valid, {corpus} ({tokenizer}) | test | parameters | training | words/s"
        " | size |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    )
    lines = []
    for row in rows:
        if row.problem:
            lines.append(f"| {_title(row)} | {_number(row.published, 1)} | {row.problem} |||||| ")
            continue
        cells = (
            _title(row),
            _number(row.published, 1),
            _number(row.valid, 1),
            _number(row.test, 1),
            _number(row.parameters, 0),
            "" if row.training_seconds is None else _duration(row.training_seconds),
            _number(row.words_per_second, 0),
            ""
            if row.size_bytes is None
            else f"{row.size_bytes / 1e6:,.1f} MB"
            if row.size_bytes >= 1e5
            else f"{row.size_bytes / 1e3:,.1f} kB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    about = (
        "",
        "Published: test perplexity on the One Billion Word benchmark, at full size. Here:"
        f" {minutes:g} minutes for each system that is trained by gradient; all of them by Adam with one schedule,"
        " a learning rate and dropout chosen from the size of the text. Weights and caches of mixtures were chosen on"
        " the validation text.",
    )
    return "\n".join([*head, *lines, *about]) + "\n"


def _title(row: Row) -> str:
    """What a row is: its title, at what part of the published size, and its name."""
    title = "" if row.title == row.name else row.title
    if row.scale is not None and row.scale != 1:
        part = Fraction(row.scale).limit_denominator(128)
        title += f", {part} of the size" if part < 1 else f", {float(part):g} times the size"
    return f"{title} (`{row.name}`)" if title else f"`{row.name}`"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"

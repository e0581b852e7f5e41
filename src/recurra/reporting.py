"""One page about a trained model: how it learnt, what it knows, what goes on inside.

:func:`measure` finds the numbers; :func:`page` makes HTML of them and of nothing else. The page is one file: no script,
no font or picture from elsewhere. Whatever comes from the model or its data is escaped.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recurra import __version__, recipes, supervised
from recurra.checkpoint import WEIGHTS, read_json, read_settings, read_tensors
from recurra.config import UserError, setting
from recurra.evaluation import row_starts
from recurra.files import written_whole
from recurra.gradients import decay, gradient_map, unroll_model
from recurra.language_model import LanguageModel
from recurra.models.kinds import KINDS
from recurra.models.recurrent_lm import RecurrentLM
from recurra.tasks import TASKS
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import LINE_END, UNKNOWN
from recurra.tracing import trace

__all__ = ["ReportSettings", "measure", "page", "report"]

Numbers = dict[str, Any]

# Tokens that are read to see what is easy and what is hard: at least and at most; between them so many that reading
# them one after the other takes some seconds, which is a matter of reading the weights once for each.
LEAST_READ, MOST_READ, WEIGHTS_READ = 2_000, 20_000, 1e11
EXCERPT = {"characters": 400}  # tokens of the coloured text; of other tokenizers:
EXCERPT_WORDS = 120
TRACED, UNITS = 32, 8  # tokens and units of the picture of a gate
UNROLLED, PAIRED = 120, 1e11  # tokens that gradients flow back through, and products that this may take
CURVE_POINTS = 400  # lines of the log that are shown, at most, beside those of validations
SCALE_BITS = {"characters": 8.0}  # surprisal of the darkest colour; of other tokenizers:
SCALE_BITS_WORDS = 16.0
SHOWN_GATE = {"lstm": "forget", "gru": "update", "rnn": "hidden"}
UNIT_NAMES = {"characters": "characters", "words": "words", "whitespace": "words", "byte-pairs": "pieces of words"}
GATES = {"lstm": ("forget", "input", "output"), "gru": ("reset", "update"), "rnn": ("hidden",)}


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a model is asked to write for its report."""

    samples: int = setting(3, "passages that the model writes", minimum=0, maximum=1000)
    tokens: int = setting(80, "tokens of each passage, at most", minimum=1)
    seed: int = setting(1, "of the passages", minimum=0)


def report(
    directory: str | Path,
    path: str | Path,
    settings: ReportSettings | None = None,
    *,
    device: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Numbers:
    """Write the page about a model, whole or not at all; returns the numbers on it.

    Args:
        directory: the model's folder.
        path: of the page; any name.
        settings: of the passages.
        device: ``cpu``, ``cuda`` or ``mps``; what there is if not given.
        say: is called with a line of text at each stage.

    Raises:
        UserError: as :func:`measure`; or the page cannot be put there.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        what = "expected a file for the page, found a folder" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path if path.is_dir() else path.parent}: {what}; choose another with -o")
    numbers = measure(directory, settings, device=device, say=say)
    with written_whole(path) as file:
        file.write(page(numbers))
    return numbers


# ---- numbers --------------------------------------------------------------------------------------------------------


def measure(
    directory: str | Path,
    settings: ReportSettings | None = None,
    *,
    device: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Numbers:
    """Everything that the page about a model says, as JSON holds it.

    Returns:
        A mapping with an entry for each section that applies to the kind of model: ``model``, ``learning``,
        ``results``, ``reading`` (surprisal by frequency and position, and an excerpt), ``samples``, ``gradients``,
        ``gates``, ``settings``, ``sizes``, ``speed``. A section that should be there and cannot be is None, and
        ``missing`` says why. Losses are in nats, times in seconds; a number that is not finite is None.

    Raises:
        UserError: no model directory, or a file of it is damaged.
    """
    directory, settings = Path(directory), settings or ReportSettings()
    content = read_settings(directory)
    kind = str(content["kind"])
    task = TASKS.get(kind)
    lm = None if task else LanguageModel.load(directory, device=device)
    missing: dict[str, str] = {}
    title = task.title if task else KINDS[kind].title if kind in KINDS else "mixture of language models"
    results_path = directory / "results.json"
    results = read_json(results_path) if results_path.exists() else None
    if results is None:
        missing["results"] = "There is no results.json: the training run was not finished, or did not happen here."
    log, why = _log(directory / "log.jsonl", counted=lm is not None and lm.counted)
    if log is None:
        missing["learning"] = why
    else:
        log["unit"] = "target" if task else "token"
        if task and "score" in {name for line in log["lines"] for name in line}:
            scores = (results or {}).get("valid", {})
            log["score"] = next((name for name in task.metric if scores.get(name.removeprefix("-")) is not None), None)
    numbers: Numbers = {
        "model": {"name": directory.resolve().name, "kind": kind, "title": title},
        "learning": log,
        "results": results,
        "settings": _settings(kind, content),
        "sizes": _sizes(directory, lm, content),
        "speed": _training_speed(results),
        "missing": missing,
    }
    if lm is not None:
        _measure_text(lm, directory, settings, numbers, say)
    finite: Numbers = _finite(numbers)
    return finite


def _measure_text(
    lm: LanguageModel, directory: Path, settings: ReportSettings, numbers: Numbers, say: Callable[[str], None]
) -> None:
    """What a language model makes of its held-out text, and what it writes."""
    missing = numbers["missing"]
    held_out = _held_out(lm, directory)
    example: list[int] = []
    numbers["reading"] = numbers["samples"] = None
    if held_out is None:
        missing["reading"] = (
            "The held-out tokens are gone, or there never were any: training/ has no valid and no test."
        )
    else:
        say(f"reading {len(held_out[1]):,} tokens of {held_out[0]}")
        numbers["reading"], example = _reading(lm, *held_out)
        numbers["speed"]["reading_tokens_per_second"] = len(held_out[1]) / max(1e-9, numbers["reading"]["seconds"])
    if settings.samples:
        say(f"writing {settings.samples} passages")
        begun = time.perf_counter()
        try:
            passages = lm.generate(count=settings.samples, max_tokens=settings.tokens, seed=settings.seed)
        except UserError as error:
            missing["samples"] = f"The model could not write: {error}."
        else:
            written = sum(len(each.ids) for each in passages)
            numbers["speed"]["writing_tokens_per_second"] = written / max(1e-9, time.perf_counter() - begun)
            numbers["samples"] = {
                "seed": settings.seed,
                "passages": [
                    {"text": p.text, "tokens": len(p.ids), "nats_per_token": -p.log_prob / max(1, len(p.ids))}
                    for p in passages
                ],
            }
    else:
        missing["samples"] = "None were asked for."
    numbers["gradients"] = numbers["gates"] = None
    if not isinstance(lm.model, RecurrentLM):
        what = "Only a recurrent network has {}; this is another kind of model."
        missing["gradients"] = what.format("gradients that flow back through time")
        missing["gates"] = what.format("gates")
    elif not example:
        missing["gradients"] = missing["gates"] = "There is no held-out text to read."
    else:
        say("looking inside")
        stream = TokenStream.from_tokens(example, vocabulary=lm.tokenizer.vocabulary.digest())
        numbers["gates"] = _gates(lm, stream)
        numbers["gradients"] = _gradients(lm, stream)


def _log(path: Path, *, counted: bool) -> tuple[Numbers | None, str]:
    """The lines of a training log, thinned out evenly where there are many; or why there are none."""
    if counted:
        return None, "This model was made by counting, in one go: it has no learning curve."
    if not path.exists():
        return None, "There is no log.jsonl in the model's folder."
    texts = path.read_text(encoding="utf-8").splitlines()
    lines: list[dict[str, float]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            lines.append({"seconds": float(line["seconds"]), **{name: float(each) for name, each in line.items()}})
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            if number == len(texts) and isinstance(error, json.JSONDecodeError):
                break  # a run that was killed may leave its last line unfinished
            raise UserError(f"{path}:{number}: expected names and numbers, `seconds` among them; restore it") from error
    if not lines:
        return None, "The log has no lines: training ended before the first."
    step = math.ceil(len(lines) / CURVE_POINTS)
    kept = [line for place, line in enumerate(lines) if place % step == step - 1 or "valid" in line]
    return {"lines": kept, "logged": len(lines)}, ""


def _settings(kind: str, content: Mapping[str, Any]) -> dict[str, list[Numbers]]:
    """The resolved settings by section, each with what it does."""
    known: dict[str, type[Any]] = {}
    if kind in KINDS:
        known = dict(recipes.sections(kind))
    elif kind in TASKS:
        known = dict(supervised.sections(kind))
    found = {}
    for section in ("corpus", "data", "tokenizer", "model", "training"):
        values = content.get("tokenizer_settings" if section == "tokenizer" else section)
        if not isinstance(values, dict):
            continue
        help = (
            {field.name: field.metadata.get("help", "") for field in fields(known[section])} if section in known else {}
        )
        found[section] = [
            {"name": name, "value": value, "about": "what was read" if name == "sources" else help.get(name, "")}
            for name, value in values.items()
        ]
    return found


def _sizes(directory: Path, lm: LanguageModel | None, content: Mapping[str, Any]) -> Numbers:
    """How large the model is, and what the numbers in it are for."""
    found: Numbers = {}
    weights = directory / WEIGHTS
    if weights.exists():  # a mixture has none of its own
        tensors, _ = read_tensors(weights, verify=False)
        found["weights_bytes"] = weights.stat().st_size
        found["tensors"] = [
            {"name": name, "shape": list(tensor.shape), "numbers": tensor.numel()} for name, tensor in tensors.items()
        ]
        parts: dict[str, int] = {}
        for each in found["tensors"]:
            part = each["name"].partition(".")[0]
            parts[part] = parts.get(part, 0) + each["numbers"]
        found["parts"] = dict(sorted(parts.items(), key=lambda part: -part[1]))
        found["parameters"] = sum(parts.values())
    if lm is not None:
        vocabulary = lm.tokenizer.vocabulary
        found["parameters"] = lm.model.parameters_count
        found["tokenizer"] = lm.tokenizer.kind
        found["vocabulary"] = len(vocabulary)
        order = np.argsort(-np.asarray(vocabulary.counts), kind="stable")[:10].tolist()
        found["frequent"] = [{"token": vocabulary.tokens[i], "count": vocabulary.counts[i]} for i in order]
    elif isinstance(content.get("examples"), dict):
        found["examples"] = content["examples"]
    return found


def _training_speed(results: Mapping[str, Any] | None) -> Numbers:
    """Tokens, or targets, of training in a second."""
    results = results or {}
    seconds = results.get("training_seconds")
    read = results.get("training_tokens", results.get("training_targets"))
    return {
        "training_seconds": seconds,
        "training_tokens": read,
        "training_tokens_per_second": read / seconds if read and seconds else None,
        "threads": torch.get_num_threads(),
    }


def _held_out(lm: LanguageModel, directory: Path) -> tuple[str, TokenStream, int] | None:
    """The beginning of the validation text, or of the test text where there is none; and how long it is in all."""
    for split in ("valid", "test"):
        path = directory / "training" / split
        if not path.exists() or not len(stream := TokenStream.open(path)):
            continue
        most = int(max(LEAST_READ, min(MOST_READ, WEIGHTS_READ // max(1, lm.model.parameters_count))))
        tokens = np.asarray(stream.tokens[:most])
        ends = np.flatnonzero(tokens == LINE_END) + 1
        if len(tokens) < len(stream) and len(ends) and ends[-1] > most // 2:
            tokens = tokens[: ends[-1]]  # whole lines, where they are not too long
        starts = np.asarray(stream.document_starts)
        part = TokenStream.from_tokens(tokens, starts[starts < len(tokens)], vocabulary=stream.vocabulary)
        return split, part, len(stream)
    return None


def _reading(lm: LanguageModel, split: str, stream: TokenStream, whole: int) -> tuple[Numbers, list[int]]:
    """Surprisal of held-out tokens by frequency and by position, with an excerpt; and the excerpt's ids."""
    nats = np.empty(len(stream))
    found = lm.evaluate(stream, per_token=nats)
    tokens = np.asarray(stream.tokens, dtype=np.int64)
    counts = np.asarray(lm.tokenizer.vocabulary.counts)[tokens]
    edges = [0, *(10**k for k in range(1, 1 + len(str(int(counts.max(initial=0))))))]
    frequency = np.searchsorted(edges, counts)
    frequency[tokens == UNKNOWN] = len(edges)
    names = ["0", *(_span(low + 1, high) for low, high in itertools.pairwise(edges)), "<unk>"]
    begins = np.asarray(stream.line_starts)
    lines = np.searchsorted(begins, np.arange(len(tokens)), side="right") - 1
    place = np.arange(len(tokens)) - begins[lines]  # in the line, from 0
    doubling = [0, *(2**k for k in range(1 + int(place.max(initial=0)).bit_length()))]
    position = np.searchsorted(doubling, place, side="right") - 1
    places = [_span(low + 1, high) for low, high in zip(doubling, [*doubling[1:], math.inf], strict=True)]
    begin = _middle(begins, len(tokens), EXCERPT.get(lm.tokenizer.kind, EXCERPT_WORDS))
    excerpt = tokens[begin : begin + EXCERPT.get(lm.tokenizer.kind, EXCERPT_WORDS)].tolist()
    numbers = {
        "split": split,
        "tokens": len(tokens),
        "of": whole,
        "reset": found.reset,
        "nats_per_token": found.nats_per_token,
        "perplexity": found.perplexity,
        "seconds": found.seconds,
        "by_frequency": _bins(names, frequency, nats),
        "by_position": _bins(places, position, nats),
        "scale_bits": SCALE_BITS.get(lm.tokenizer.kind, SCALE_BITS_WORDS),
        "excerpt": [
            {"token": lm.tokenizer.token(id), "text": text, "nats": surprisal}
            for id, text, surprisal in zip(excerpt, _texts(lm.tokenizer, excerpt), nats[begin:].tolist(), strict=False)
        ],
    }
    return numbers, excerpt


def _bins(names: Sequence[str], bins: NDArray[Any], nats: NDArray[np.float64]) -> list[Numbers]:
    """Mean surprisal of the tokens of each bin that has some; their mean, weighted by tokens, is that of all."""
    sums, sizes, total = np.zeros(len(names)), np.bincount(bins, minlength=len(names)), float(nats.sum())
    np.add.at(sums, bins, nats)
    return [
        {
            "name": name,
            "tokens": size,
            "nats_per_token": nats_of / size,
            "perplexity": math.exp(nats_of / size) if nats_of / size < 700 else math.inf,
            "share_of_tokens": size / len(bins),
            "share_of_nats": nats_of / total if total and math.isfinite(total) else math.nan,
        }
        for name, size, nats_of in zip(names, sizes.tolist(), sums.tolist(), strict=True)
        if size
    ]


def _span(low: int, high: float) -> str:
    return f"{low:,}+" if high == math.inf else f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _middle(line_starts: NDArray[Any], total: int, wanted: int) -> int:
    """Where an excerpt begins: at a line's start near the middle that has enough tokens after it, if there is one."""
    place = max(0, min(total // 2, total - wanted))
    return int(line_starts[np.searchsorted(line_starts, place, side="right") - 1])


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, with the space before it; a part of a character adds nothing yet."""
    texts, begin, shown = [], 0, ""
    for place, id in enumerate(ids):
        if id == LINE_END:
            texts.append("\n")
            begin, shown = place + 1, ""
            continue
        text = tokenizer.decode(ids[begin : place + 1])
        ready = text if id == UNKNOWN else text.rstrip("\ufffd")
        texts.append(
            (" " if ready[len(shown) :].startswith(" ") else "") + "<unk>" if id == UNKNOWN else ready[len(shown) :]
        )
        shown = ready
    return texts


def _gates(lm: LanguageModel, example: TokenStream) -> Numbers:
    """What the gates of a recurrent network do while it reads a text, from the zero state on."""
    traced = trace(lm, example)
    gate, shown = SHOWN_GATE[traced.cell], slice(0, TRACED)
    summary = []
    for layer in range(1, len(traced.layers) + 1):
        for name in GATES[traced.cell]:
            values = traced.values(name, layer)
            low = -0.9 if name == "hidden" else 0.1
            summary.append(
                {
                    "layer": layer,
                    "gate": name,
                    "mean": float(values.mean(dtype=np.float64)),
                    "low": float((values < low).mean()),
                    "high": float((values > 0.9).mean()),
                }
            )
    units = sorted(traced.chosen(gate, None, None, UNITS))
    texts = _texts(lm.tokenizer, traced.ids[shown].tolist())
    return {
        "cell": traced.cell,
        "gate": gate,
        "layer": len(traced.layers),
        "layers": len(traced.layers),
        "units": units,
        "tokens": [text.strip() or token for text, token in zip(texts, traced.tokens[shown], strict=True)],
        "values": traced.values(gate)[shown, units].T.tolist(),  # [units, time]
        "summary": summary,
        "summary_tokens": len(traced.tokens),
    }


def _gradients(lm: LanguageModel, example: TokenStream) -> Numbers:
    """How the gradient of the loss at a token falls with the distance of the state, in each layer."""
    model = lm.model
    assert isinstance(model, RecurrentLM)
    tokens = example.tokens[:UNROLLED]
    starts = row_starts(model.settings.reset, example.document_starts, example.line_starts)
    inside = [int(start) for start in starts if start < len(tokens)]
    # A pair of steps takes about as many products as there are weights; where that is too much, fewer losses do.
    stride = math.ceil(model.parameters_count * len(tokens) ** 2 / PAIRED)
    stride = max(1, min(stride, len(tokens) // 10))
    found = gradient_map(unroll_model(model, tokens, starts=inside), stride=stride)
    curves = [decay(found, layer) for layer in range(len(found.hidden))]
    return {
        "tokens": len(tokens),
        "losses": len(found.steps),
        "layers": [
            {
                "layer": number,
                "distances": curve.distances.tolist(),
                "relative": curve.relative.tolist(),
                "pairs": curve.counts.tolist(),
                "half_life": curve.half_life,  # in tokens
                "falls": None if math.isnan(curve.half_life) else math.isfinite(curve.half_life),
                "fitted": curve.fitted,
            }
            for number, curve in enumerate(curves, 1)
        ],
    }


def _finite(value: Any) -> Any:
    """As JSON takes it: None for a number that is not finite."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- page -----------------------------------------------------------------------------------------------------------


def page(numbers: Mapping[str, Any]) -> str:
    """The page that says what :func:`measure` found: a whole HTML document."""
    sections = {
        "learning": ("How it learnt", _learning_section),
        "results": ("How good it is", _results_section),
        "frequency": ("Frequent and rare tokens", _frequency_section),
        "position": ("Along the line", _position_section),
        "surprisal": ("A text as the model reads it", _surprisal_section),
        "samples": ("What it writes", _samples_section),
        "gradients": ("How far gradients flow back", _gradients_section),
        "gates": ("What its gates do", _gates_section),
        "settings": ("Settings", _settings_section),
        "sizes": ("Sizes", _sizes_section),
        "speed": ("Speed", _speed_section),
    }
    source = {"frequency": "reading", "position": "reading", "surprisal": "reading"}
    contents, bodies = [], []
    for name, (heading, make) in sections.items():
        found = source.get(name, name)
        if numbers.get(found) is None and found not in numbers["missing"]:
            continue  # says nothing of this kind of model
        body = (
            make(numbers[found])
            if numbers.get(found) is not None
            else _paragraph(numbers["missing"][found], css="missing")
        )
        contents.append(f'<li><a href="#{name}">{heading}</a></li>')
        bodies.append(
            f'<section id="{name}" aria-labelledby="{name}-heading">\n'
            f'<h2 id="{name}-heading">{heading}</h2>\n{body}\n</section>'
        )
    template = Template(resources.files("recurra").joinpath("report.html.template").read_text(encoding="utf-8"))
    return template.substitute(
        title=_escape(f"{numbers['model']['name']}: {numbers['model']['title']}"),
        version=_escape(__version__),
        summary=_summary(numbers),
        contents="\n".join(contents),
        sections="\n".join(bodies),
    )


def _summary(numbers: Mapping[str, Any]) -> str:
    """What the model is, in a sentence or two."""
    sizes, results = numbers["sizes"], numbers["results"] or {}
    title = numbers["model"]["title"]
    parts = [f"{'An' if title[0] in 'aeiou' else 'A'} {title}"]
    if sizes.get("parameters") is not None:
        parts.append(f"with {_number(sizes['parameters'])} numbers in it")
    if sizes.get("vocabulary") is not None:
        parts.append(f"over a vocabulary of {_number(sizes['vocabulary'])} {UNIT_NAMES[sizes['tokenizer']]}")
    said = [
        f"{split} perplexity {_number(results[split]['perplexity'])}"
        for split in ("valid", "test")
        if isinstance(results.get(split), dict) and "perplexity" in results[split]
    ]
    return _paragraph(" ".join(parts) + "." + (f" {'; '.join(said).capitalize()}." if said else ""))


def _learning_section(found: Mapping[str, Any]) -> str:
    lines, unit = found["lines"], found["unit"]
    total = lines[-1]["seconds"]
    scale, time_label = (60, "training time (minutes)") if total >= 120 else (1, "training time (seconds)")

    def points(name: str, sign: float = 1.0) -> list[tuple[float, float]]:
        return [(line["seconds"] / scale, sign * line[name]) for line in lines if line.get(name) is not None]

    valid = points("valid")
    parts = [
        _paragraph(
            f"The loss is the mean surprise at each {unit} it had to predict; lower is better. The thin line is the"
            " text it was learning from, the strong one text set aside. If the strong line turns up while the thin one"
            " goes on falling, the model has begun to learn its text by heart."
        ),
        _figure(
            line_chart(
                [Curve("training", points("loss"), "quiet"), Curve("validation", valid, "", marks=True)],
                x=time_label,
                y=f"loss (nats per {unit})",
                label="Training and validation loss over training time"
                + (f"; the last validation loss is {_number(valid[-1][1])}" if valid else ""),
            )
        ),
    ]
    if scores := points("score", -1.0 if str(found.get("score")).startswith("-") else 1.0):
        name = str(found.get("score") or "score").removeprefix("-")
        parts.append(
            _figure(
                line_chart(
                    [Curve(name, scores, "", marks=True)],
                    x=time_label,
                    y=name,
                    label=f"{name} on the validation data over training time",
                ),
                "What the best model was chosen by, on the validation data.",
            )
        )
    parts += [
        _figure(
            line_chart(
                [Curve("learning rate", points("learning_rate"), "")],
                x=time_label,
                y="learning rate",
                label="Learning rate over training time",
                height=190,
            ),
            "The learning rate: how large a step each update was allowed to take.",
        ),
        _figure(
            line_chart(
                [Curve("gradient norm", points("gradient_norm"), "")],
                x=time_label,
                y="gradient norm",
                log=True,
                label="Norm of the gradient over training time, on a logarithmic scale",
                height=190,
            ),
            "The norm of the gradient before clipping, on a logarithmic scale. Peaks are steps that would have thrown"
            " the weights far off; clipping holds them.",
        ),
    ]
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if name != "fraction"]
    rows = [[_whole(line.get(name)) for name in names] for line in lines]
    note = f" ({len(lines):,} of {found['logged']:,} lines of the log)" if len(lines) < found["logged"] else ""
    header = [name.replace("_", " ") for name in names]
    return "\n".join([*parts, _details(f"The log as numbers{note}", _table(header, rows))])


def _results_section(found: Mapping[str, Any]) -> str:
    splits = [name for name, value in found.items() if isinstance(value, dict) and name != "ngrams"]
    flat = {split: dict(_flattened(found[split])) for split in splits}
    names = list(dict.fromkeys(name for split in splits for name in flat[split]))
    simple = [name for name in names if "·" not in name]
    deep = [name for name in names if "·" in name]
    text = "What the finished model reaches on text that it was not trained on."
    if "steps" in found:
        text += (
            " The validation text chose the best weights; the test text was kept for the end, so its numbers are the"
            " ones to quote."
        )
    if "perplexity" in names:
        text += (
            " Perplexity is how many equally likely next tokens the model wavers between, on average: 1 would be"
            " certainty."
        )
    parts = [_paragraph(text)]

    def rows(chosen: Iterable[str]) -> list[list[Any]]:
        return [[name.replace("_", " "), *(flat[split].get(name) for split in splits)] for name in chosen]

    if simple:
        parts.append(_table(["", *splits], rows(simple)))
    if deep:
        parts.append(_details("In detail", _table(["", *splits], rows(deep))))
    run = {name: value for name, value in found.items() if name not in splits}
    if run:
        parts.append(
            _details("About the run", _table(["", "value"], [[n.replace("_", " "), v] for n, v in _flattened(run)]))
        )
    return "\n".join(parts)


def _flattened(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Names and single values of a nest of mappings; a list is a value."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{before}{name} · ")
        else:
            yield f"{before}{name}", value


def _bin_parts(bins: Sequence[Mapping[str, Any]], label: str, title: str) -> str:
    chart = bar_chart(
        [(each["name"], each["perplexity"]) for each in bins],
        x="perplexity (logarithmic scale)",
        y=label,
        label=title + ": " + ", ".join(f"{each['name']} {_number(each['perplexity'])}" for each in bins),
    )
    header = [label, "tokens", "nats per token", "perplexity", "% of tokens", "% of the loss"]
    rows = [
        [
            each["name"],
            each["tokens"],
            each["nats_per_token"],
            each["perplexity"],
            _percent(each["share_of_tokens"]),
            _percent(each["share_of_nats"]),
        ]
        for each in bins
    ]
    return _figure(chart) + _details("The numbers", _table(header, rows))


def _frequency_section(found: Mapping[str, Any]) -> str:
    text = (
        f"Perplexity of {_number(found['tokens'])} tokens of the {found['split']} text, grouped by how often each was"
        " seen in training. Frequent tokens are easy; of rare ones the model has seen too few examples. The table tells"
        f" how much of the loss each group makes up. Over all groups, perplexity is {_number(found['perplexity'])}."
    )
    return _paragraph(text) + _bin_parts(
        found["by_frequency"], "times seen in training", "Perplexity by frequency in training"
    )


def _position_section(found: Mapping[str, Any]) -> str:
    how = {
        "none": "This model's memory goes on from line to line.",
        "documents": "This model's memory goes on from line to line, and starts anew with each document.",
        "lines": "This model starts anew with each line, so its first tokens are predicted from nothing.",
    }
    text = (
        "The same tokens, grouped by their place in the line, the first token being 1. Where the context of the line"
        f" helps, perplexity falls along the line. {how.get(found['reset'], '')}"
    )
    return _paragraph(text) + _bin_parts(found["by_position"], "place in the line", "Perplexity by place in the line")


def _surprisal_section(found: Mapping[str, Any]) -> str:
    top = found["scale_bits"]
    spans = []
    for each in found["excerpt"]:
        bits = math.inf if each["nats"] is None else each["nats"] / math.log(2)
        level = min(8, round(8 * bits / top)) if math.isfinite(bits) else 8
        text = each["text"]
        space, word = (text[:1], text[1:]) if text[:1] == " " and len(text) > 1 else ("", text)
        word = word.replace("\n", "⏎")
        spans.append(
            f'{space}<span class="token s{level}" title="{_number(bits)} bits">{_escape(word)}</span>'
            + ("\n" if text == "\n" else "")
        )
    key = "".join(f'<span class="s{level}">{_number(top * level / 8)}</span>' for level in range(0, 9, 2))
    rows = [
        [each["token"], each["nats"], None if each["nats"] is None else each["nats"] / math.log(2)]
        for each in found["excerpt"]
    ]
    return "\n".join(
        [
            _paragraph(
                f"A piece of the {found['split']} text. The darker a token, the less the model expected it after all"
                " that was before. Look for words that are dark only at their first mention, and for light endings."
            ),
            f'<p class="key">Surprisal in bits, up to {_number(top)} and more: {key}</p>',
            f'<div class="text" lang="">{"".join(spans)}</div>',
            _details("Every token with its surprisal", _table(["token", "nats", "bits"], rows)),
        ]
    )


def _samples_section(found: Mapping[str, Any]) -> str:
    parts = [
        _paragraph(
            "Passages that the model made up, a token at a time, each drawn by the probability that the model gives it,"
            f" from the beginning of a line (seed {found['seed']}). They show what it has learnt of spelling, grammar"
            " and subject; how far a passage holds together shows how long it remembers."
        )
    ]
    for place, passage in enumerate(found["passages"], 1):
        parts.append(f"<h3>Passage {place}</h3>")
        parts.append(f'<div class="text" lang="">{_escape(passage["text"])}</div>')
        mean = _number(passage["nats_per_token"])
        note = f"{_number(passage['tokens'])} tokens, {mean} nats per token to the model itself."
        parts.append(_paragraph(note, css="missing"))
    return "\n".join(parts)


def _gradients_section(found: Mapping[str, Any]) -> str:
    curves, said, rows = [], [], []
    for each in found["layers"]:
        points = [
            (float(k), value) for k, value in zip(each["distances"], each["relative"], strict=True) if value is not None
        ]
        curves.append(Curve(f"layer {each['layer']}", points, CURVES[(each["layer"] - 1) % len(CURVES)]))
        if each["falls"]:
            said.append(f"layer {each['layer']}: half-life {_number(each['half_life'])} tokens")
        else:
            said.append(
                f"layer {each['layer']}: " + ("does not fall" if each["falls"] is False else "too few steps to say")
            )
        rows += [
            [f"layer {each['layer']}", k, value, pairs]
            for k, value, pairs in zip(each["distances"], each["relative"], each["pairs"], strict=True)
        ]
    summary = "; ".join(said)
    return "\n".join(
        [
            _paragraph(
                "How much the loss at a token would change with the hidden state some tokens earlier, relative to the"
                f" state at the token itself: the mean over {_number(found['losses'])} tokens of a text. A line that"
                " falls fast is a short memory for learning: what lies further back teaches the weights nothing. The"
                " half-life is the distance in which the gradient falls to half."
            ),
            _paragraph(f"{summary[0].upper()}{summary[1:]}."),
            _figure(
                line_chart(
                    curves,
                    x="distance (tokens back)",
                    y="gradient, relative",
                    label=f"Gradient of the loss against distance, on a logarithmic scale; {summary}",
                    log=True,
                )
            ),
            _details("The numbers", _table(["layer", "distance", "relative gradient", "pairs"], rows)),
        ]
    )


def _gates_section(found: Mapping[str, Any]) -> str:
    gate, hidden = found["gate"], found["gate"] == "hidden"
    about = {
        "forget": "The forget gate says how much of a unit's memory is kept at a token: 1 keeps all, 0 forgets.",
        "update": "The update gate says how much of a unit's old value is kept at a token: 1 keeps all, 0 none.",
        "hidden": "A plain recurrent network has no gates; these are the values of its units, from -1 to 1.",
    }
    low, high = (-1.0, 1.0) if hidden else (0.0, 1.0)
    what = "value" if hidden else f"{gate} gate"
    names = [f"unit {unit}" for unit in found["units"]]
    title = f"{what.capitalize()} of {len(names)} units of layer {found['layer']} at {len(found['tokens'])} tokens"
    parts = [
        _paragraph(
            f"{about[gate]} Shown are the units of layer {found['layer']} of {found['layers']} that move most while the"
            " model reads the text above without having read anything before. A column is a token that is read; darker"
            " is higher. A row that changes at line ends or at certain words has found something to keep track of."
        ),
        _figure(heat_map(found["values"], names, found["tokens"], low=low, high=high, label=title, what=what)),
        _details(
            "The numbers",
            _table(["token", *names], [[t, *v] for t, *v in zip(found["tokens"], *found["values"], strict=True)]),
        ),
    ]
    rows = [
        [each["layer"], each["gate"], each["mean"], _percent(each["low"]), _percent(each["high"])]
        for each in found["summary"]
    ]
    limits = ("% below -0.9", "% above 0.9") if hidden else ("% below 0.1", "% above 0.9")
    parts.append(
        _paragraph(
            f"Over all units of each layer and {_number(found['summary_tokens'])} tokens of this text: the mean, and"
            " how often a value is near its limits. There it lets information through unchanged or not at all, and"
            " learns slowly."
        )
    )
    parts.append(_table(["layer", "values" if hidden else "gate", "mean", *limits], rows))
    return "\n".join(parts)


def _settings_section(found: Mapping[str, Any]) -> str:
    parts = [_paragraph("Every setting that the model was made with, those that were chosen automatically included.")]
    for section, rows in found.items():
        table = _table(
            ["setting", "value", "what it is"], [[each["name"], _plain(each["value"]), each["about"]] for each in rows]
        )
        parts.append(f"<h3>{_escape(section.capitalize())}</h3>{table}")
    return "\n".join(parts)


def _sizes_section(found: Mapping[str, Any]) -> str:
    parts = [_paragraph("How many numbers the model is made of, and which parts of it they are in.")]
    rows = [[part.replace("_", " "), count] for part, count in found.get("parts", {}).items()]
    for name, label in (
        ("parameters", "in all"),
        ("weights_bytes", "bytes on disk"),
        ("vocabulary", "tokens in the vocabulary"),
    ):
        if found.get(name) is not None:
            rows.append([label, found[name]])
    rows += [[f"examples for {split}", count] for split, count in found.get("examples", {}).items()]
    parts.append(_table(["", "numbers"], rows))
    if found.get("tensors"):
        tensors = [
            [each["name"], " × ".join(f"{size:,}" for size in each["shape"]), each["numbers"]]
            for each in found["tensors"]
        ]
        parts.append(_details("Every tensor", _table(["tensor", "shape", "numbers"], tensors)))
    if found.get("frequent"):
        rows = [[each["token"], each["count"]] for each in found["frequent"]]
        parts.append(_details("The most frequent tokens", _table(["token", "times in training"], rows)))
    return "\n".join(parts)


def _speed_section(found: Mapping[str, Any]) -> str:
    labels = {
        "training_seconds": "seconds of training",
        "training_tokens": "tokens or targets trained on",
        "training_tokens_per_second": "of these per second",
        "reading_tokens_per_second": "tokens read per second, here and now",
        "writing_tokens_per_second": "tokens written per second, here and now",
        "threads": "threads of the processor, here and now",
    }
    rows = [[label, found[name]] for name, label in labels.items() if found.get(name) is not None]
    return _paragraph(
        "How long training took where it was done, and how fast the model is on the computer that made this page."
        " Passages are written side by side, so writing one alone is slower than the number says."
    ) + _table(["", "value"], rows)


# ---- pieces of HTML -------------------------------------------------------------------------------------------------

# What HTML does not allow: control characters, but for tab and line feed.
CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\ufffd")


def _escape(text: str) -> str:
    """Text as HTML shows it, whatever is in it; half of a surrogate pair, which no file can hold, is ``?``."""
    return html.escape(text.translate(CONTROL).encode("utf-8", "replace").decode("utf-8"))


def _paragraph(text: str, css: str = "") -> str:
    return f'<p class="{css}">{_escape(text)}</p>' if css else f"<p>{_escape(text)}</p>"


def _figure(picture: str, caption: str = "") -> str:
    below = f"<figcaption>{_escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll" tabindex="0" role="group" aria-label="picture">{picture}</div>{below}</figure>'
        if picture
        else ""
    )


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{_escape(summary)}</summary>{content}</details>"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table: numbers to the right, the rest to the left; the first cell of a row names it."""
    rows = list(rows)
    right = {column for row in rows for column, value in enumerate(row) if column and not isinstance(value, str)}
    lines = ['<div class="scroll" tabindex="0" role="group" aria-label="table"><table>', "<thead><tr>"]
    for column, name in enumerate(header):
        css = ' class="n"' if column in right else ""
        lines.append(f'<th scope="col"{css}>{_escape(name)}</th>' if name else "<td></td>")
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = []
        for column, value in enumerate(row):
            text = _escape(value if isinstance(value, str) else _number(value))
            css = ' class="n"' if column in right else ""
            cells.append(f'<th scope="row">{text}</th>' if column == 0 else f"<td{css}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _number(value: Any) -> str:
    """A number as people read it, to four digits; what is none of these as JSON has it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _whole(value: float | None) -> float | int | None:
    """Numbers of steps and the like, which the log is read as floats of, as whole numbers."""
    return int(value) if value is not None and value.is_integer() else value


def _plain(value: Any) -> str:
    """A setting as a file has it."""
    if value is None:
        return "auto"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return json.dumps(value, ensure_ascii=False)


# ---- pictures -------------------------------------------------------------------------------------------------------

CURVES = ("", "dash1", "dash2", "dash3")  # classes of lines that differ without colours
WIDTH, LEFT, RIGHT = 600, 64, 12  # of a picture, and of its margins


class Curve(NamedTuple):
    """A line of a chart: its name, its points, its class in the style sheet, whether each point has a mark."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    marks: bool = False


def line_chart(
    curves: Sequence[Curve], *, x: str, y: str, label: str, log: bool = False, log_x: bool = False, height: int = 280
) -> str:
    """A chart of lines as SVG, in the page's colours.

    Args:
        curves: those without points are left out.
        x: label of the axis, with its unit; it begins at 0 if it is not logarithmic.
        y: likewise.
        label: what is seen, for those who do not see it.
        log: whether the axis of ``y`` is logarithmic; points that are not above 0 are left out.
        log_x: likewise that of ``x``.
        height: of the picture; it is 600 wide.

    Returns:
        An ``svg`` element; nothing where there are no points.
    """
    curves = [
        curve._replace(points=[p for p in curve.points if (p[1] > 0 or not log) and (p[0] > 0 or not log_x)])
        for curve in curves
    ]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    room = (WIDTH - RIGHT - LEFT) / max(64 + 7 * len(curve.name) for curve in curves)  # legends in a row
    beside = max(1, int(room))
    top, bottom = 14 + (20 * math.ceil(len(curves) / beside) if len(curves) > 1 else 0), 44
    begin = [] if log_x else [0.0]  # times and distances begin there
    across = _Axis([*begin, *(p[0] for c in curves for p in c.points)], LEFT, WIDTH - RIGHT, log=log_x)
    up = _Axis([p[1] for c in curves for p in c.points], height - bottom - 8, top, log=log)
    parts = []
    for value in up.ticks():
        at = up.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 6, at + 4, _number(value), anchor="end"))
    parts += [_text(across.place(v), height - bottom + 16, _number(v), anchor="middle") for v in across.ticks()]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, anchor="middle"))
    middle = (top + height - bottom) / 2
    parts.append(_text(13, middle, y, anchor="middle", turn=-90))
    for number, curve in enumerate(curves):
        places = [(across.place(a), up.place(b)) for a, b in curve.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="curve {curve.css}" points="{path}"/>')
        if curve.marks:
            parts += [f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places]
        if len(curves) > 1:
            at, line = LEFT + number % beside * (WIDTH - RIGHT - LEFT) / room, 14 + 20 * (number // beside)
            parts.append(f'<line class="curve {curve.css}" x1="{at:.1f}" x2="{at + 26:.1f}" y1="{line}" y2="{line}"/>')
            parts.append(_text(at + 32, line + 4, curve.name))
    return _svg(height, label, parts)


def bar_chart(bars: Sequence[tuple[str, float | None]], *, x: str, y: str, label: str) -> str:
    """Bars as SVG, from the top in their order, on a logarithmic axis that begins at 1.

    Args:
        bars: names, and numbers of 1 or more; None for infinity, which is as long as the longest.
        x: label of the numbers.
        y: label of the names.
        label: what is seen, for those who do not see it.
    """
    left, right, step = 132, 70, 24
    height = 62 + step * len(bars)
    largest = max((value for _, value in bars if value is not None), default=10.0)
    axis = _Axis([1.0, max(largest, 2.0)], left, WIDTH - right, log=True)
    bottom = 18 + step * len(bars)
    parts = [_text(0, 12, y)]
    for tick in axis.ticks():
        at = axis.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 15, _number(tick), anchor="middle"))
    for place, (name, value) in enumerate(bars):
        top = 22 + step * place
        end = WIDTH - right if value is None else axis.place(max(1.0, value))
        parts.append(_text(left - 8, top + 13, name, anchor="end"))
        parts.append(f'<rect class="bar" x="{left}" y="{top}" width="{end - left:.1f}" height="{step - 7}"/>')
        parts.append(_text(end + 6, top + 13, "∞" if value is None else _number(value)))
    parts.append(f'<line class="axis" x1="{left}" x2="{left}" y1="20" y2="{bottom}"/>')
    parts.append(_text((left + WIDTH - right) / 2, height - 6, x, anchor="middle"))
    return _svg(height, label, parts)


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    label: str,
    what: str,
) -> str:
    """Numbers as the darkness of cells, as SVG.

    Args:
        values: ``[rows][columns]``.
        rows: names of the rows.
        columns: names of the columns, above them.
        low: the number of an empty cell.
        high: that of a full one.
        label: what is seen, for those who do not see it.
        what: the numbers are.
    """
    names = [_shortened(name) for name in columns]
    longest = max(map(len, names), default=1)
    top, step, turn = (24, 18, 0) if longest == 1 else (20 + 6 * longest, 18, -60)
    width = (WIDTH - LEFT - 44) / max(1, len(columns))
    height = top + step * len(rows) + 34
    parts = []
    for column, name in enumerate(names):
        at = LEFT + (column + 0.6) * width
        parts.append(_text(at, top - 6, name, anchor="start" if turn else "middle", turn=turn))
    for row, (name, numbers) in enumerate(zip(rows, values, strict=True)):
        parts.append(_text(LEFT - 6, top + step * row + 13, name, anchor="end"))
        for column, value in enumerate(numbers):
            share = min(1.0, max(0.0, (value - low) / (high - low)))
            parts.append(
                f'<rect class="cell" x="{LEFT + column * width:.1f}" y="{top + step * row}" width="{width:.1f}"'
                f' height="{step}" fill-opacity="{share:.3f}"><title>{_escape(name)} at {_escape(columns[column])}:'
                f" {_number(value)}</title></rect>"
            )
    below = top + step * len(rows) + 12
    parts.append(_text(LEFT, below + 12, what))
    begin = LEFT + 12 + 7 * len(what)
    for place in range(5):
        share = place / 4
        parts.append(
            f'<rect class="cell" x="{begin + 64 * place}" y="{below}" width="16" height="14" fill-opacity="{share}"/>'
        )
        parts.append(_text(begin + 64 * place + 21, below + 12, _number(low + share * (high - low))))
    return _svg(height, label, parts)


class _Axis:
    """From numbers to places between two ends of an axis."""

    def __init__(self, values: Sequence[float], begin: float, end: float, *, log: bool) -> None:
        self.begin, self.end, self.log = begin, end, log
        low, high = min(values), max(values)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Where a number is."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """A few round numbers."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = math.ceil((last - first) / 6)
            digits = (1, 2, 5) if last - first <= 2 else (1,)
            found = [digit * 10.0**power for power in range(first, last + 1, every) for digit in digits]
            found = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
            if len(found) > 1:
                return found
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * rough)
        count = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [round(number * step, 12) for number in count]


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{_escape(label)}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{_escape(text)}</text>'


def _shortened(name: str, most: int = 11) -> str:
    name = {"<eos>": "⏎", " ": "␣"}.get(name, name)
    return name if len(name) <= most else name[: most - 1] + "…"

"""The numbers of a report."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recurra import recipes, supervised
from recurra.checkpoint import WEIGHTS, read_json, read_log, read_settings, read_tensors
from recurra.config import UserError, setting
from recurra.evaluation import row_starts
from recurra.files import finite
from recurra.gradients import decay, gradient_map, unroll_model
from recurra.language_model import LanguageModel
from recurra.models.kinds import KINDS
from recurra.models.recurrent_lm import RecurrentLM
from recurra.tasks import TASKS
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import LINE_END, UNKNOWN
from recurra.tracing import trace

__all__ = ["Numbers", "ReportSettings", "measure"]

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
GATES = {"lstm": ("forget", "input", "output"), "gru": ("reset", "update"), "rnn": ("hidden",)}


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a model is asked to write for its report."""

    samples: int = setting(3, "passages that the model writes", minimum=0, maximum=1000)
    tokens: int = setting(80, "tokens of each passage, at most", minimum=1)
    seed: int = setting(1, "of the passages", minimum=0)


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
    found: Numbers = finite(numbers)
    return found


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
    logged = read_log(path)
    if logged is None:
        return None, "There is no log.jsonl in the model's folder."
    lines: list[dict[str, float]] = []
    for number, line in enumerate(logged, 1):
        try:
            lines.append({"seconds": float(line["seconds"]), **{name: float(each) for name, each in line.items()}})
        except (ValueError, TypeError, KeyError) as error:
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

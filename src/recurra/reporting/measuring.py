"""The numbers of a report."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recurra.checkpoint import WEIGHTS, read_json, read_log, read_settings, read_tensors
from recurra.config import UserError, setting
from recurra.evaluation import row_starts
from recurra.files import finite
from recurra.generation import REPLACEMENT, IncrementalDecoder
from recurra.gradients import decay, gradient_map, in_words, unroll_model
from recurra.language_model import LanguageModel
from recurra.nn import Recurrent
from recurra.opening import About, about
from recurra.optimization import norm_limit
from recurra.predictor import Predictor
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import UNKNOWN
from recurra.tracing import trace

__all__ = ["Numbers", "ReportSettings", "measure"]

Numbers = dict[str, Any]

# Tokens that are read to see what is easy and what is hard: at least and at most; between them so many that reading
# them takes some seconds. They are pieces from all over the text, where that is longer: so many, of so many tokens at
# least. The tokens before a piece are read and not counted, so that it is read with what it goes on from.
LEAST_READ, MOST_READ, WEIGHTS_READ = 2_000, 20_000, 2e11
PIECES, SHORTEST, BEFORE = 16, 500, 50
EXCERPT = {"characters": 400}  # tokens of the coloured text; of other tokenizers:
EXCERPT_WORDS = 120
TRACED, UNITS = 32, 8  # tokens and units of the picture of a gate
UNROLLED, PAIRED = 120, 5e10  # tokens that gradients flow back through, and products that this may take
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
    content, kind = read_settings(directory), about(directory)
    model = kind.open(device=device)
    missing: dict[str, str] = {}
    results_path = directory / "results.json"
    results = read_json(results_path) if results_path.exists() else None
    if results is None:
        missing["results"] = "There is no results.json: the training run was not finished, or did not happen here."
    log, why = None, "This model was made in one go, by counting or mixing: it has no learning curve."
    if kind.trained:
        log, why = _log(directory / "log.jsonl", unit=kind.unit)
    if log is None:
        missing["learning"] = why
    else:
        training = content["training"]
        log["clip_norm"] = norm_limit(training["clip_norm"], training["optimizer"])
    numbers: Numbers = {
        "model": {"name": directory.resolve().name, "kind": kind.kind, "title": kind.title},
        "learning": log,
        "results": results,
        "settings": _settings(kind, content),
        "sizes": _sizes(directory, model, content),
        "speed": _training_speed(results),
        "missing": missing,
    }
    excerpt = _measure_text(model, settings, numbers, say) if isinstance(model, LanguageModel) else None
    _look_inside(model, excerpt, numbers, say)
    found: Numbers = finite(numbers)
    return found


def _measure_text(
    lm: LanguageModel, settings: ReportSettings, numbers: Numbers, say: Callable[[str], None]
) -> TokenStream | None:
    """What a language model makes of its held-out text, of which an excerpt is returned, and what it writes."""
    missing = numbers["missing"]
    numbers["reading"] = numbers["samples"] = excerpt = None
    for split in ("valid", "test"):
        stream = lm.held_out(split)
        if stream is not None:
            sample = _sample(stream, _most(lm), lm.model.settings.reset)
            say(f"reading {len(sample.places):,} of {len(stream):,} tokens of {split}")
            numbers["reading"], excerpt = _reading(lm, split, stream, sample)
            seconds = max(1e-9, numbers["reading"]["seconds"])
            numbers["speed"]["reading_tokens_per_second"] = len(sample.stream) / seconds
            break
    else:
        missing["reading"] = "There is no held-out text in the model's folder, no training/valid and no training/test."
    if not settings.samples:
        missing["samples"] = "None were asked for."
        return excerpt
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
    return excerpt


def _look_inside(
    model: LanguageModel | Predictor,
    excerpt: TokenStream | None,
    numbers: Numbers,
    say: Callable[[str], None],
) -> None:
    """Gradients and gates of a language model's recurrent layers; of others, why there is no picture."""
    numbers["gradients"] = numbers["gates"] = None
    stack = model.recurrent
    if stack is None:
        why = "This model has no recurrent layers of its own, so no gates, and no gradients through time."
    elif not isinstance(model, LanguageModel):
        why = f"Drawn of language models alone, which read one text from its beginning; here is {_in_words(stack)}."
    elif excerpt is None:
        why = "There is no held-out text to read."
    else:
        say("looking inside")
        network: Any = copy.deepcopy(model.model)  # in float64, which not every device has; the model stays as it is
        exact = dataclasses.replace(model, model=network.cpu().double())
        numbers["gates"] = _gates(exact, excerpt)
        numbers["gradients"] = _gradients(exact, excerpt)
        return
    numbers["missing"]["gradients"] = numbers["missing"]["gates"] = why


def _in_words(stack: Recurrent) -> str:
    """What a stack is made of."""
    layers = f"{stack.num_layers} layer{'s' if stack.num_layers > 1 else ''}"
    sizes = ", ".join(f"{size:,}" for size in dict.fromkeys(stack.hidden_sizes))
    where = ", in both directions" if stack.bidirectional else ""
    return f"a stack of {layers} of {type(stack).__name__}, {sizes} units wide{where}"


def _log(path: Path, *, unit: str) -> tuple[Numbers | None, str]:
    """The lines of a training log, thinned out evenly where there are many; or why there are none."""
    logged = read_log(path)
    if logged is None:
        return None, "There is no log.jsonl in the model's folder."
    lines: list[dict[str, float]] = []
    score = "score"
    for number, line in enumerate(logged, 1):
        score = str(line.pop("score_name", score))
        try:
            lines.append({"seconds": float(line["seconds"]), **{name: float(each) for name, each in line.items()}})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}:{number}: expected names and numbers, `seconds` among them; restore it") from error
    if not lines:
        return None, "The log has no lines: training ended before the first."
    step = math.ceil(len(lines) / CURVE_POINTS)
    kept = [line for place, line in enumerate(lines) if place % step == step - 1 or "valid" in line]
    return {"lines": kept, "logged": len(lines), "unit": unit, "score_name": score}, ""


def _settings(kind: About, content: Mapping[str, Any]) -> dict[str, list[Numbers]]:
    """The resolved settings by section, each with what it does."""
    known, found = kind.sections, {}
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


def _sizes(directory: Path, model: LanguageModel | Predictor, content: Mapping[str, Any]) -> Numbers:
    """How large the model is: the numbers that were learnt or counted, and those in its file by what they are for."""
    found: Numbers = {"parameters": model.model.parameters_count}
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
        found["stored"] = sum(parts.values())
    if isinstance(model, LanguageModel):
        vocabulary = model.tokenizer.vocabulary
        found["tokenizer"] = model.tokenizer.kind
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


def _most(lm: LanguageModel) -> int:
    """How many tokens are read."""
    return int(max(LEAST_READ, min(MOST_READ, WEIGHTS_READ // max(1, lm.model.parameters_count))))


class _Sample(NamedTuple):
    """Pieces of a text.

    Attributes:
        stream: what is read.
        reset: where the model begins anew in it.
        counted: which of its tokens count, ``[tokens read]``.
        places: of these in the whole text, ``[tokens]``.
        pieces: where each piece begins and ends in the whole text.
    """

    stream: TokenStream
    reset: str
    counted: NDArray[np.bool_]
    places: NDArray[np.int64]
    pieces: list[tuple[int, int]]


def _sample(stream: TokenStream, most: int, reset: str) -> _Sample:
    """A whole text, or where it is too long pieces from all over it: at lines' starts, if there are some nearby."""
    total = len(stream)
    if total <= most:
        return _Sample(stream, reset, np.ones(total, bool), np.arange(total), [(0, total)])
    count = max(1, min(PIECES, most // SHORTEST))
    length = most // count
    lines = np.asarray(stream.line_starts)
    rows = np.asarray(row_starts(reset, stream.document_starts, lines))
    pieces, tokens, counted, starts, read = [], [], [], [], 0
    for place in np.linspace(0, total - length, count).astype(int).tolist():
        near = int(lines[min(np.searchsorted(lines, place), len(lines) - 1)])
        begin = near if place <= near < place + length // 2 else place
        end, first = place + length, max(0, begin - BEFORE)
        pieces.append((begin, end))
        tokens.append(np.asarray(stream.tokens[first:end]))
        counted.append(np.arange(first, end) >= begin)
        # Every piece begins anew, as does what the model begins anew with inside it.
        inside = rows[(rows > first) & (rows < end)]
        starts += [read, *(read + int(row) - first for row in inside)]
        read += end - first
    part = TokenStream.from_tokens(np.concatenate(tokens), starts, vocabulary=stream.vocabulary)
    places = np.concatenate([np.arange(begin, end) for begin, end in pieces])
    return _Sample(part, "documents", np.concatenate(counted), places, pieces)


def _reading(lm: LanguageModel, split: str, whole: TokenStream, sample: _Sample) -> tuple[Numbers, TokenStream]:
    """Surprisal of held-out tokens by frequency and by position, with an excerpt; and the excerpt."""
    nats = np.empty(len(sample.stream))
    seconds = lm.evaluate(sample.stream, reset=sample.reset, per_token=nats).seconds
    nats = nats[sample.counted]
    tokens = np.asarray(sample.stream.tokens, dtype=np.int64)[sample.counted]
    counts = np.asarray(lm.tokenizer.vocabulary.counts)[tokens]
    edges = [0, *(10**k for k in range(1, 1 + len(str(int(counts.max(initial=0))))))]
    frequency = np.searchsorted(edges, counts)
    frequency[tokens == UNKNOWN] = len(edges)
    names = ["0", *(_span(low + 1, high) for low, high in itertools.pairwise(edges)), "<unk>"]
    begins = np.asarray(whole.line_starts)
    place = sample.places - begins[np.searchsorted(begins, sample.places, side="right") - 1]  # in the line, from 0
    doubling = [0, *(2**k for k in range(1 + int(place.max(initial=0)).bit_length()))]
    position = np.searchsorted(doubling, place, side="right") - 1
    places = [_span(low + 1, high) for low, high in zip(doubling, [*doubling[1:], math.inf], strict=True)]
    wanted = EXCERPT.get(lm.tokenizer.kind, EXCERPT_WORDS)
    begin, end = _middle(begins, *sample.pieces[len(sample.pieces) // 2], wanted)
    documents = [0, *(int(start) - begin for start in whole.document_starts if begin < start < end)]
    excerpt = TokenStream.from_tokens(np.asarray(whole.tokens[begin:end]), documents, vocabulary=whole.vocabulary)
    ids, first = excerpt.tokens.tolist(), int(np.searchsorted(sample.places, begin))
    mean = float(nats.mean())
    numbers = {
        "split": split,
        "tokens": len(tokens),
        "of": len(whole),
        "pieces": len(sample.pieces),
        "reset": lm.model.settings.reset,
        "nats_per_token": mean,
        "perplexity": _perplexity(mean),
        "seconds": seconds,
        "by_frequency": _bins(names, frequency, nats),
        "by_position": _bins(places, position, nats),
        "scale_bits": SCALE_BITS.get(lm.tokenizer.kind, SCALE_BITS_WORDS),
        "excerpt": [
            {"token": lm.tokenizer.token(id), "text": text, "nats": surprisal}
            for id, text, surprisal in zip(ids, _texts(lm.tokenizer, ids), nats[first:].tolist(), strict=False)
        ],
    }
    return numbers, excerpt


def _perplexity(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _bins(names: Sequence[str], bins: NDArray[Any], nats: NDArray[np.float64]) -> list[Numbers]:
    """Mean surprisal of the tokens of each bin that has some; their mean, weighted by tokens, is that of all."""
    sums, sizes, total = np.zeros(len(names)), np.bincount(bins, minlength=len(names)), float(nats.sum())
    np.add.at(sums, bins, nats)
    return [
        {
            "name": name,
            "tokens": size,
            "nats_per_token": nats_of / size,
            "perplexity": _perplexity(nats_of / size),
            "share_of_tokens": size / len(bins),
            "share_of_nats": nats_of / total if total and math.isfinite(total) else math.nan,
        }
        for name, size, nats_of in zip(names, sizes.tolist(), sums.tolist(), strict=True)
        if size
    ]


def _span(low: int, high: float) -> str:
    return f"{low:,}+" if high == math.inf else f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _middle(line_starts: NDArray[Any], low: int, high: int, wanted: int) -> tuple[int, int]:
    """An excerpt of a piece: from a line's start near its middle that has enough tokens after it, if there is one."""
    place = max(low, min((low + high) // 2, high - wanted))
    begin = max(low, int(line_starts[np.searchsorted(line_starts, place, side="right") - 1]))
    return begin, min(high, begin + wanted)


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text, with the space before it; a part of a character adds nothing yet."""
    decoder, texts = IncrementalDecoder(tokenizer.decode), []
    for id in ids:
        text = decoder.push(id)
        if id == UNKNOWN:  # which may be written like what is no character yet
            text += decoder.finish()
            text = text.removesuffix(REPLACEMENT) + "<unk>" if text.endswith(REPLACEMENT) else text
        texts.append(text)
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
    model: Any = lm.model
    tokens = example.tokens[:UNROLLED]
    starts = row_starts(model.settings.reset, example.document_starts, example.line_starts)
    inside = [int(start) for start in starts if start < len(tokens)]
    # A pair of steps takes about as many products as there are weights; where that is too much, fewer losses do.
    stride = math.ceil(model.parameters_count * len(tokens) ** 2 / PAIRED)
    stride = max(1, min(stride, len(tokens) // 10))
    found = gradient_map(unroll_model(model, tokens, starts=inside), stride=stride)
    states = ("hidden",) if found.cell is None else ("hidden", "cell")
    curves = [(layer, state, decay(found, layer, state)) for layer in range(len(found.hidden)) for state in states]
    return {
        "tokens": len(tokens),
        "losses": len(found.steps),
        "layers": [
            {
                "layer": layer + 1,
                "state": "" if found.cell is None else {"hidden": "h", "cell": "c"}[state],
                "distances": curve.distances.tolist(),
                "relative": curve.relative.tolist(),
                "pairs": curve.counts.tolist(),
                "half_life": curve.half_life,  # in tokens
                "in_words": in_words(curve),
                "fitted": curve.fitted,
            }
            for layer, state, curve in curves
        ],
    }

"""The page of a report: HTML of its numbers, section by section."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from recurra.reporting.charts import Curve, bar_chart, heat_map, line_chart
from recurra.reporting.markup import details, escape, figure, number, paragraph, percent, plain, table, whole

__all__ = ["page"]

UNIT_NAMES = {"characters": "characters", "words": "words", "whitespace": "words", "byte-pairs": "pieces of words"}
RESULTS = "How good it is"
CURVES = ("", "dash1", "dash2", "dash3")  # classes of lines that differ without colours


def page(numbers: Mapping[str, Any], *, version: str = "") -> str:
    """The page that says what :func:`measure` found: a whole HTML document.

    Args:
        numbers: of :func:`measure`.
        version: of Recurra, for the last line.
    """
    sections = {
        "learning": ("How it learnt", _learning_section),
        "results": (RESULTS, _results_section),
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
    found = {
        name: (heading, make(numbers[of]))
        for name, (heading, make) in sections.items()
        if numbers.get(of := source.get(name, name)) is not None
    }
    reasons: dict[str, list[str]] = {}  # a reason once, with all that is missing for it
    for name, (heading, _) in sections.items():
        if name not in found and source.get(name, name) in numbers["missing"]:
            reasons.setdefault(numbers["missing"][source.get(name, name)], []).append(heading)
    if reasons:
        found["missing"] = ("What is not here", table(["", ""], (["; ".join(of), why] for why, of in reasons.items())))
    bodies = [
        f'<section id="{name}" aria-labelledby="{name}-heading">\n'
        f'<h2 id="{name}-heading">{heading}</h2>\n{body}\n</section>'
        for name, (heading, body) in found.items()
    ]
    template = Template(resources.files("recurra.reporting").joinpath("page.html.template").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(f"{numbers['model']['name']}: {numbers['model']['title']}"),
        made_by=escape(f"Recurra {version}".strip()),
        summary=_summary(numbers),
        contents="\n".join(f'<li><a href="#{name}">{heading}</a></li>' for name, (heading, _) in found.items()),
        sections="\n".join(bodies),
    )


def _summary(numbers: Mapping[str, Any]) -> str:
    """What the model is, in a sentence or two."""
    sizes, results = numbers["sizes"], numbers["results"] or {}
    title = numbers["model"]["title"]
    parts = [f"{'An' if title[0] in 'aeiou' else 'A'} {title}"]
    if sizes.get("parameters") is not None:
        parts.append(f"with {number(sizes['parameters'])} parameters")
    if sizes.get("vocabulary") is not None:
        parts.append(f"over a vocabulary of {number(sizes['vocabulary'])} {UNIT_NAMES[sizes['tokenizer']]}")
    said = [
        f"{split} perplexity {number(results[split]['perplexity'])}"
        for split in ("valid", "test")
        if isinstance(results.get(split), dict) and "perplexity" in results[split]
    ]
    return paragraph(" ".join(parts) + "." + (f" {'; '.join(said).capitalize()}." if said else ""))


def _learning_section(found: Mapping[str, Any]) -> str:
    lines, unit = found["lines"], found["unit"]
    total = lines[-1]["seconds"]
    scale, time_label = (60, "training time (minutes)") if total >= 120 else (1, "training time (seconds)")

    def points(name: str, sign: float = 1.0) -> list[tuple[float, float]]:
        return [(line["seconds"] / scale, sign * line[name]) for line in lines if line.get(name) is not None]

    valid, limit = points("valid"), found["clip_norm"]
    clipped = [(0.0, limit), (total / scale, limit)] if limit else []
    parts = [
        paragraph(
            f"The loss is the mean surprise at each {unit} it had to predict; lower is better. The thin line is the"
            " text it was learning from, the strong one text set aside. If the strong line turns up while the thin one"
            " goes on falling, the model has begun to learn its text by heart."
        ),
        figure(
            line_chart(
                [Curve("training", points("loss"), "quiet"), Curve("validation", valid, "", marks=True)],
                x=time_label,
                end=total / scale,
                y=f"loss (nats per {unit})",
                label="Training and validation loss over training time"
                + (f"; the last validation loss is {number(valid[-1][1])}" if valid else ""),
            )
        ),
    ]
    if scores := points("score", -1.0 if found["score_name"].startswith("-") else 1.0):
        name = found["score_name"].removeprefix("-").replace("_", " ")
        parts.append(
            figure(
                line_chart(
                    [Curve(name, scores, "", marks=True)],
                    x=time_label,
                    end=total / scale,
                    y=name,
                    label=f"{name} on the validation data over training time",
                ),
                "What the best model was chosen by, on the validation data.",
            )
        )
    parts += [
        figure(
            line_chart(
                [Curve("learning rate", points("learning_rate"), "")],
                x=time_label,
                end=total / scale,
                y="learning rate",
                label="Learning rate over training time",
                height=190,
            ),
            "The learning rate: how large a step each update was allowed to take.",
        ),
        figure(
            line_chart(
                [Curve("before clipping", points("gradient_norm"), ""), Curve("clipped at", clipped, "dash1")],
                x=time_label,
                end=total / scale,
                y="gradient norm (nats)",
                log=True,
                label="Norm of the gradient over training time, on a logarithmic scale",
                height=190,
            ),
            "The norm of the gradient before clipping, on a logarithmic scale. Peaks are steps that would have thrown"
            " the weights far off"
            + (f"; those above {number(limit)} were made as short as that." if limit else ", and were not clipped."),
        ),
    ]
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if name != "fraction"]
    rows = [[whole(line.get(name)) for name in names] for line in lines]
    note = f" ({len(lines):,} of {found['logged']:,} lines of the log)" if len(lines) < found["logged"] else ""
    header = [name.replace("_", " ") for name in names]
    return "\n".join([*parts, details(f"The log as numbers{note}", table(header, rows))])


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
    parts = [paragraph(text)]

    def rows(chosen: Iterable[str]) -> list[list[Any]]:
        return [[name.replace("_", " "), *(flat[split].get(name) for split in splits)] for name in chosen]

    if simple:
        parts.append(table(["", *splits], rows(simple)))
    if deep:
        parts.append(details("In detail", table(["", *splits], rows(deep))))
    run = {name: value for name, value in found.items() if name not in splits}
    if run:
        parts.append(
            details("About the run", table(["", "value"], [[n.replace("_", " "), v] for n, v in _flattened(run)]))
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
        label=title + ": " + ", ".join(f"{each['name']} {number(each['perplexity'])}" for each in bins),
    )
    header = [label, "tokens", "nats per token", "perplexity", "% of tokens", "% of the loss"]
    rows = [
        [
            each["name"],
            each["tokens"],
            each["nats_per_token"],
            each["perplexity"],
            percent(each["share_of_tokens"]),
            percent(each["share_of_nats"]),
        ]
        for each in bins
    ]
    return figure(chart) + details("The numbers", table(header, rows))


def _frequency_section(found: Mapping[str, Any]) -> str:
    tokens, split, whole_text = number(found["tokens"]), found["split"], found["tokens"] == found["of"]
    what = (
        f"all {tokens} tokens of the {split} text"
        if whole_text
        else f"a sample of {tokens} of {number(found['of'])} tokens, from {found['pieces']} places all over the {split}"
        " text"
    )
    also = "" if whole_text else f" in this sample; that of the whole {split} text is under “{RESULTS}”"
    text = (
        f"Perplexity of {what}, grouped by how often each was seen in training. Frequent tokens are easy; of rare ones"
        " the model has seen too few examples. The table tells how much of the loss each group makes up. Over all"
        f" groups, perplexity is {number(found['perplexity'])}{also}."
    )
    return paragraph(text) + _bin_parts(
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
    return paragraph(text) + _bin_parts(found["by_position"], "place in the line", "Perplexity by place in the line")


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
            f'{space}<span class="token s{level}" title="{number(bits)} bits">{escape(word)}</span>'
            + ("\n" if text == "\n" else "")
        )
    key = "".join(f'<span class="s{level}">{number(top * level / 8)}</span>' for level in range(0, 9, 2))
    rows = [
        [each["token"], each["nats"], None if each["nats"] is None else each["nats"] / math.log(2)]
        for each in found["excerpt"]
    ]
    return "\n".join(
        [
            paragraph(
                f"A piece of the {found['split']} text. The stronger its colour, the less the model expected a token"
                " after all that was before. Look for pale endings, and in a model with a memory for words that"
                " stand out only at their first mention."
            ),
            f'<p class="key">Surprisal in bits, up to {number(top)} and more: {key}</p>',
            f'<div class="text" lang="">{"".join(spans)}</div>',
            details("Every token with its surprisal", table(["token", "nats", "bits"], rows)),
        ]
    )


def _samples_section(found: Mapping[str, Any]) -> str:
    parts = [
        paragraph(
            "Passages that the model made up, a token at a time, each drawn by the probability that the model gives it"
            f" among all but <unk>, from the beginning of a line (seed {found['seed']}). They show what it has learnt"
            " of spelling, grammar and subject; how far a passage holds together shows how long it remembers."
        )
    ]
    for place, passage in enumerate(found["passages"], 1):
        parts.append(f"<h3>Passage {place}</h3>")
        parts.append(f'<div class="text" lang="">{escape(passage["text"])}</div>')
        mean = number(passage["nats_per_token"])
        note = f"{number(passage['tokens'])} tokens, {mean} nats per token to the model itself."
        parts.append(paragraph(note, css="note"))
    return "\n".join(parts)


def _gradients_section(found: Mapping[str, Any]) -> str:
    curves: list[Curve] = []
    said, rows = [], []
    for each in found["layers"]:
        points = [
            (float(k), value)
            for k, value in zip(each["distances"], each["relative"], strict=True)
            if value is not None and k <= each["fitted"]  # beyond, means are of few losses; they are in the table
        ]
        name = f"layer {each['layer']}" + (f", {each['state']}" if each["state"] else "")
        curves.append(Curve(name, points, CURVES[len(curves) % len(CURVES)]))
        said.append(f"{name}: {each['in_words']}")
        rows += [
            [name, k, value, pairs]
            for k, value, pairs in zip(each["distances"], each["relative"], each["pairs"], strict=True)
        ]
    summary = "; ".join(said)
    return "\n".join(
        [
            paragraph(
                "How much the loss at a token would change with the hidden state some tokens earlier, relative to the"
                f" state at the token itself: the mean over {number(found['losses'])} tokens of a text. A line that"
                " falls fast is a short memory for learning: what lies further back teaches the weights nothing. In an"
                " LSTM, c is the memory; h drops after one token, as it acts through the next gates alone. The"
                " half-life is the distance in which the gradient falls to half by a straight line through the curve;"
                " where it is not, the distance at which half is left stands beside. Lines end where fewer than half of"
                " these tokens have a state as far back; the table goes on."
            ),
            paragraph(f"{summary[0].upper()}{summary[1:]}."),
            figure(
                line_chart(
                    curves,
                    x="distance (tokens back)",
                    y="gradient, relative",
                    label=f"Gradient of the loss against distance, on a logarithmic scale; {summary}",
                    log=True,
                )
            ),
            details("The numbers", table(["layer", "distance", "relative gradient", "pairs"], rows)),
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
        paragraph(
            f"{about[gate]} Shown are the units of layer {found['layer']} of {found['layers']} that move most while the"
            " model reads the text above without having read anything before. A column is a token that is read; a"
            " stronger colour is a higher value. A row that changes at line ends or at certain words has found"
            " something to keep track of."
        ),
        figure(heat_map(found["values"], names, found["tokens"], low=low, high=high, label=title, what=what)),
        details(
            "The numbers",
            table(["token", *names], [[t, *v] for t, *v in zip(found["tokens"], *found["values"], strict=True)]),
        ),
    ]
    rows = [
        [each["layer"], each["gate"], each["mean"], percent(each["low"]), percent(each["high"])]
        for each in found["summary"]
    ]
    limits = ("% below -0.9", "% above 0.9") if hidden else ("% below 0.1", "% above 0.9")
    parts.append(
        paragraph(
            f"Over all units of each layer and {number(found['summary_tokens'])} tokens of this text: the mean, and"
            " how often a value is near its limits. There it lets information through unchanged or not at all, and"
            " learns slowly."
        )
    )
    parts.append(table(["layer", "values" if hidden else "gate", "mean", *limits], rows))
    return "\n".join(parts)


def _settings_section(found: Mapping[str, Any]) -> str:
    parts = [
        paragraph(
            "Every setting that the model was made with, those chosen from the data included; auto is what was left to"
            " the program."
        )
    ]
    for section, rows in found.items():
        shown = [[each["name"], plain(value), each["about"]] for each in rows for value in _each(each["value"])]
        header = ["setting", "value", "what it is"]
        if not any(about for _, _, about in shown):
            header, shown = header[:2], [row[:2] for row in shown]
        parts.append(f"<h3>{escape(section.capitalize())}</h3>{table(header, shown)}")
    return "\n".join(parts)


def _each(value: Any) -> list[Any]:
    """The models of a mixture, a row for each; any other value as it is."""
    return value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]


def _sizes_section(found: Mapping[str, Any]) -> str:
    text = "How many numbers the model has learnt or counted."
    if "stored" in found:
        text = "How many numbers each part of the model's file has, and all of them together."
        if found["stored"] != found["parameters"]:
            text += (
                " Not all of these were learnt or counted: some only say where others are to be found, or save working"
                " something out each time."
            )
    parts = [paragraph(text)]
    rows = [[part.replace("_", " "), count] for part, count in found.get("parts", {}).items()]
    for name, label in (
        ("stored", "stored, all together"),
        ("parameters", "learnt or counted"),
        ("weights_bytes", "bytes on disk"),
        ("vocabulary", "tokens in the vocabulary"),
    ):
        if found.get(name) is not None:
            rows.append([label, found[name]])
    rows += [[f"examples for {split}", count] for split, count in found.get("examples", {}).items()]
    parts.append(table(["", "numbers"], rows))
    if found.get("tensors"):
        tensors = [
            [each["name"], " × ".join(f"{size:,}" for size in each["shape"]), each["numbers"]]
            for each in found["tensors"]
        ]
        parts.append(details("Every tensor", table(["tensor", "shape", "numbers"], tensors)))
    if found.get("frequent"):
        rows = [[each["token"], each["count"]] for each in found["frequent"]]
        parts.append(details("The most frequent tokens", table(["token", "times in training"], rows)))
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
    return paragraph(
        "How long training took where it was done, and how fast the model is on the computer that made this page."
        " Pieces of a text may be read, and passages are written, side by side: one alone is slower than that."
    ) + table(["", "value"], rows)

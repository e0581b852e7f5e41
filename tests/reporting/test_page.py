"""The page about a model: every section is there, says what the numbers say, and is safe to open."""

from __future__ import annotations

import html
import json
import math
import random
import re
import shutil
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import recurra
from recurra import gradients, reporting
from recurra.commands.report import COMMANDS
from recurra.config import ArgumentParser, UserError
from recurra.evaluation import surprisals
from recurra.reporting import ReportSettings, measure, measuring, page, report
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END

BAD = "<script>alert(1)</script>"
SECTIONS = (
    "learning results frequency position surprisal samples gradients gates settings sizes speed".split()  # noqa: SIM905
)
SHORT = {"tokenizer": "whitespace", "hidden_size": 6, "batch_size": 2, "chunk_length": 5, "dropout": 0.0}
VOID = {"meta", "br", "hr", "img", "link", "input"}


def text_of(lines, seed=0):
    """Lines of different lengths with frequent and rare words, and with some that are no words."""
    chance = random.Random(seed)
    words = [
        "the",
        "a",
        "dog",
        "cat",
        "hen",
        "sees",
        "bites",
        "&amp;",
        "\"x'",
        "…",
        BAD,
        *(f"rare{n}" for n in range(30)),
    ]
    weights = [60, 30, *[8] * 8, 5, *[0.5] * 30]
    return "".join(" ".join(chance.choices(words, weights, k=chance.randint(1, 11))) + "\n" for _ in range(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reporting")
    (path / "text.txt").write_text(text_of(250))
    return path


@pytest.fixture(scope="module")
def lstm(folder):
    recurra.train_lm(
        folder / "text.txt", folder / "lstm", **SHORT, layers=2, max_steps=30, log_every=5, evaluate_every=10
    )
    return folder / "lstm"


@pytest.fixture(scope="module")
def ngram(folder):
    recurra.train_lm(
        folder / "text.txt", folder / "ngram", kind="ngram", tokenizer="whitespace", order=3, discount_fallback=True
    )
    return folder / "ngram"


@pytest.fixture(scope="module")
def tagger(folder):
    chance = random.Random(2)
    tags = {"the": "DET", "dog": "NOUN", "sees": "VERB"}
    sentences = ("".join(f"{w}\t{tags[w]}\n" for w in chance.choices(list(tags), k=4)) + "\n" for _ in range(80))
    (folder / "tags.txt").write_text("".join(sentences))
    small = {"hidden_size": 5, "word_size": 5, "max_steps": 6, "log_every": 2, "evaluate_every": 3}
    recurra.train_task("tagger", folder / "tags.txt", folder / "tagger", **small)
    return folder / "tagger"


@pytest.fixture(scope="module")
def numbers(lstm):
    return measure(lstm, ReportSettings(samples=2, tokens=12, seed=3))


@pytest.fixture(scope="module")
def counted(ngram):
    return measure(ngram, ReportSettings(samples=1, tokens=12))


class Page(HTMLParser):
    """What is in a page: its elements, its ids, the text and the rows of tables of each section."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.ids = [], [], []
        self.text, self.rows, self.section = defaultdict(str), defaultdict(list), ""
        self.cell = None
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.note(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.note(tag, attributes)

    def note(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"twice in {tag}: {names}"
        values = dict(attributes)
        self.elements.append((tag, values))
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "section":
            self.section = values["id"]
        if tag == "tr":
            self.rows[self.section].append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[self.section][-1][-1] += data


def run(*arguments):
    parser = ArgumentParser(prog="recurra report")
    COMMANDS["report"].flags(parser)
    return COMMANDS["report"].run(parser.parse_args([str(argument) for argument in arguments]))


def number(text):
    return float(text.replace(",", "")) if text not in ("–", "∞") else None


def close(text, value):
    """Whether a text is a number to the four digits that the page has."""
    return number(text) == (None if value is None else pytest.approx(value, rel=5.1e-4))


# ---- the page -------------------------------------------------------------------------------------------------------


def test_every_section_is_there_for_a_recurrent_model(numbers):
    found = Page(page(numbers))
    assert [name for name in found.ids if not name.endswith("-heading")] == SECTIONS
    assert numbers["missing"] == {}
    for name in SECTIONS:
        assert found.rows[name] or name == "samples", name
    pictures = [values["aria-label"] for tag, values in found.elements if tag == "svg"]
    assert [label.split()[0] for label in pictures] == [
        *("Training", "Learning", "Norm", "Perplexity", "Perplexity", "Gradient", "Forget")
    ]


def shown_sections(found):
    return [name for name in found.ids if not name.endswith("-heading")]


def test_an_ngram_model_says_what_it_has_not(counted):
    found = Page(page(counted))
    none = ("learning", "gradients", "gates")
    assert shown_sections(found) == [*(name for name in SECTIONS if name not in none), "missing"]
    assert set(counted["missing"]) == set(none)
    assert [row[0] for row in found.rows["missing"][1:]] == [
        "How it learnt",
        "How far gradients flow back; What its gates do",
    ]
    assert "by counting" in found.rows["missing"][1][1]
    assert "no recurrent layers" in found.rows["missing"][2][1]
    assert counted["reading"]["by_frequency"]
    assert counted["samples"]["passages"][0]["text"]


def test_stored_numbers_are_the_sum_of_the_parts_and_not_those_that_were_counted(counted, ngram):
    sizes = counted["sizes"]
    assert sum(sizes["parts"].values()) == sizes["stored"]
    assert sizes["parameters"] == recurra.load(ngram).model.parameters_count
    assert sizes["parameters"] < sizes["stored"]  # keys are stored, too
    found = Page(page(counted))
    rows = {cells[0]: cells[1] for cells in found.rows["sizes"]}
    assert number(rows["stored, all together"]) == sizes["stored"]
    assert number(rows["learnt or counted"]) == sizes["parameters"]
    assert sum(number(rows[part.replace("_", " ")]) for part in sizes["parts"]) == sizes["stored"]
    assert "Not all of these were learnt or counted" in found.text["sizes"]


@pytest.mark.parametrize("which", ["numbers", "counted"])
def test_the_page_needs_nothing_else_and_nothing_in_it_runs(which, request):
    content = page(request.getfixturevalue(which))
    found = Page(content)
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import", content)
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "image"})
    for tag, values in found.elements:
        assert not any(name.startswith("on") or name in ("src", "style") for name in values), tag
        if "href" in values:
            assert values["href"][0] == "#"
            assert values["href"][1:] in found.ids
        if "aria-labelledby" in values:
            assert values["aria-labelledby"] in found.ids
        if tag == "svg":
            assert values["role"] == "img"
            assert values["aria-label"]
    assert len(found.ids) == len(set(found.ids))
    assert "prefers-color-scheme: dark" in content
    assert "@media print" in content
    assert content.startswith("<!doctype html>")


def test_tokens_are_escaped_and_shown(numbers):
    content = page(numbers)
    assert BAD not in content
    assert html.escape(BAD) in content
    found = Page(content)
    excerpt = "".join(each["text"] for each in numbers["reading"]["excerpt"])
    assert BAD in excerpt
    assert excerpt.replace("\n", "⏎\n") in found.text["surprisal"]
    assert any(row and row[0] == BAD for row in found.rows["surprisal"])


@pytest.mark.parametrize("text", ["\ud800", "\x00\x07", "$title ${x} $$", "</pre></section>", "'\"><b onclick=1>"])
def test_whatever_a_token_is_the_page_holds(text, numbers):
    changed = json.loads(json.dumps(numbers))
    changed["samples"]["passages"][0]["text"] = text
    changed["reading"]["excerpt"][0] |= {"token": text, "text": text}
    changed["gates"]["tokens"][0] = text
    changed["sizes"]["frequent"][0]["token"] = text
    changed["model"]["name"] = text
    changed["settings"]["corpus"][0]["value"] = [text]
    content = page(changed)
    content.encode("utf-8")
    assert "\x00" not in content
    found = Page(content)
    assert [name for name in found.ids if not name.endswith("-heading")] == SECTIONS
    assert not any("onclick" in values for _, values in found.elements)
    if "$" in text or "<" in text:
        assert text in found.text["samples"]


def test_the_page_says_the_numbers(numbers):
    rows = Page(page(numbers)).rows
    reading = numbers["reading"]
    for section in ("frequency", "position"):
        shown = rows[section][1:]
        assert len(shown) == len(reading[f"by_{section}"])
        for cells, each in zip(shown, reading[f"by_{section}"], strict=True):
            assert cells[0] == each["name"]
            assert int(cells[1].replace(",", "")) == each["tokens"]
            assert close(cells[2], each["nats_per_token"])
            assert close(cells[3], each["perplexity"])
            assert close(cells[4], 100 * each["share_of_tokens"])
            assert close(cells[5], 100 * each["share_of_nats"])
    header, *lines = rows["learning"]
    for cells, line in zip(lines, numbers["learning"]["lines"], strict=True):
        for name, cell in zip(header, cells, strict=True):
            assert close(cell, line.get(name.replace(" ", "_")))
    results = {cells[0]: cells[1:] for cells in rows["results"][1:]}
    assert rows["results"][0] == ["", "valid", "test"]
    for place, split in enumerate(("valid", "test")):
        assert close(results["perplexity"][place], numbers["results"][split]["perplexity"])
    assert close(results["parameters"][0], numbers["results"]["parameters"])
    for cells, each in zip(rows["surprisal"][1:], reading["excerpt"], strict=True):
        assert cells[0].strip() == each["token"].strip()
        assert close(cells[1], each["nats"])
        assert close(cells[2], each["nats"] / math.log(2))
    gates = numbers["gates"]
    table = rows["gates"][1 : 1 + len(gates["tokens"])]
    for place, cells in enumerate(table):
        assert cells[0] == gates["tokens"][place]
        assert all(close(cell, unit[place]) for cell, unit in zip(cells[1:], gates["values"], strict=True))
    decays = [
        (f"layer {e['layer']}, {e['state']}", k, v)
        for e in numbers["gradients"]["layers"]
        for k, v in zip(e["distances"], e["relative"], strict=True)
    ]
    for cells, (layer, distance, value) in zip(rows["gradients"][1:], decays, strict=True):
        assert (cells[0], int(cells[1])) == (layer, distance)
        assert close(cells[2], value)
    settings = {cells[0]: cells[1] for cells in rows["settings"]}
    assert settings["hidden_size"] == "6"
    assert settings["max_minutes"] == "auto"
    sizes = {cells[0]: cells[1] for cells in rows["sizes"]}
    assert close(sizes["learnt or counted"], numbers["sizes"]["parameters"])
    assert sum(numbers["sizes"]["parts"].values()) == numbers["sizes"]["stored"] == numbers["sizes"]["parameters"]


# ---- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["lstm", "ngram"])
@pytest.mark.parametrize("by", ["frequency", "position"])
def test_bins_make_up_the_whole(which, by, request):
    reading = measure(request.getfixturevalue(which), ReportSettings(samples=0))["reading"]
    bins = reading[f"by_{by}"]
    assert sum(each["tokens"] for each in bins) == reading["tokens"]
    mean = sum(each["tokens"] * each["nats_per_token"] for each in bins) / reading["tokens"]
    assert math.exp(mean) == pytest.approx(reading["perplexity"])
    assert sum(each["share_of_nats"] for each in bins) == pytest.approx(1)
    assert sum(each["share_of_tokens"] for each in bins) == pytest.approx(1)


@pytest.mark.parametrize("which", ["lstm", "ngram"])
def test_bins_are_those_of_a_dictionary(which, request):
    directory = request.getfixturevalue(which)
    lm = recurra.load(directory)
    stream = TokenStream.open(directory / "training" / "valid")
    tokens = stream.tokens.tolist()
    nats = surprisals(lm.model, stream.tokens, reset=lm.model.settings.reset, line_starts=stream.line_starts)
    by_count, by_place, place = defaultdict(list), defaultdict(list), 1
    for token, surprisal in zip(tokens, nats, strict=True):
        count = lm.tokenizer.vocabulary.counts[token]
        low, high = next((a, b) for a, b in ((1, 10), (11, 100), (101, 1000), (1001, 10**4), (0, 0)) if a <= count <= b)
        by_count["<unk>" if token == 0 else f"{low:,}–{high:,}"].append(surprisal)
        name = next(n for n, last in (("1", 1), ("2", 2), ("3–4", 4), ("5–8", 8), ("9–16", 16)) if place <= last)
        by_place[name].append(surprisal)
        place = 1 if token == 1 else place + 1
    reading = measure(directory, ReportSettings(samples=0))["reading"]
    assert reading["tokens"] == reading["of"] == len(tokens)
    for expected, bins in ((by_count, reading["by_frequency"]), (by_place, reading["by_position"])):
        found = {each["name"].replace("9+", "9–16"): each for each in bins}
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name]["tokens"] == len(values)
            assert found[name]["perplexity"] == pytest.approx(np.exp(np.mean(values)), rel=1e-4)


@pytest.fixture
def short(monkeypatch):
    """A long text is one of more than 60 tokens, of which 4 pieces of 15 or less are read."""
    for name, value in {"LEAST_READ": 60, "WEIGHTS_READ": 0, "SHORTEST": 15}.items():
        monkeypatch.setattr(measuring, name, value)


def test_a_sample_is_of_pieces_from_all_over_the_text(short, lstm):
    stream = TokenStream.open(lstm / "training" / "valid")
    found = measuring._sample(stream, 60, "none")
    begins, ends = zip(*found.pieces, strict=True)
    assert len(found.pieces) == 4
    assert begins[0] == 0
    assert ends[-1] == len(stream)
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
    assert len(set(begins) & set(stream.line_starts.tolist())) >= 2  # the others have none nearby
    assert found.places.tolist() == [place for piece in found.pieces for place in range(*piece)]
    assert np.array_equal(found.stream.tokens[found.counted], stream.tokens[found.places])


@pytest.mark.parametrize("reset", ["none", "lines", "documents"])
def test_a_sample_is_read_with_what_stands_before_it(reset, short, lstm, folder, monkeypatch):
    if reset != "none":
        (folder / "two").mkdir(exist_ok=True)
        for name in "ab":
            (folder / "two" / f"{name}.txt").write_text(text_of(125, seed=ord(name)))
        options = {**SHORT, "valid": str(folder / "two"), "reset": reset, "max_steps": 3}
        lstm = folder / f"lstm-{reset}"
        recurra.train_lm(folder / "text.txt", lstm, **options, overwrite=True)
    monkeypatch.setattr(measuring, "BEFORE", 10**6)  # then every piece is read as in the whole text
    lm = recurra.load(lstm)
    stream = lm.held_out()
    whole = np.empty(len(stream))
    lm.evaluate(stream, per_token=whole)
    sample = measuring._sample(stream, 60, reset)
    reading = measure(lstm, ReportSettings(samples=0))["reading"]
    assert reading["tokens"] == len(sample.places) < reading["of"] == len(stream)
    assert (reading["pieces"], reading["reset"]) == (4, reset)
    assert reading["nats_per_token"] == pytest.approx(whole[sample.places].mean(), rel=1e-4)
    begins = np.asarray(stream.line_starts)
    first = whole[sample.places[np.isin(sample.places, begins)]]
    assert reading["by_position"][0]["nats_per_token"] == pytest.approx(first.mean(), rel=1e-4)
    for each in reading["excerpt"]:
        assert each["nats"] == pytest.approx(whole[np.abs(whole - each["nats"]).argmin()], rel=1e-4)


def test_a_sample_says_that_it_is_one(short, lstm, numbers):
    found = measure(lstm, ReportSettings(samples=0))
    shown = Page(page(found)).text["frequency"]
    reading = found["reading"]
    assert f"a sample of {reading['tokens']} of {reading['of']:,} tokens, from 4 places all over the valid" in shown
    assert "that of the whole valid text is under" in shown
    assert f"all {numbers['reading']['of']:,} tokens of the valid text" in Page(page(numbers)).text["frequency"]


@pytest.mark.parametrize("reset", ["none", "documents", "lines"])
def test_every_piece_of_a_sample_begins_anew_and_so_do_rows_in_it(reset):
    ids = np.full(60_000, 5)
    ids[2_999::3_000] = LINE_END  # lines far longer than a piece
    documents = [0, 15_000, 45_000]
    stream = TokenStream.from_tokens(ids, documents)
    found = measuring._sample(stream, 16_000, reset)
    assert found.reset == "documents"
    assert len(found.pieces) == measuring.PIECES
    firsts = [max(0, begin - measuring.BEFORE) for begin, _ in found.pieces]
    lengths = [end - first for first, (_, end) in zip(firsts, found.pieces, strict=True)]
    begun = np.cumsum([0, *lengths[:-1]])
    assert set(begun) <= set(found.stream.document_starts)
    rows = {"none": [0], "documents": documents, "lines": range(0, 60_000, 3_000)}[reset]
    inside = {
        int(place) + row - first
        for place, first, (_, end) in zip(begun, firsts, found.pieces, strict=True)
        for row in rows
        if first < row < end
    }
    assert set(found.stream.document_starts) == inside | set(begun)


def test_a_sample_of_a_text_without_lines(short):
    stream = TokenStream.from_tokens(np.full(1000, 5))
    found = measuring._sample(stream, 60, "none")
    assert [end - begin for begin, end in found.pieces] == [15] * 4
    assert measuring._middle(np.asarray(stream.line_starts), *found.pieces[2], 9) == (
        found.pieces[2][0],
        found.pieces[2][0] + 9,
    )


def test_the_excerpt_is_text_with_its_spaces(folder, lstm):
    for kind, text in (("whitespace", "the dog\nthe qqq cat"), ("characters", "the dog\nß…")):
        tokenizer = recurra.load(lstm).tokenizer
        if kind == "characters":
            from recurra.text.documents import Text
            from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

            tokenizer = build_tokenizer(Text.from_string("the dog ß…\n"), TokenizerSettings(tokenizer=kind))
        texts = measuring._texts(tokenizer, tokenizer.encode(text).tolist())
        assert "".join(texts) == text.replace("qqq", "<unk>")


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    from recurra.text.documents import Text
    from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

    tokenizer = build_tokenizer(
        Text.from_string("the dog the dog\n" * 9), TokenizerSettings(tokenizer="byte-pairs", vocabulary_size=262)
    )
    text = "dog ß 語!"
    texts = measuring._texts(tokenizer, tokenizer.encode(text).tolist())
    assert "".join(texts) == text
    assert texts.count("") >= 3


def test_seed_and_sizes_of_passages(lstm, numbers):
    again = measure(lstm, ReportSettings(samples=2, tokens=12, seed=3))
    other = measure(lstm, ReportSettings(samples=3, tokens=5, seed=4))
    assert again["samples"] == numbers["samples"]
    assert [each["tokens"] for each in other["samples"]["passages"]] == [5, 5, 5]
    lm = recurra.load(lstm)
    first = numbers["samples"]["passages"][0]
    assert first["text"] == lm.generate(max_tokens=12, seed=3)[0].text


@pytest.mark.parametrize(("cell", "gate"), [("gru", "update"), ("rnn", "hidden")])
def test_other_cells(cell, gate, folder):
    recurra.train_lm(folder / "text.txt", folder / cell, **SHORT, cell=cell, max_steps=2)
    found = measure(folder / cell, ReportSettings(samples=0))
    gates = found["gates"]
    assert (gates["gate"], gates["layers"]) == (gate, 1)
    assert len(gates["values"]) == 6
    values = np.array(gates["values"])
    assert (values > (0 if cell == "gru" else -1)).all()
    assert (values < 1).all()
    assert found["missing"] == {"samples": "None were asked for."}
    Page(page(found))


def test_gradients_and_gates_are_in_float64_and_the_model_stays_as_it_is(lstm, numbers):
    lm = recurra.load(lstm)
    excerpt = [lm.tokenizer.id(each["token"]) for each in numbers["reading"]["excerpt"]]
    unrolled = gradients.unroll_model(recurra.load(lstm).model.double(), excerpt)
    layers = numbers["gradients"]["layers"]
    assert [(found["layer"], found["state"]) for found in layers] == [(n, s) for n in (1, 2) for s in "hc"][
        : len(layers)
    ]
    for found in layers:
        state = {"h": "hidden", "c": "cell"}[found["state"]]
        expected = gradients.decay(gradients.gradient_map(unrolled), found["layer"] - 1, state)
        assert found["relative"] == pytest.approx(expected.relative.tolist(), rel=1e-12)
    seen = []

    class Watched(measuring.LanguageModel):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            seen.append({parameter.dtype for parameter in self.model.parameters()})

    model = Watched(lm.model, lm.tokenizer, lm.kind, lm.settings, lm.path)
    found = {"missing": {}}
    measuring._look_inside(
        model, TokenStream.from_tokens(excerpt, vocabulary=lm.tokenizer.vocabulary.digest()), found, print
    )
    assert found["gates"] == numbers["gates"]
    assert seen == [{torch.float32}, {torch.float64}]
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.float32}


def test_a_curve_of_gradients_ends_where_few_losses_go_on(numbers):
    content = page(numbers)
    chart = re.search(r'aria-label="Gradient of the loss.*?</svg>', content, re.DOTALL).group(0)
    for layer, path in zip(numbers["gradients"]["layers"], re.findall(r'points="([^"]+)"', chart), strict=True):
        assert len(path.split()) == layer["fitted"] + 1 < len(layer["distances"])
        assert layer["pairs"][layer["fitted"]] >= numbers["gradients"]["losses"] / 2


def test_gradients_begin_at_one(numbers):
    for layer in numbers["gradients"]["layers"]:
        assert layer["relative"][0] == pytest.approx(1)
        assert layer["distances"] == list(range(len(layer["distances"])))


def test_a_tagger_says_why_it_has_no_pictures_of_gates(tagger):
    log = [json.loads(line) for line in (tagger / "log.jsonl").read_text().splitlines()]
    assert any(line.get("score_name") == "accuracy" for line in log)
    found = measure(tagger)
    assert found["learning"]["score_name"] == "accuracy"
    assert not any("score_name" in line for line in found["learning"]["lines"])
    shown = Page(page(found))
    assert shown_sections(shown) == ["learning", "results", "settings", "sizes", "speed", "missing"]
    assert found["missing"].keys() == {"gradients", "gates"}
    assert "a stack of 2 layers of LSTM, 5 units wide, in both directions" in shown.text["missing"]
    assert [values["aria-label"] for tag, values in shown.elements if tag == "svg"][1].startswith("accuracy on the")
    assert "nats per target" in shown.text["learning"]


def test_a_score_that_is_better_when_lower_is_shown_as_it_is(tagger, tmp_path):
    shutil.copytree(tagger, tmp_path / "m")
    line = {"seconds": 1.0, "valid": 2.0, "score": -0.25, "score_name": "-cer"}
    (tmp_path / "m" / "log.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "seconds": 2.0}) + "\n")
    content = page(measure(tmp_path / "m"))
    assert 'aria-label="cer on the validation data over training time"' in content
    ticks = re.search(r'aria-label="cer on.*?</svg>', content, re.DOTALL).group(0)
    assert "-0." not in re.sub(r"<text[^>]*>", "", ticks)


def few_pairs(folder):
    chance = random.Random(3)
    words = "one two three four five".split()  # noqa: SIM905
    lines = (chance.choices(words, k=3) for _ in range(60))
    (folder / "pairs.tsv").write_text("".join(f"{' '.join(line)}\t{' '.join(line[::-1])}\n" for line in lines))
    return folder / "pairs.tsv"


def few_recordings(folder):
    rng, chance = np.random.default_rng(1), random.Random(1)
    (folder / "recordings").mkdir()
    rows = []
    for number in range(24):
        text = "".join(chance.choices("ab", k=2))
        np.save(folder / "recordings" / f"{number}.npy", rng.standard_normal((20, 3)).astype(np.float32))
        rows.append(f"recordings/{number}.npy\t{text}\n")
    (folder / "recordings.tsv").write_text("".join(rows))
    return folder / "recordings.tsv"


def few_questions(folder):
    lines = []
    for number in range(40):
        place = ("garden", "kitchen")[number % 2]
        lines.append(f"1 Mary went to the {place}.\n2 John sat {number}.\n3 Where is Mary?\t{place}\t1\n")
    (folder / "questions_train.txt").write_text("".join(lines))
    return folder / "questions_train.txt"


@pytest.mark.parametrize(
    ("kind", "make", "options"),
    [
        ("translator", few_pairs, {"hidden_size": 6}),
        ("transcriber", few_recordings, {"hidden_size": 6}),
        ("reader", few_questions, {"hidden_size": 6, "format": "babi"}),
    ],
)
def test_every_kind_of_task(kind, make, options, folder):
    small = {"max_steps": 2, "log_every": 1, "evaluate_every": 1, "batch_size": 8}
    recurra.train_task(kind, make(folder), folder / kind, **options, **small)
    found = measure(folder / kind)
    shown = Page(page(found))
    assert shown_sections(shown) == ["learning", "results", "settings", "sizes", "speed", "missing"]
    assert "a stack of" in shown.text["missing"]
    assert found["sizes"]["parameters"] > 0
    assert all(each["about"] for rows in found["settings"].values() for each in rows)


@pytest.mark.parametrize("kind", ["snm", "window", "maxent"])
def test_every_kind_of_language_model(kind, folder):
    options = {"snm": {}, "window": {"hidden_size": 5, "max_steps": 3}, "maxent": {"max_steps": 3}}[kind]
    recurra.train_lm(folder / "text.txt", folder / kind, kind=kind, tokenizer="whitespace", **options)
    found = measure(folder / kind, ReportSettings(samples=1, tokens=5))
    shown = shown_sections(Page(page(found)))
    none = {"gradients", "gates"} | ({"learning"} if kind == "snm" else set())
    assert shown == [*(name for name in SECTIONS if name not in none), "missing"]
    assert found["missing"].keys() == none
    assert sum(found["sizes"]["parts"].values()) == found["sizes"]["stored"]


def test_a_classifier(folder):
    rows = (
        f"{'good' if n % 3 else 'bad'} {'dog' if n % 2 else 'cat'} {n}\t{'yes' if n % 3 else 'no'}" for n in range(60)
    )
    (folder / "texts.tsv").write_text("\n".join(rows) + "\n")
    recurra.train_task("classifier", folder / "texts.tsv", folder / "c", max_steps=6, log_every=2, evaluate_every=3)
    found = measure(folder / "c")
    assert found["missing"].keys() == {"gradients", "gates"}
    shown = Page(page(found))
    assert shown_sections(shown) == ["learning", "results", "settings", "sizes", "speed", "missing"]
    assert found["learning"]["score_name"] == "accuracy"
    assert found["learning"]["clip_norm"] == 1.0  # which training chose, as nothing was said
    assert "clipped at" in page(found)
    rows = {cells[0]: cells for cells in shown.rows["results"]}
    assert close(rows["accuracy"][1], found["results"]["valid"]["accuracy"])


def test_a_mixture(folder, ngram):
    recurra.mix([ngram], folder / "mixed", str(folder / "text.txt"))
    found = measure(folder / "mixed", ReportSettings(samples=1, tokens=5))
    assert {"learning", "results", "reading"} <= found["missing"].keys()
    shown = Page(page(found))
    assert shown_sections(shown) == ["samples", "settings", "sizes", "speed", "missing"]
    reasons = {row[1]: row[0] for row in shown.rows["missing"][1:]}
    reason = next(each for each in reasons if each.startswith("There is no held-out text"))
    assert reasons[reason] == "Frequent and rare tokens; Along the line; A text as the model reads it"
    components = [row for row in shown.rows["settings"] if row[0] == "components"]
    assert components == [["components", "path ../ngram, weight 1"]]


# ---- what is missing, what is wrong ---------------------------------------------------------------------------------


def test_what_is_missing_is_said(lstm, tmp_path):
    shutil.copytree(lstm, tmp_path / "m")
    (tmp_path / "m" / "log.jsonl").unlink()
    (tmp_path / "m" / "results.json").unlink()
    shutil.rmtree(tmp_path / "m" / "training")
    found = measure(tmp_path / "m", ReportSettings(samples=0))
    assert set(found["missing"]) == {"learning", "results", "reading", "samples", "gradients", "gates"}
    shown = Page(page(found))
    assert shown_sections(shown) == ["settings", "sizes", "speed", "missing"]
    assert "no log.jsonl" in shown.text["missing"]


def test_logs(lstm, tmp_path, monkeypatch):
    shutil.copytree(lstm, tmp_path / "m")
    log = tmp_path / "m" / "log.jsonl"
    whole = measure(tmp_path / "m", ReportSettings(samples=0))["learning"]["lines"]
    log.write_text(log.read_text() + '{"step": 12, "lo')
    assert measure(tmp_path / "m", ReportSettings(samples=0))["learning"]["lines"] == whole
    log.write_text('{"step": 1, "seconds": 1.5, "loss": 2.5, "gradient_norm": 0}\n' * 50)
    monkeypatch.setattr(measuring, "CURVE_POINTS", 10)
    found = measure(tmp_path / "m", ReportSettings(samples=0))
    assert (len(found["learning"]["lines"]), found["learning"]["logged"]) == (10, 50)
    assert "10 of 50 lines" in page(found)
    log.write_text("")
    assert "no lines" in measure(tmp_path / "m", ReportSettings(samples=0))["missing"]["learning"]
    for line in ("[1]", '{"step": 1}', '{"seconds": "x"}', "?"):
        log.write_text('{"seconds": 1}\n' + line + "\n" + '{"seconds": 1}\n')
        with pytest.raises(UserError, match=r"log\.jsonl:2: .*(expected names and numbers|damaged)"):
            measure(tmp_path / "m", ReportSettings(samples=0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{none}", "-o", "{page}"], "no such folder"),
        (["{empty}", "-o", "{page}"], "not a model"),
        (["{lstm}", "-o", "{folder}"], "found a folder"),
        (["{lstm}", "-o", "{none}/page.html"], "no such folder"),
        (
            ["{lstm}", "-o", "{page}", "-o", "page.png"],
            r"page\.png: unknown form; end the name in one of \.html, \.json",
        ),
        (["{lstm}"], "-o report.html"),
    ],
)
def test_mistakes(words, message, lstm, tmp_path):
    names = {"none": "none", "empty": "empty", "folder": "f.html", "page": "p.html"}
    places = {"lstm": lstm, **{name: tmp_path / place for name, place in names.items()}}
    places["empty"].mkdir()
    places["folder"].mkdir()
    with pytest.raises(UserError, match=message):
        run(*(word.format(**places) for word in words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "f.html"]


@pytest.mark.parametrize("flags", [("--samples", "-1"), ("--tokens", "0"), ("--seed", "x")])
def test_mistakes_in_flags(flags, lstm, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(lstm, "--json", *flags)
    assert f"argument {flags[0]}: expected a whole number" in capsys.readouterr().err


def test_the_command_writes_the_page_of_its_numbers(lstm, tmp_path, capsys):
    flags = ["--samples", 1, "--tokens", 5, "--seed", 2]
    assert run(lstm, "-o", tmp_path / "a.html", "-o", tmp_path / "a.json", "--json", *flags) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    content = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert content == page(json.loads(output), version=recurra.__version__)
    assert f"Made by Recurra {recurra.__version__}." in content
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == json.loads(output)
    assert run(lstm, "-o", tmp_path / "p.html", *flags) == 0
    assert "p.html" in capsys.readouterr().out
    assert run(lstm, "--json", *flags) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == json.loads(output)["samples"]


def test_a_page_is_old_or_new(lstm, tmp_path, monkeypatch):
    path = tmp_path / "p.html"
    path.write_text("old")

    def broken(numbers, version):
        raise RuntimeError

    monkeypatch.setattr(reporting, "page", broken)
    with pytest.raises(RuntimeError):
        report(lstm, path, settings=ReportSettings(samples=0))
    assert [each.name for each in tmp_path.iterdir()] == ["p.html"]
    assert path.read_text() == "old"

"""``recurra trace``, as it is typed."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch

import recurra
from recurra.cli import main
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer
from recurra.tracing import trace

TEXT = "the cat sat on the mat\nthe dog sat on the log\n"
ARPA = "\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\n-0.05\t</s>\n\n\\end\\\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two untrained models, an n-gram model, a text and labels."""
    folder = tmp_path_factory.mktemp("trace")
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer="words", min_count=1))
    for cell in ("lstm", "gru"):
        settings = RecurrentLMSettings(cell=cell, hidden_size=20, layers=2, embedding_size=5, output="full", tied=True)
        recurra.LanguageModel(RecurrentLM(settings, tokens.vocabulary), tokens).save(folder / cell)
    (folder / "text").write_text(TEXT)
    (folder / "texts").mkdir()
    (folder / "texts" / "one").write_text(TEXT)
    (folder / "ngram.arpa").write_text(ARPA)
    (folder / "labels").write_text("0 1 2 3 4 5 6\n0 1 2 3 4 5 6\n")  # position in the line
    (folder / "nouns").write_text("o n o o o n o o n o o o n o")
    return folder


def run(capsys, *arguments):
    """Run the command in this process: exit status, output, errors."""
    try:
        status = main(["trace", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def traced(capsys, *arguments):
    status, output, errors = run(capsys, *arguments)
    assert (status, errors) == (0, "")
    return output


def test_a_line_for_each_token(folder, capsys):
    lines = traced(capsys, folder / "lstm", "the cat sat", "--units", "3,17", "--layer", "1").splitlines()
    assert lines[0].startswith("cell of layer 1, 2 of 20 units, after each token")
    assert lines[2].split() == ["token", "bits", "unit", "3", "unit", "17"]
    found = trace(recurra.load(folder / "lstm"), "the cat sat")
    assert [line.split()[0] for line in lines[3:]] == ["the", "cat", "sat"]
    for line, bits, values in zip(lines[3:], found.bits, found.layers[0]["cell"], strict=True):
        numbers = [float(number) for number in line.split()[1:]]
        assert numbers == pytest.approx([bits, values[3], values[17]], abs=5.1e-3)
        assert numbers[1:] == pytest.approx(values[[3, 17]].tolist(), abs=5.1e-5)


def tokens(capsys, *arguments):
    return json.loads(traced(capsys, *arguments, "--json"))["tokens"]


def test_a_text_is_read_from_where_evaluation_reads_it(folder, capsys, monkeypatch):
    typed = json.loads(traced(capsys, folder / "gru", TEXT, "--json"))
    assert typed["tokens"] == ["the", "cat", "sat", "on", "the", "mat", "<eos>", *typed["tokens"][7:]]
    assert (typed["gate"], typed["layer"], typed["layers"]) == ("hidden", 2, [20, 20])
    assert len(typed["values"]) == 6
    monkeypatch.chdir(folder)
    for given in ("text", "texts", "t?xt", "te*"):  # a file, a folder, globs; the last one finds both
        found = json.loads(traced(capsys, folder / "gru", given, "--json"))
        assert found == typed if given != "te*" else found["tokens"] == typed["tokens"] * 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert json.loads(traced(capsys, folder / "gru", "-", "--json")) == typed


def test_a_text_as_it_stands(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert tokens(capsys, "gru", "the") == ["the"]
    assert tokens(capsys, "gru", "the cat") == ["the", "cat"]
    assert tokens(capsys, "gru", "x" * 5000) == ["<unk>"]
    assert tokens(capsys, "gru", "the /cat and/or sat.txt")[0] == "the"
    assert tokens(capsys, "gru", "the cat? sat")[-1] == "sat"  # a glob that nothing matches
    for words in ("text", "missing.txt", "and/or", "kjv", "-"):
        assert tokens(capsys, "gru", f"--text={words}")[0] == "<unk>"
    assert tokens(capsys, "gru", "--text", "the cat") == ["the", "cat"]


def test_a_part_of_a_corpus(folder, capsys):
    pytest.importorskip("matplotlib")  # which has this one
    found = tokens(capsys, folder / "gru", "color-names:valid")
    assert found.count("<eos>") > 20


@pytest.mark.parametrize("name", ["missing.txt", "missing.tokens", "missing.gz", "/missing", "./missing", "a\\b"])
def test_a_file_that_is_missing_is_not_read_as_words(name, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"recurra: {name}: no such file, folder or corpus; to trace these very words use --text\n"
    assert run(capsys, folder / "gru", name) == (2, "", message)


def test_what_does_not_fit_into_memory_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr("recurra.planning.available_memory", lambda: 1000.0)
    status, output, errors = run(capsys, folder / "gru", folder / "text")
    assert (status, output) == (2, "")
    assert "a trace of 14 tokens takes 1.23e-05 GB of memory, there are 1e-06" in errors


def test_units_that_track_labels(folder, capsys):
    given = (folder / "lstm", folder / "text", "--labels", folder / "labels")
    lines = traced(capsys, *given).splitlines()
    result = json.loads(traced(capsys, *given, "--json"))
    labels = result["labels"]
    assert lines[0] == labels["measure"] == "correlation"
    assert len(labels["best"]) == 2 * 6 * 5
    values = trace(recurra.load(folder / "lstm"), TEXT).values("forget", 2)
    best = [each for each in labels["best"] if (each["layer"], each["gate"]) == (2, "forget")]
    expected = np.corrcoef(values[:, best[0]["unit"]], list(range(7)) * 2)[0, 1]
    assert best[0]["score"] == pytest.approx(expected, abs=1e-6)
    (line,) = [line for line in lines if line.startswith("2      forget")]
    assert f"{best[0]['unit']}: {best[0]['score']:.3f}" in line
    strengths = [abs(float(line.split("  ")[-5].split(": ")[-1])) for line in lines[2:-1]]
    assert len(strengths) == 12
    assert strengths == sorted(strengths, reverse=True)
    # what is listed without --units are the best of the gate that is looked at
    chosen = [str(each["unit"]) for each in labels["best"] if (each["layer"], each["gate"]) == (2, "cell")]
    assert list(result["values"]) == chosen


def test_categories(folder, capsys):
    lines = traced(capsys, folder / "gru", folder / "text", "--labels", folder / "nouns", "--best", "2").splitlines()
    assert lines[0] == "point-biserial of n, o"
    assert lines[2].count(": ") == 2


def test_all_forms_at_once(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr("recurra.tracing.pictures.save", lambda figure, path: drawn.append((figure, path)))
    files = [tmp_path / name for name in ("t.npz", "t.svg", "t.json")]
    given = (folder / "lstm", TEXT, "--gate", "output", "--units", "3,17", *(x for file in files for x in ("-o", file)))
    assert traced(capsys, *given).splitlines() == [f"written: {file}" for file in files]
    with np.load(files[0]) as file:
        values = file["output2"][:, [3, 17]]
    ((figure, path),) = drawn
    assert path == files[1]
    (mesh,) = figure.axes[0].collections
    np.testing.assert_array_equal(np.asarray(mesh.get_array()), values.T)
    content = json.loads(files[2].read_text())
    np.testing.assert_allclose([content["values"]["3"], content["values"]["17"]], values.T, rtol=1e-6)
    assert len(files[2].read_text().splitlines()) < 40  # numbers of a unit are one line
    printed = json.loads(traced(capsys, *given, "--json"))
    assert printed.pop("written") == [str(file) for file in files]
    assert printed == content


def test_units_of_a_picture_are_more_than_those_of_a_table(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    written = json.loads(traced(capsys, folder / "lstm", TEXT, "-o", tmp_path / "t.png", "--json"))
    assert len(written["values"]) == 12
    assert (tmp_path / "t.png").exists()


def test_hdf5_and_lstmvis(folder, tmp_path, capsys):
    pytest.importorskip("h5py")
    output = traced(capsys, folder / "lstm", TEXT, "-o", tmp_path / "t.h5", "-o", f"{tmp_path}/t.lstmvis/")
    files = ["t.h5", "t.lstmvis/states.hdf5", "t.lstmvis/words.dict", "t.lstmvis/lstm.yml"]
    assert output.splitlines() == [f"written: {tmp_path / name}" for name in files]
    assert all((tmp_path / name).is_file() for name in files)


@pytest.mark.parametrize("name", ["t.csv", "missing/t.npz", "t.h5"])
def test_what_cannot_be_written_is_told_before_the_work(name, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recurra.tracing.trace", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    status, output, errors = run(capsys, folder / "gru", "the", "-o", tmp_path / name)
    assert (status, output) == (2, "")
    assert ("unknown form" if name == "t.csv" else "no such folder" if "/" in name else "recurra[hdf5]") in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/ngram.arpa", "the"], "for recurrent language models (lm), this one is of kind 'ngram'"),
        (["{}/missing", "the"], "no such folder"),
        (["{}/lstm", ""], "the text is empty"),
        (["{}/lstm"], "expected one text to read: a TEXT after the model, or --text"),
        (["{}/lstm", "the", "--text", "the"], "expected one text to read"),
        (["{}/lstm", "wikitext-2:tset"], "wikitext-2:tset: expected wikitext-2 with one of :train, :valid and :test"),
        (["{}/lstm", "the", "--layer", "3"], "layer: expected 1 to 2, got 3"),
        (["{}/lstm", "the", "--units", "3,20"], "units: expected 0 to 19, got 20"),
        (["{}/lstm", "the", "--units", "3,-1"], "expected whole numbers such as 3,17, got '3,-1'"),
        (["{}/lstm", "the", "--gate", "reset"], "which the lstm has; got 'reset'"),
        (["{}/gru", "the", "--gate", "cell"], "which the gru has; got 'cell'"),
        (["{}/gru", "the", "--labels", "{}/labels"], "for each of the text's 1 tokens, line ends included, got 14"),
        (["{}/gru", "the", "-o", "{}/t.csv"], "t.csv: unknown form"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, folder, capsys):
    status, output, errors = run(capsys, *(argument.replace("{}", str(folder)) for argument in arguments))
    assert (status, output) == (2, "")
    assert errors.startswith("recurra: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_help(capsys):
    status, output, _ = run(capsys, "--help")
    assert status == 0
    assert "recurra trace" in output

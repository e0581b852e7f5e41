"""``recurra trace``, as it is typed."""

from __future__ import annotations

import json

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
    assert lines[0].startswith("cell of layer 1, 2 of 20 units")
    assert lines[2].split() == ["token", "bits", "unit", "3", "unit", "17"]
    found = trace(recurra.load(folder / "lstm"), "the cat sat")
    assert [line.split()[0] for line in lines[3:]] == ["the", "cat", "sat"]
    for line, bits, values in zip(lines[3:], found.bits, found.layers[0]["cell"], strict=True):
        numbers = [float(number) for number in line.split()[1:]]
        assert numbers == pytest.approx([bits, values[3], values[17]], abs=5.1e-3)
        assert numbers[1:] == pytest.approx(values[[3, 17]].tolist(), abs=5.1e-5)


def test_files_and_texts_as_they_stand(folder, capsys, monkeypatch):
    typed = json.loads(traced(capsys, folder / "gru", TEXT, "--json"))
    for given in (folder / "text", f"@{folder / 'text'}"):
        assert json.loads(traced(capsys, folder / "gru", given, "--json")) == typed
    assert typed["tokens"] == ["the", "cat", "sat", "on", "the", "mat", "<eos>", *typed["tokens"][7:]]
    assert (typed["gate"], typed["layer"], typed["layers"]) == ("hidden", 2, [20, 20])
    assert len(typed["values"]) == 6
    assert json.loads(traced(capsys, folder / "gru", "the", "--json"))["tokens"] == ["the"]
    assert json.loads(traced(capsys, folder / "gru", "x" * 5000, "--json"))["tokens"] == ["<unk>"]
    assert json.loads(traced(capsys, folder / "gru", "@", "--json"))["tokens"] == ["<unk>"]


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


def test_arrays_and_pictures(folder, tmp_path, capsys):
    output = traced(capsys, folder / "lstm", TEXT, "-o", tmp_path / "t.npz")
    assert output == f"written: {tmp_path / 't.npz'}\n"
    with np.load(tmp_path / "t.npz") as file:
        assert file["forget2"].shape == (14, 20)
    pytest.importorskip("matplotlib")
    given = ("-o", tmp_path / "t.svg", "--gate", "output", "--units", "3,17")
    assert json.loads(traced(capsys, folder / "lstm", TEXT, *given, "--json"))["written"] == [str(tmp_path / "t.svg")]
    assert "<svg" in (tmp_path / "t.svg").read_text()


def test_hdf5(folder, tmp_path, capsys):
    pytest.importorskip("h5py")
    output = traced(capsys, folder / "lstm", TEXT, "-o", tmp_path / "t.h5")
    assert output.splitlines() == [f"written: {tmp_path / 't.h5'}", f"written: {tmp_path / 't.dict'}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/ngram.arpa", "the"], "for recurrent language models (lm), this one is of kind 'ngram'"),
        (["{}/missing", "the"], "no such folder"),
        (["{}/lstm", ""], "the text is empty"),
        (["{}/lstm", "@{}/missing"], "missing"),
        (["{}/lstm", "the", "--layer", "3"], "layer: expected 1 to 2, got 3"),
        (["{}/lstm", "the", "--units", "3,20"], "units: expected 0 to 19, got 20"),
        (["{}/lstm", "the", "--units", "3,-1"], "expected whole numbers such as 3,17, got '3,-1'"),
        (["{}/lstm", "the", "--gate", "reset"], "which the lstm has; got 'reset'"),
        (["{}/gru", "the", "--gate", "cell"], "which the gru has; got 'cell'"),
        (["{}/gru", "the", "--labels", "{}/labels"], "for each of the text's 1 tokens, line ends included, got 14"),
        (["{}/gru", "the", "-o", "{}/t.csv"], "unknown format; end the name in one of .npz"),
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

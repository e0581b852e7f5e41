"""The commands, as they are typed, and what they say to mistakes."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time

import pytest

import recurra
from recurra.cli import COMMANDS, main

LINES = [f"the {animal} sat on the {place}" for animal in ("cat", "dog", "cow") for place in ("mat", "log", "hill")]
TEXT = "\n".join(LINES * 12) + "\n"
QUICK = ["--tokenizer", "words", "--hidden-size", "8", "--epochs", "1", "--batch-size", "2", "--chunk-length", "5"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.txt").write_text(TEXT)
    assert main(["train", "lm", str(folder / "text.txt"), "-o", str(folder / "m"), *QUICK, "--quiet"]) == 0
    return str(folder / "m")


def run(capsys, *arguments):
    """Run a command in this process: exit status, output, errors."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def refused(capsys, *arguments):
    """Run a command that must be refused: one line, status 2, nothing on the output. Returns the line."""
    status, output, errors = run(capsys, *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("recurra: ")
    assert errors.count("\n") == 1
    return errors


def test_help_lists_the_commands_quickly_and_without_torch():
    code = "import sys, recurra.cli; recurra.cli.main(['--help']); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    for name in ("train lm", "evaluate", "generate", "next", "info", "data"):
        assert name in result.stdout


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"recurra {recurra.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    status, output, _ = run(capsys, *command.split(), "--help")
    assert status == 0
    assert f"recurra {command}" in output


def test_training_prints_perplexity_and_leaves_a_model(text, tmp_path, capsys):
    status, output, errors = run(capsys, "train", "lm", text, "-o", tmp_path / "m", *QUICK)
    assert status == 0
    assert output.startswith("valid perplexity ")
    assert "\ntest  perplexity " in output
    assert "validation perplexity" in errors
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert names >= {"settings.json", "weights.safetensors", "log.jsonl", "results.json", "learning_curve.png"}


def test_a_file_of_settings_gives_way_to_flags_and_all_is_saved(text, tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text('[model]\ncell = "gru"\nhidden_size = 6\n[training]\nepochs = 1\nbatch_size = 2\n')
    assert run(capsys, "train", "lm", text, "-o", tmp_path / "m", "--config", config, "--hidden-size", 7)[0] == 0
    saved = json.loads((tmp_path / "m" / "settings.json").read_text())
    assert (saved["model"]["cell"], saved["model"]["hidden_size"], saved["training"]["epochs"]) == ("gru", 7, 1)


def test_own_validation_file_and_standard_input(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode()), encoding="utf-8"))
    (tmp_path / "valid.txt").write_text("the cat sat\n" * 5)
    arguments = ("-o", tmp_path / "m", *QUICK, "--valid", tmp_path / "valid.txt")
    status, output, _ = run(capsys, "train", "lm", "-", *arguments)
    assert status == 0
    assert "(20 tokens" in output


def test_evaluate_as_json_has_the_promised_keys(model, text, capsys):
    status, output, _ = run(capsys, "evaluate", model, text, "--json")
    result = json.loads(output)
    assert status == 0
    assert result.keys() >= {
        "perplexity", "nats_per_token", "bits_per_token", "bits_per_character", "perplexity_per_word", "tokens",
        "unknown_tokens", "seconds",
    }  # fmt: skip
    assert result["perplexity"] == pytest.approx(recurra.load(model).perplexity(TEXT))
    assert result["tokens"] == 7 * len(LINES) * 12


def test_evaluate_reads_another_encoding(model, tmp_path, capsys):
    (tmp_path / "t.txt").write_bytes("the caf\xe9 sat on the mat\n".encode("latin-1"))
    assert "give --encoding" in refused(capsys, "evaluate", model, tmp_path / "t.txt")
    for how in (["--encoding", "latin-1"], ["--errors", "replace"]):
        assert run(capsys, "evaluate", model, tmp_path / "t.txt", *how)[0] == 0
    assert "invalid choice" in refused(capsys, "evaluate", model, tmp_path / "t.txt", "--errors", "forgive")


def test_evaluate_says_how_the_state_was_kept_and_counts_unknown_words(model, tmp_path, capsys):
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(b"the zebra sat on the mat\n"))
    _, output, _ = run(capsys, "evaluate", model, tmp_path / "t.txt.gz", "--reset", "lines")
    assert "reset at each line" in output
    assert "1 (14.29 %)" in output


def test_per_token_surprisals_add_up(model, text, tmp_path, capsys):
    _, output, _ = run(capsys, "evaluate", model, text, "--json", "--per-token", tmp_path / "s.tsv")
    header, *rows = (line.split("\t") for line in (tmp_path / "s.tsv").read_text().splitlines())
    nats = [float(row[header.index("nats")]) for row in rows]
    assert sum(nats) / len(nats) == pytest.approx(json.loads(output)["nats_per_token"])
    assert [row[header.index("token")] for row in rows[:3]] == ["the", "cat", "sat"]


def test_generate_is_repeatable_and_goes_on_from_the_prompt(model, capsys):
    first = run(capsys, "generate", model, "--prompt", "the cat", "--seed", 5, "--max-tokens", 12)
    assert first[0] == 0
    assert first[1].startswith("the cat")
    assert run(capsys, "generate", model, "--prompt", "the cat", "--seed", 5, "--max-tokens", 12) == first


def test_precision_int8_writes_and_evaluates(model, text, capsys):
    assert run(capsys, "generate", model, "--precision", "int8", "--seed", 1, "--max-tokens", 5)[0] == 0
    assert run(capsys, "next", model, "the", "--precision", "int8")[0] == 0
    assert run(capsys, "evaluate", model, text, "--precision", "int8")[0] == 0
    assert run(capsys, "next", model, "the", "--precision", "int4")[0] == 2


def test_generate_several_as_json(model, capsys):
    _, output, _ = run(capsys, "generate", model, "--count", 3, "--seed", 1, "--max-tokens", 5, "--json")
    passages = [json.loads(line) for line in output.splitlines()]
    assert len(passages) == 3
    assert all(len(passage["ids"]) == 5 for passage in passages)


@pytest.mark.parametrize(
    "how", [["--greedy"], ["--beam", "3"], ["--top-k", "2"], ["--top-p", "0.5"], ["--stop", " sat"]]
)
def test_every_way_of_choosing(how, model, capsys):
    status, output, _ = run(capsys, "generate", model, "--prompt", "the dog", *how, "--max-tokens", 6)
    assert status == 0
    assert output.startswith("the dog")


def test_next_shows_the_likeliest_and_the_asked(model, capsys):
    status, output, errors = run(capsys, "next", model, "the cat sat on", "--words", "the,zebra", "-k", 4, "--json")
    rows = json.loads(output)
    assert status == 0
    assert len(rows) == 6
    assert rows[4]["token"] == "the"
    assert "'zebra' is not in the vocabulary" in errors
    assert run(capsys, "next", model, "the cat")[1].count("\n") == 10


def test_info_tells_what_a_model_is(model, capsys):
    _, output, _ = run(capsys, "info", model)
    assert "hidden_size" in output
    _, output, _ = run(capsys, "info", model, "--json")
    assert json.loads(output)["vocabulary"]["tokenizer"] == "words"


def test_data_lists_and_finds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path))
    _, output, _ = run(capsys, "data", "list")
    assert {"python-docs", "kjv", "web", "color-names", "tiny-shakespeare", "wikitext-2", "sotu"} <= {
        line.split()[0] for line in output.splitlines()
    }
    assert "there are python-docs" in refused(capsys, "data", "path", "wikitext2")
    assert "name a corpus" in refused(capsys, "data", "fetch")


def test_swatches_draws_what_can_be_read_and_counts_the_rest(tmp_path, capsys):
    (tmp_path / "c.txt").write_text("stormy green 10 80 60\nnot a colour\npale sun 250 240 180\ntoo much 300 0 0\n")
    status, output, _ = run(capsys, "swatches", tmp_path / "c.txt", "-o", tmp_path / "c.png")
    assert status == 0
    assert "2 of 4 lines valid (50.0 %)" in output
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "d.txt").write_text("nothing\n")
    assert "none of 1 lines" in refused(capsys, "swatches", tmp_path / "d.txt", "-o", tmp_path / "d.png")


# ---- mistakes -----------------------------------------------------------------------------------------------------


def bad_corpora(folder):
    (folder / "empty.txt").write_text("")
    (folder / "one.txt").write_text("x")
    (folder / "line.txt").write_text("a b c d e f g\n")
    (folder / "short.txt").write_text("a b\n" * 6)
    (folder / "binary.txt").write_bytes(b"abc\x00\x01def\n" * 20)
    (folder / "latin.txt").write_bytes(b"first line\ncaf\xe9\n" * 20)
    (folder / "bare").mkdir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.txt", "empty"),
        ("one.txt", "too few lines (1)"),
        ("line.txt", "too few lines (1)"),
        ("short.txt", "fewer than one batch"),
        ("binary.txt", "binary"),
        ("latin.txt", "line 2, byte offset 14"),
        ("missing", "missing"),
        ("bare", "bare"),
        ("*.nothing", "nothing"),
    ],
)
def test_a_text_that_cannot_be_trained_on(name, message, tmp_path, capsys):
    bad_corpora(tmp_path)
    said = refused(capsys, "train", "lm", tmp_path / name, "-o", tmp_path / "m", *QUICK, "--batch-size", 4, "--quiet")
    assert message in said
    assert not (tmp_path / "m" / "settings.json").exists()


def test_another_encoding_can_be_named(tmp_path, capsys):
    bad_corpora(tmp_path)
    for choice in (("--encoding", "latin-1"), ("--errors", "replace")):
        arguments = ("-o", tmp_path / "m", *QUICK, "--overwrite", *choice)
        assert run(capsys, "train", "lm", tmp_path / "latin.txt", *arguments)[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bidirectional"], "see the word it predicts"),
        (["--hiden-size", "4"], "did you mean --hidden-size"),
        (["--hidden-size", "0"], "at least 1"),
        (["--hidden-size", "4,5,6", "--layers", "2"], "3 sizes for 2 layers"),
        (["--cell", "grue"], "rnn, lstm, gru"),
        (["--dropout", "1.5"], "0.99"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--device", "tpu"], "tpu"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_settings_that_cannot_be(flags, message, text, tmp_path, capsys):
    assert message in refused(capsys, "train", "lm", text, "-o", tmp_path / "m", *QUICK, "--quiet", *flags)


def test_an_unknown_key_in_a_file_names_the_nearest(text, tmp_path, capsys):
    (tmp_path / "c.toml").write_text("[model]\nhiden_size = 4\n")
    said = refused(capsys, "train", "lm", text, "-o", tmp_path / "m", "--config", tmp_path / "c.toml")
    assert "did you mean `hidden_size`" in said


def test_a_folder_that_holds_a_model_or_cannot_be_written(model, text, tmp_path, capsys):
    assert "--overwrite" in refused(capsys, "train", "lm", text, "-o", model, *QUICK)
    (tmp_path / "file").write_text("")
    assert "found a file" in refused(capsys, "train", "lm", text, "-o", tmp_path / "file", *QUICK)
    assert "cannot write" in refused(capsys, "train", "lm", text, "-o", tmp_path / "file" / "below", *QUICK)
    assert "cannot write" in refused(capsys, "train", "lm", text, "-o", "/proc/recurra", *QUICK)


def test_overwriting_with_a_bad_text_keeps_the_old_model(text, tmp_path, capsys):
    arguments = ("-o", tmp_path / "m", *QUICK)
    assert run(capsys, "train", "lm", text, *arguments)[0] == 0
    before = recurra.load(tmp_path / "m").perplexity(TEXT)
    refused(capsys, "train", "lm", tmp_path / "missing.txt", *arguments, "--overwrite")
    assert recurra.load(tmp_path / "m").perplexity(TEXT) == before


def test_mistakes_of_the_other_commands(model, tmp_path, capsys):
    assert "no such folder" in refused(capsys, "evaluate", tmp_path / "none", tmp_path)
    assert "did you mean 'generate'" in refused(capsys, "generat", model)
    assert "did you mean 'train tagger'" in refused(capsys, "train", "tager", "a.conll", "-o", "m", "--max-steps", 3)
    assert "unknown command 'generat'" in refused(capsys, "generat", model, "--greedy")
    assert "expected above 0" in refused(capsys, "generate", model, "--temperature", 0)
    assert "greedy and beam" in refused(capsys, "generate", model, "--greedy", "--beam", 2)
    assert "at least 1" in refused(capsys, "next", model, "the", "-k", 0)
    assert "missing.txt" in refused(capsys, "evaluate", model, tmp_path / "missing.txt")
    assert "not a model" in refused(capsys, "info", tmp_path)
    for flag in (["--beam", 2], ["--lm", model], ["--text-column", 1], ["--no-header"], ["--mix-down"]):
        said = refused(capsys, "evaluate", model, tmp_path / "missing.txt", *flag)
        assert f"{flag[0].replace('no-', '')}: means nothing to a language model" in said


def test_a_reader_that_leaves_is_no_error(model):
    command = [sys.executable, "-m", "recurra", "generate", model, "--max-tokens", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA names no folder of corpora")
def test_wikitext_2_from_the_cache(tmp_path, capsys):
    begun = time.monotonic()
    arguments = ("--tokenizer", "whitespace", "--hidden-size", 32, "--max-steps", 20, "--evaluate-tokens", 2000)
    status, output, _ = run(capsys, "train", "lm", "wikitext-2", "-o", tmp_path / "m", *arguments)
    assert status == 0
    assert "(217,646 tokens" in output
    assert "(245,569 tokens" in output
    assert time.monotonic() - begun < 200

"""``recurra probe``: what is printed, written and refused."""

from __future__ import annotations

import json
import signal

import pytest

from recurra.commands.probe import COMMANDS
from recurra.config import ArgumentParser, UserError
from recurra.probing import made_up_texts

ARPA = """\\data\\
ngram 1=11

\\1-grams:
-2\t<unk>
-99\t<s>
-1\t</s>
-1\tthe
-1\tman
-1\tmen
-0.5\tis
-1\tare
-1\told
-1.5\twas
-1.5\twere

\\end\\
"""
PAIRS = """sentence_good\tsentence_bad\ttype\tattractors
the man is old\tthe man are old\tsingular\t0
the men are old\tthe men is old\tplural\t0
the man was old\tthe man were old\tsingular\t0
the man has old\tthe man have old\tsingular\t1
"""
QUICK = ["--cells", "gru", "--distances", "6", "--steps", "2", "--items", "4", "--hidden-size", "8"]


def run(capsys, name, *arguments):
    """Run a command: exit status, output, errors."""
    command = COMMANDS[name]
    parser = ArgumentParser(prog=f"recurra {name}")
    command.flags(parser)
    status = command.run(parser.parse_args([str(argument) for argument in arguments]))
    return status, *capsys.readouterr()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.arpa"
    path.write_text(ARPA)
    return path


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text(PAIRS)
    return path


def test_agreement_of_an_n_gram_model(capsys, model, pairs, tmp_path):
    status, output, errors = run(capsys, "probe agreement", model, pairs, "--per-pair", tmp_path / "scores.tsv")
    assert (status, errors) == (0, "")
    (line,) = (line for line in output.splitlines() if "all pairs" in line)
    assert line.split()[:4] == ["all", "pairs", "3", "33.3"]
    assert "Left out: 1 of 4 pairs" in output
    outcomes = [line.split("\t")[0] for line in (tmp_path / "scores.tsv").read_text().splitlines()[1:]]
    assert outcomes == ["right", "wrong", "tie", "unknown"]


def test_agreement_for_programs(capsys, model, pairs):
    _, output, errors = run(capsys, "probe agreement", model, pairs, "--json")
    content = json.loads(output)
    assert errors == ""
    assert content["overall"]["accuracy"] == pytest.approx(1 / 3)
    assert content["overall"]["ties"] == 1
    assert content["by_attractors"] == {"0": content["overall"]}
    assert content["unknown"] == {"has": 1, "have": 1}


def test_it_is_a_command(capsys, model, pairs):
    from recurra.cli import main

    assert main(["probe", "agreement", str(model), str(pairs)]) == 0
    assert "all pairs" in capsys.readouterr().out
    assert main(["probe", "recall", "--cells", "gpt"]) == 2
    assert "cells: expected rnn, gru, lstm" in capsys.readouterr().err


def test_the_shipped_pairs_are_the_default(capsys, model):
    _, output, _ = run(capsys, "probe agreement", model, "--lowercase", "--json")
    content = json.loads(output)
    assert content["overall"]["pairs"] + content["left_out"] == 206
    assert content["recency"]["pairs"] > 20
    assert set(content["unknown"]) == {"has", "have"}


def test_a_picture_of_agreement(capsys, model, pairs, tmp_path):
    pytest.importorskip("matplotlib")
    run(capsys, "probe agreement", model, pairs, "--picture", tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_recall_writes_and_prints_its_table(capsys, tmp_path):
    status, output, errors = run(capsys, "probe recall", *QUICK, "-o", tmp_path / "r")
    assert status == 0
    assert "| GRU, clipped at 1 |" in output
    assert "at distance 6:" in errors
    assert (tmp_path / "r" / "recall.md").read_text() == output
    content = json.loads((tmp_path / "r" / "recall.json").read_text())
    assert content["complete"] is True
    assert [row["steps"] for row in content["rows"]] == [2]


def test_recall_for_programs_says_nothing_else(capsys):
    _, output, errors = run(capsys, "probe recall", *QUICK, "--json")
    assert errors == ""
    assert json.loads(output)["settings"]["items"] == 4


def test_ctrl_c_leaves_the_finished_rows(capsys, tmp_path, monkeypatch):
    once = made_up_texts._run
    calls = []

    def run_once(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return once(*arguments)

    monkeypatch.setattr(made_up_texts, "_run", run_once)
    arguments = [*QUICK[:2], "--distances", "6,7", *QUICK[4:]]
    status, output, errors = run(capsys, "probe recall", *arguments, "-o", tmp_path)
    assert status == 128 + signal.SIGINT
    assert "| GRU, clipped at 1 |" in output
    assert "stopped after 1 runs" in errors
    content = json.loads((tmp_path / "recall.json").read_text())
    assert (content["complete"], len(content["rows"])) == (False, 1)


def test_repeated_words_of_a_real_text(capsys, model, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the man is old\nthe men are old\nthe man was old\n")
    status, output, _ = run(capsys, "probe recall", model, text, "--rare", "300000", "-o", tmp_path, "--quiet")
    assert status == 0
    assert "| distance (tokens) | mentions | words |" in output
    content = json.loads((tmp_path / "repeated-words.json").read_text())
    assert content["reset"] == "lines"
    assert all(row["gain"] == pytest.approx(0, abs=1e-6) for row in content["rows"])  # unigrams remember nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m"], "expected a text that m should read"),
        (["m", "t", "--cells", "gru"], "--cells: belongs to networks that are trained here"),
        (["--rare", "5"], "--rare: belongs to a model that reads a real text"),
    ],
)
def test_flags_of_the_other_half_are_refused(capsys, arguments, message):
    with pytest.raises(UserError, match=message):
        run(capsys, "probe recall", *arguments)

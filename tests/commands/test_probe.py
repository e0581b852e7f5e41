"""``recurra probe``: what is printed, written and refused."""

from __future__ import annotations

import json
import signal

import pytest

from recurra.commands import probe
from recurra.commands.probe import COMMANDS
from recurra.config import ArgumentParser, UserError

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
QUICK = ["--cells", "gru", "--distances", "6", "--steps", "2", "--items", "4", "--hidden-size", "8", "--seeds", "1"]


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
    assert [cell.strip() for cell in line.split("|")][1:5] == ["all pairs", "", "3", "33.3"]
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
    assert content["skipped"] == {}


def test_it_is_a_command(capsys, model, pairs):
    from recurra.cli import main

    assert main(["probe", "agreement", str(model), str(pairs)]) == 0
    assert "all pairs" in capsys.readouterr().out
    assert main(["probe", "recall", "--cells", "gpt"]) == 2
    assert "cells: expected rnn, gru, lstm" in capsys.readouterr().err


def test_the_shipped_pairs_are_the_default(capsys, model):
    _, output, _ = run(capsys, "probe agreement", model, "--lowercase", "--json")
    content = json.loads(output)
    assert content["overall"]["pairs"] + content["left_out"] == 354
    assert content["recency"]["pairs"] > 20
    assert {"has", "have", "stand", "stands"} <= set(content["unknown"])
    assert content["unknown_elsewhere"]["king"] > 20


def test_agreement_is_written_in_every_form(capsys, model, pairs, tmp_path):
    pytest.importorskip("matplotlib")
    names = ("a.png", "a.json", "a.md", "b.svg")
    outputs = [part for name in names for part in ("-o", tmp_path / name)]
    _, output, _ = run(capsys, "probe agreement", model, pairs, *outputs)
    assert (tmp_path / "a.png").stat().st_size > 5_000
    assert "all pairs" in (tmp_path / "b.svg").read_text()
    assert (tmp_path / "a.md").read_text() == output
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["overall"]["pairs"] == 3
    _, output, _ = run(capsys, "probe agreement", model, pairs, "--json")
    assert json.loads(output) == content


def test_verbs_that_are_not_read_are_told(capsys, model, tmp_path):
    path = tmp_path / "l.tsv"
    names = "orig_sentence\tverb\tverb_pos\tverb_index\tn_intervening\tn_diff_intervening"
    lines = ["the man is old\tis\tVBZ\t3\t0\t0", "i am old\tam\tVBP\t2\t0\t0", "men 're old\t're\tVBP\t2\t0\t0"]
    path.write_text("\n".join([names, *lines]) + "\n")
    _, output, _ = run(capsys, "probe agreement", model, path)
    assert "Not read: 2 pairs whose verb has no other form: am (1), 're (1)." in output
    assert "0 nouns, 0 attractors" in output
    _, output, _ = run(capsys, "probe agreement", model, path, "--json")
    assert json.loads(output)["skipped"] == {"am": 1, "'re": 1}


def test_small_letters_are_proposed(capsys, model):
    _, output, _ = run(capsys, "probe agreement", model)
    assert "In small letters the model knows The: try --lowercase." in output
    _, output, _ = run(capsys, "probe agreement", model, "--lowercase")
    assert "--lowercase" not in output


@pytest.mark.parametrize("name", ["probe agreement", "probe recall"])
@pytest.mark.parametrize(
    ("output", "message"),
    [("a.txt", r"a\.txt: unknown form; end the name in one of .*\.json, \.md"), ("gone/a.md", "gone: no such folder")],
)
def test_outputs_are_checked_before_the_work(capsys, tmp_path, name, output, message):
    arguments = [tmp_path / "no-model"] if name == "probe agreement" else QUICK
    with pytest.raises(UserError, match=message):
        run(capsys, name, *arguments, "-o", tmp_path / output)


def test_the_place_of_pairs_is_checked_before_the_work(capsys, tmp_path):
    for place in (tmp_path, tmp_path / "gone" / "pairs.tsv"):
        with pytest.raises(UserError, match="expected the name of a file in a folder that is there"):
            run(capsys, "probe agreement", tmp_path / "no-model", "--per-pair", place)


def test_recall_writes_and_prints_its_table(capsys, tmp_path):
    outputs = ["-o", tmp_path / "r.md", "-o", tmp_path / "r.json"]
    status, output, errors = run(capsys, "probe recall", *QUICK, *outputs)
    assert status == 0
    assert "GRU" in output
    assert "distance 6" in errors
    assert (tmp_path / "r.md").read_text() == output
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["complete"] is True
    assert [row["steps"] for row in content["rows"]] == [4]


def test_recall_is_written_whenever_a_run_has_ended(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    written = []
    monkeypatch.setattr(probe, "_write", lambda paths, content, table, draw: written.append((paths, content, draw)))
    arguments = [*QUICK[:2], "--distances", "6,7", *QUICK[4:]]
    run(capsys, "probe recall", *arguments, "-o", tmp_path / "r.png")
    assert [len(content["rows"]) for _, content, _ in written] == [1, 2]
    paths, _, draw = written[-1]
    assert paths == [tmp_path / "r.png"]
    draw(paths[0])
    assert paths[0].stat().st_size > 5_000


def test_numbers_that_are_not_finite_are_null_in_files(tmp_path):
    probe._write([tmp_path / "a.json"], {"rows": [{"gain": float("nan"), "nats": float("inf")}]}, "", lambda path: None)
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": [{"gain": None, "nats": None}]}


def test_recall_for_programs_says_nothing_else(capsys):
    _, output, errors = run(capsys, "probe recall", *QUICK, "--json")
    assert errors == ""
    assert json.loads(output)["settings"]["items"] == 4


def test_ctrl_c_leaves_the_finished_rows(capsys, tmp_path, monkeypatch):
    write, calls = probe._write, []

    def interrupted_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(probe, "_write", interrupted_once)
    arguments = [*QUICK[:2], "--distances", "6,7", *QUICK[4:]]
    status, output, errors = run(capsys, "probe recall", *arguments, "-o", tmp_path / "recall.json")
    assert status == 128 + signal.SIGINT
    assert "GRU" in output
    assert "stopped after 1 runs" in errors
    content = json.loads((tmp_path / "recall.json").read_text())
    assert (content["complete"], len(content["rows"])) == (False, 1)


def test_repeated_words_of_a_real_text(capsys, model, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("the man is old\nthe men are old\nthe man was old\n")
    status, output, _ = run(
        capsys, "probe recall", model, text, "--rare", "300000", "-o", tmp_path / "r.json", "--quiet"
    )
    assert status == 0
    assert "| tokens in between | mentions | words |" in output
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["reset"], content["control"]) == ("lines", "replaced")
    assert all(row["memory"] == pytest.approx(0, abs=1e-6) for row in content["rows"])
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

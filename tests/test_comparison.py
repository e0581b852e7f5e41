"""The table of all systems: made row by row, never twice."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from recurra import comparison
from recurra.cli import main
from recurra.comparison import SYSTEMS, compare
from recurra.config import UserError
from recurra.presets import PRESETS

QUICK = {"tokenizer": "whitespace", "max_steps": 12, "batch_size": 4, "chunk_length": 8}
FEW = ["kneser-ney-5", "fixed-window", "lstm-2048-512"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    lines = [f"the {a} {b} on the {c}" for a in ("cat", "dog", "cow") for b in ("sat", "lay") for c in ("mat", "log")]
    path.write_text("\n".join(lines * 40) + "\n")
    return path


def test_every_row_of_the_published_table_is_there():
    assert {system.preset for system in SYSTEMS if system.preset} == set(PRESETS)
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)


def test_all_systems_train_and_the_mixture_comes_last(text, tmp_path):
    result = compare(text, tmp_path / "c", scale=1 / 16, minutes=1.0, **QUICK)
    assert result.stopped is None
    assert [row.name for row in result.rows] == [*(system.name for system in SYSTEMS), "mixture", "mixture-cache"]
    assert all(row.problem is None and row.test > 1 and row.parameters > 0 for row in result.rows)
    assert {row.name: row.published for row in result.rows}["lstm-2048-512"] == 43.7
    content = json.loads((tmp_path / "c" / "table.json").read_text())
    assert [row["test"] for row in content["rows"]] == [row.test for row in result.rows]
    *lines, empty, about = (tmp_path / "c" / "table.md").read_text().splitlines()
    assert len(lines) == len(result.rows) + 2
    assert {line.count("|") for line in lines} == {9}
    assert not empty
    assert "1 minutes" in about
    assert {row.name: row.scale for row in result.rows}["lstm-2048-512"] == 1 / 64
    assert any("LSTM-2048-512, 1/64 of the size (`lstm-2048-512`)" in line for line in lines)


def made(folder, names):
    return {name: (folder / name / "results.json").stat().st_mtime_ns for name in names}


def test_rows_that_are_there_are_not_made_again(text, tmp_path):
    first = compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    names = [*FEW[:2], "mixture", "mixture-cache"]
    times = made(tmp_path / "c", names)
    second = compare(text, tmp_path / "c", systems=FEW[:1], scale=1 / 16, **QUICK)
    assert second.rows == first.rows  # also those that were not asked for this time
    assert times == made(tmp_path / "c", names)


def test_a_new_row_makes_the_mixtures_anew(text, tmp_path):
    compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    times = made(tmp_path / "c", [*FEW[:2], "mixture"])
    third = compare(text, tmp_path / "c", systems=FEW, scale=1 / 16, **QUICK)
    assert [row.name for row in third.rows] == [*FEW, "mixture", "mixture-cache"]
    again = made(tmp_path / "c", [*FEW[:2], "mixture"])
    assert {name for name in times if times[name] != again[name]} == {"mixture"}
    parameters = {row.name: row.parameters for row in third.rows}
    assert parameters["mixture"] == sum(parameters[name] for name in FEW)


def test_a_row_that_is_made_anew_makes_the_mixtures_anew(text, tmp_path):
    compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    before = (tmp_path / "c" / "mixture" / "row.json").read_text()
    shutil.rmtree(tmp_path / "c" / FEW[1])
    compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    assert (tmp_path / "c" / "mixture" / "row.json").read_text() != before


def test_another_system_in_a_table_is_made_in_the_same_way(text, tmp_path):
    compare(text, tmp_path / "c", systems=FEW[:1], scale=1 / 16, **QUICK)
    with pytest.raises(UserError, match=r"row of kneser-ney-5 was made with minutes 10\.0, not 1"):
        compare(text, tmp_path / "c", systems=FEW[1:2], scale=1 / 16, minutes=1, **QUICK)


def test_a_stopped_comparison_goes_on(text, tmp_path):
    def stop(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    options = {**QUICK, "log_every": 1, "scale": 1 / 16, "systems": FEW[:2]}
    stopped = compare(text, tmp_path / "c", watch=stop, **options)
    assert stopped.stopped == signal.SIGINT
    assert [row.name for row in stopped.rows] == FEW[:1]
    steps = []
    done = compare(text, tmp_path / "c", watch=lambda progress: steps.append(progress.step), **options)
    assert [row.name for row in done.rows] == [*FEW[:2], "mixture", "mixture-cache"]
    assert steps[0] == 6


def test_a_system_that_cannot_be_trained_has_a_row_that_says_why(text, tmp_path, monkeypatch):
    order = comparison.System("kneser-ney-5", "kneser-ney-5", settings={"order": 40, "discount_fallback": True})
    monkeypatch.setattr(comparison, "SYSTEMS", (order, *SYSTEMS[1:]))
    result = compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    assert [row.name for row in result.rows] == FEW[:2]
    assert "order" in result.rows[0].problem
    assert "order" in (tmp_path / "c" / "table.md").read_text()
    monkeypatch.setattr(comparison, "SYSTEMS", SYSTEMS)
    with pytest.raises(UserError, match="row of kneser-ney-5 was made with settings"):
        compare(text, tmp_path / "c", systems=FEW[:1], scale=1 / 16, **QUICK)


def test_what_does_not_fit_is_said_in_one_line(text, tmp_path, capsys):
    compare(text, tmp_path / "c", systems=FEW[:1], **QUICK)
    with pytest.raises(UserError, match=r"made with minutes 10\.0, not 3"):
        compare(text, tmp_path / "c", systems=FEW[:1], minutes=3, **QUICK)
    text.write_text(text.read_text() + "the cat sat on the log\n")
    with pytest.raises(UserError, match="made with text "):
        compare(text, tmp_path / "c", systems=FEW[:1], **QUICK)
    for options, message in (
        ({"systems": ["lstm"]}, "unknown system 'lstm'"),
        ({"test_fraction": 0.0}, "no test text"),
        ({"hidden_size": 5}, "for all systems alike"),
        ({"max_minutes": 5}, "for all systems alike"),
        ({"minutes": float("inf")}, "minutes and a scale above 0"),
        ({"scale": float("nan")}, "minutes and a scale above 0"),
    ):
        with pytest.raises(UserError, match=message):
            compare(text, tmp_path / "d", **options)
    with pytest.raises(UserError, match="no such file"):
        compare(tmp_path / "nothing.txt", tmp_path / "d")
    with pytest.raises(UserError, match="standard input"):
        compare("-", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with pytest.raises(UserError, match="no comparison"):
        compare(text, tmp_path)
    assert main(["compare", str(text), "-o", str(tmp_path / "e"), "--minutes", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_prints_the_table(text, tmp_path, capsys):
    arguments = ["compare", str(text), "-o", str(tmp_path / "c"), "--systems", "kneser-ney-5", "--quiet"]
    assert main([*arguments, "--tokenizer", "whitespace"]) == 0
    output = capsys.readouterr()
    assert "| Interpolated Kneser-Ney 5-gram (`kneser-ney-5`) | 67.6 |" in output.out
    assert output.err == ""

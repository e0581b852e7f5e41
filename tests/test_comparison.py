"""The table of all systems: made row by row, never twice."""

from __future__ import annotations

import json
import os
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


@pytest.fixture
def fallback(monkeypatch):
    """Counts of so small a text have no discounts of their own."""
    first = SYSTEMS[0]
    monkeypatch.setattr(
        comparison,
        "SYSTEMS",
        (comparison.System(first.name, first.preset, settings={"discount_fallback": True}), *SYSTEMS[1:]),
    )


def test_every_row_of_the_published_table_is_there():
    assert {system.preset for system in SYSTEMS if system.preset} == set(PRESETS)
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)


def test_all_systems_train_and_the_mixture_comes_last(text, tmp_path, fallback):
    result = compare(text, tmp_path / "c", scale=1 / 16, minutes=1.0, **QUICK)
    assert result.stopped is None
    assert [row.name for row in result.rows] == [*(system.name for system in SYSTEMS), "mixture", "mixture-cache"]
    assert all(row.problem is None and row.test > 1 and row.parameters > 0 for row in result.rows)
    assert {row.name: row.published for row in result.rows}["lstm-2048-512"] == 43.7
    content = json.loads((tmp_path / "c" / "table.json").read_text())
    assert [row["test"] for row in content["rows"]] == [row.test for row in result.rows]
    lines = (tmp_path / "c" / "table.md").read_text().splitlines()
    assert len(lines) == len(result.rows) + 2
    assert {line.count("|") for line in lines} == {9}


def test_rows_that_are_there_are_not_made_again(text, tmp_path, fallback, monkeypatch):
    first = compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    times = {row.name: (tmp_path / "c" / row.name / "results.json").stat().st_mtime_ns for row in first.rows}
    second = compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, **QUICK)
    assert second.rows == first.rows
    assert times == {row.name: (tmp_path / "c" / row.name / "results.json").stat().st_mtime_ns for row in second.rows}


def test_a_stopped_comparison_goes_on(text, tmp_path, fallback):
    def stop(progress):
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    options = {**QUICK, "log_every": 1}
    stopped = compare(text, tmp_path / "c", systems=FEW[:2], scale=1 / 16, watch=stop, **options)
    assert stopped.stopped == signal.SIGINT
    assert [row.name for row in stopped.rows] == FEW[:1]
    steps = []
    done = compare(
        text,
        tmp_path / "c",
        systems=FEW[:2],
        scale=1 / 16,
        watch=lambda progress: steps.append(progress.step),
        **options,
    )
    assert [row.name for row in done.rows] == [*FEW[:2], "mixture", "mixture-cache"]
    assert steps[0] == 6


def test_what_does_not_fit_is_said_in_one_line(text, tmp_path, fallback, capsys):
    compare(text, tmp_path / "c", systems=FEW[:1], **QUICK)
    with pytest.raises(UserError, match=r"made with minutes 10\.0, not 3"):
        compare(text, tmp_path / "c", systems=FEW[:1], minutes=3, **QUICK)
    with pytest.raises(UserError, match="unknown system 'lstm'"):
        compare(text, tmp_path / "d", systems=["lstm"])
    with pytest.raises(UserError, match="no comparison"):
        compare(text, tmp_path)
    assert main(["compare", str(text), "-o", str(tmp_path / "e"), "--minutes", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_prints_the_table(text, tmp_path, fallback, capsys):
    arguments = ["compare", str(text), "-o", str(tmp_path / "c"), "--systems", "kneser-ney-5", "--quiet"]
    assert main([*arguments, "--tokenizer", "whitespace"]) == 0
    output = capsys.readouterr()
    assert "| Interpolated Kneser-Ney 5-gram (`kneser-ney-5`) | 67.6 |" in output.out
    assert output.err == ""

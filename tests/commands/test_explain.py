"""``recurra explain``, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from recurra.cli import main


def run(capsys, *arguments):
    """Run a command in this process: exit status, output, errors."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def packing(capsys, *arguments):
    status, output, errors = run(capsys, "explain", "packing", *arguments)
    assert (status, errors) == (0, "")
    return output


def test_the_lecture_s_example_is_drawn_and_counted(capsys):
    lines = packing(capsys, 9, 8, 6, 4, 3, 2).splitlines()
    rows = [line.split() for line in lines]
    assert [list("aaaaaaaaa"), "9"] == [rows[1][:-1], rows[1][-1]]
    assert [list("ff......."), "2"] == [rows[6][:-1], rows[6][-1]]
    assert ["abcdef", "abcdef", "abcde", "abcd", "abc", "abc", "ab", "ab", "a"] in rows
    assert "   batch_sizes: 6 6 5 4 3 3 2 2 1" in lines
    assert ["multiplications", "54", "32", "40.7", "%"] in rows
    assert ["additions", "48", "26", "45.8", "%"] in rows
    assert "  padded: 6 x 9 = 54 multiplications, 6 x (9 - 1) = 48 additions" in lines
    assert "  packed: 32 cells = 32 multiplications, 32 - 6 = 26 additions" in lines
    assert not any("Sorted" in line for line in lines)


def test_columns_stand_under_each_other_with_many_sequences(capsys):
    lines = packing(capsys, *[3] * 10, 2).splitlines()
    sizes = next(line for line in lines if "<- batch_sizes" in line)
    assert sizes.split() == ["11", "11", "10", "<-", "batch_sizes"]
    ends = [sizes.index("11") + 1, sizes.rindex("11") + 1, sizes.index("10") + 1]
    assert [lines[1][end] for end in ends] == ["a", "a", "a"]
    assert [lines[11][end] for end in ends] == ["k", "k", "."]


def test_other_orders_are_sorted_and_it_says_so(capsys):
    output = packing(capsys, 3, 12, 3)
    assert output.startswith("Sorted, long ones first: 12 3 3 (given: 3 12 3)\n")
    assert "   bac bac bac b b b b b b b b b\n" in output


def test_json(capsys):
    result = json.loads(packing(capsys, "2", "3", "--json"))
    assert result == {
        "lengths": [3, 2],
        "order": [1, 0],
        "was_sorted": False,
        "sequences": 2,
        "steps": 3,
        "batch_sizes": [2, 2, 1],
        "padded": {"multiplications": 6, "additions": 4},
        "packed": {"multiplications": 5, "additions": 3},
        "saved": {"multiplications": pytest.approx(1 / 6), "additions": 0.25},
    }


@pytest.mark.parametrize("lengths", [[1000, 2], [2] * 27])
def test_what_is_too_large_to_draw_is_counted_all_the_same(lengths, capsys):
    output = packing(capsys, *lengths)
    assert "too large to draw" in output
    assert f"{sum(lengths):,} cells = {sum(lengths):,} multiplications" in output
    assert max(map(len, output.splitlines())) < 160
    assert len(json.loads(packing(capsys, *lengths, "--json"))["batch_sizes"]) == max(lengths)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["packing", "3", "0"], "LENGTH: expected a whole number of at least 1, got '0'"),
        (["packing", "-3"], "LENGTH: expected a whole number of at least 1, got '-3'"),
        (["packing", "2", "x"], "LENGTH: expected a whole number of at least 1, got 'x'"),
        (["packing", "1.5"], "LENGTH: expected a whole number of at least 1, got '1.5'"),
        (["packing"], "required: LENGTH"),
        (["packing", "10001"], "at most 10,000 steps"),
        (["packing", "2", "--jsn"], "did you mean --json"),
        ([], "did you mean 'explain packing'"),
        (["pakcing", "2"], "did you mean 'explain packing'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(words, message, capsys):
    status, output, errors = run(capsys, "explain", *words)
    assert (status, output) == (2, "")
    assert errors.startswith("recurra: ")
    assert errors.count("\n") == 1
    assert message in errors


def test_help(capsys):
    status, output, _ = run(capsys, "explain", "packing", "--help")
    assert status == 0
    assert "recurra explain packing" in output
    assert "explain packing    what" in run(capsys, "--help")[1]


def test_packing_is_explained_without_torch():
    code = "import sys, recurra.cli; recurra.cli.main(['explain', 'packing', '2']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

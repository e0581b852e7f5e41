"""``recurra explain``, as it is typed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys

import pytest

from recurra.cli import main

TEXT = "the cat sat on the mat\nthe dog sat on the log\n"


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
    assert "explain packing " in run(capsys, "--help")[1]


def test_packing_is_explained_without_torch():
    code = "import sys, recurra.cli; recurra.cli.main(['explain', 'packing', '2']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


# ---- cells, gradients, clipping -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of untrained models, one of each cell, with logs as training leaves them."""
    import torch

    import recurra
    from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
    from recurra.text.documents import Text
    from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer="words", min_count=1))
    training = {"clip_norm": 0.5, "clip_value": 0.0, "optimizer": "adam"}
    for cell in ("lstm", "gru", "rnn"):
        settings = RecurrentLMSettings(cell=cell, hidden_size=20, layers=2, embedding_size=5, output="full", tied=True)
        lm = recurra.LanguageModel(RecurrentLM(settings, tokens.vocabulary), tokens, settings={"training": training})
        lm.save(folder / cell)
        lines = [{"step": 50 * k, "gradient_norm": 0.1 * k} for k in range(1, 22)]
        (folder / cell / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def explained(capsys, *arguments):
    """What a subject says, to people and to programs."""
    status, text, errors = run(capsys, "explain", *arguments)
    assert (status, errors) == (0, "")
    status, output, errors = run(capsys, "explain", *arguments, "--json")
    assert (status, errors) == (0, "")
    return text, json.loads(output)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("of_model", [False, True])
def test_numbers_of_a_step_are_those_computed(cell, of_model, models, capsys):
    given = [models / cell, "--text", "the cat sat", "--unit", "17"] if of_model else ["--unit", "3"]
    text, result = explained(capsys, cell, *given)
    lines = text.splitlines()
    assert result["unit"] == int(given[-1])
    sigma = math.tanh if cell == "rnn" else lambda x: 1 / (1 + math.exp(-x))
    for line in result["lines"]:
        (place,) = [
            k for k, shown in enumerate(lines) if shown.split() == [line["name"], "=", *line["equation"].split()]
        ]
        numbers, value = (shown.split("=")[1].strip() for shown in lines[place + 1 : place + 3])
        assert float(value) == pytest.approx(line["value"], abs=5.1e-5)
        assert numbers == line["numbers"]
        assert eval(numbers, {"sigma": sigma, "tanh": math.tanh}) == pytest.approx(line["value"], abs=3e-4)
        shown = [float(number) for number in re.findall(r"-?\d+\.\d+", numbers)]
        for number in line["terms"].values():
            assert min(abs(number - each) for each in shown) <= 5.1e-5
    assert text.startswith({"lstm": "LSTM", "gru": "GRU", "rnn": "simple RNN"}[cell])
    of_fresh = ", at t = 2, reading e(2) (a fresh layer, seed 1)"
    assert (', layer 2, unit 17 of 20, at t = 3, reading "sat"' if of_model else of_fresh) in text
    assert ("step t predicts token t" in text) == of_model
    assert result["step"] == len(result["reads"]) - 1


@pytest.mark.parametrize("of_model", [False, True])
def test_numbers_of_a_gradient_through_time_add_up(of_model, models, capsys):
    given = [models / "gru", "--text", "the cat sat on", "--steps", "3", "--unit", "4"] if of_model else ["--seed", "2"]
    text, result = explained(capsys, "bptt", *given)
    assert sum(step["entry"] for step in result["steps"]) == pytest.approx(result["autograd"]["entry"], rel=1e-9)
    assert result["sum"] == pytest.approx(result["autograd"], rel=1e-9)
    rows = {tuple(line.split()[:-2]): line.split()[-2:] for line in text.splitlines()}
    for step in result["steps"]:
        shown = [float(number) for number in rows[str(step["step"]), step["reads"]]]
        assert shown == pytest.approx([step["norm"], step["entry"]], rel=1e-4)
    for name in ("sum", "autograd"):
        assert [float(x) for x in rows[(name,)]] == pytest.approx([*result[name].values()], rel=1e-4)
    assert f"J = {result['loss']:.6f}" in text
    if of_model:
        assert [step["reads"] for step in result["steps"]] == ["the", "cat", "sat"]
        assert "The state after step 0 is taken as given" in text
        assert result["layer"] == 2
        assert "contribution" not in result["steps"][0]  # 60 x 20 numbers
    else:
        assert len(result["steps"]) == 5
        matrices = [step["contribution"] for step in result["steps"]]
        assert math.sqrt(sum(x * x for row in matrices[-1] for x in row)) == pytest.approx(result["steps"][-1]["norm"])
        assert "Step 0 adds nothing" in text
        assert [step["reads"] for step in result["steps"]] == [f"e({step})" for step in range(5)]
        assert [step["step"] for step in result["steps"]] == list(range(5))
        assert result["steps"][0]["norm"] == 0


def test_clipping_by_norm_and_by_value(capsys):
    text, result = explained(capsys, "clipping", "--norm", "2.5", "--value", "3.5")
    assert result["before"] == {"norm": 5, "largest": 4, "cosine": pytest.approx(1), "gradient": [3, -4]}
    assert result["by_norm"]["factor"] == pytest.approx(0.5)
    assert result["by_value"]["gradient"] == [3, -3.5]
    rows = {line[:10].strip(): line[10:] for line in text.splitlines()}
    for name in ("before", "by norm", "by value"):
        numbers, vector = rows[name].split("(")
        own = result[name.replace(" ", "_")]
        assert [float(x) for x in numbers.split()] == pytest.approx(
            [own[k] for k in ("norm", "largest", "cosine")], abs=1e-6
        )
        assert [float(x) for x in vector[:-1].split(",")] == pytest.approx(own["gradient"], abs=5.1e-5)
    assert f"g * {result['by_norm']['factor']:.6f}" in text
    assert explained(capsys, "clipping", "--gradient=-1,2,2")[1]["before"]["norm"] == 3


def test_clipping_with_a_log_and_a_gradient_of_a_model(models, capsys):
    text, result = explained(capsys, "clipping", models / "lstm", "--text", "the cat sat")
    assert result["entries"] > 1000
    assert "gradient" not in result["before"]
    assert result["by_norm"]["limit"] == 0.5  # as trained
    assert f"g: {result['entries']:,} numbers" in text
    log = result["log"]
    assert (log["clip_norm"], log["logged"], log["longer_than_limit"]) == (0.5, 21, 16)
    assert [log[name] for name in ("smallest", "median", "largest")] == pytest.approx([0.1, 1.1, 2.1])
    assert "of 21 steps in the log, 16 were longer\n(76.2 %)" in text
    rows = [line.split() for line in text.splitlines()]
    shown = [[float(x) for x in row] for row in rows if len(row) == 4 and row[0].isdecimal()]
    expected = [[*row.values()] for row in log["steps"][::3]]
    assert [pytest.approx(row, abs=1e-6) for row in expected] == shown
    assert expected[1][3] == pytest.approx(0.4)
    assert expected[2][3] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lstm", "{}/gru"], "expected a model of cell lstm, got gru; try `recurra explain gru"),
        (["lstm", "{}/lstm", "--unit", "20"], "unit: expected 0 to 19, got 20"),
        (["lstm", "{}/lstm", "--layer", "3"], "layer: expected 1 to 2, got 3"),
        (["rnn", "--unit", "4"], "unit: expected 0 to 3, got 4"),
        (["rnn", "--unit", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["gru", "--text", "the"], "--text: there is no model to read it"),
        (["gru", "{}/missing"], "no such folder"),
        (["gru", "{}/gru", "--seed", "1"], "--seed: means nothing to a trained model"),
        (["bptt", "--seed", "99999999999999999999999"], "seed: expected 0 to 9007199254740992"),
        (["bptt", "{}/gru", "--text", "the", "--layer", "3"], "layer: expected 1 to 2, got 3"),
        (["bptt", "{}/gru"], "at least one token"),
        (["bptt", "{}/gru", "--cell", "gru"], "--cell: a model has its own"),
        (["bptt", "--steps", "20000"], "--steps: expected at most 10,000"),
        (["clipping", "--gradient", "3,x"], "expected numbers such as 0,3, got '3,x'"),
        (["clipping", "--norm", "0"], "norm: expected a number above 0, got 0.0"),
        (["clipping", "--text", "the"], "--text: needs the folder of a model"),
        (["lstm", "--units", "3"], "did you mean --unit"),
    ],
)
def test_mistakes_of_other_subjects(words, message, models, capsys):
    status, output, errors = run(capsys, "explain", *(word.replace("{}", str(models)) for word in words))
    assert (status, output) == (2, "")
    assert errors.startswith("recurra: ")
    assert errors.count("\n") == 1
    assert message in errors

"""`recurra gradients`: what it prints, its JSON and its pictures, and what it says to mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gradients.stacks import TEXT, model_of
from recurra import gradients
from recurra.cli import main
from recurra.language_model import LanguageModel

TRAINING = {"clip_norm": 0.5, "clip_value": 0.0, "optimizer": "adam", "chunk_length": 7}


@pytest.fixture
def folder(tmp_path):
    lm = model_of()
    LanguageModel(lm.model.float(), lm.tokenizer, settings={"training": TRAINING}).save(tmp_path / "m")
    lines = [{"step": 10 * n, "gradient_norm": n / 4} for n in range(1, 5)]
    (tmp_path / "m" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def refused(capsys, *arguments):
    try:
        status = main(["gradients", *map(str, arguments)])
    except SystemExit as stop:  # argparse's
        status = stop.code
    output, errors = capsys.readouterr()
    assert (status, output, errors.count("\n")) == (2, "", 1)
    return errors


def test_the_command_prints_what_was_found(folder, capsys):
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), "--length", "20"]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "LSTM, 2 layers of 6 units, 20 tokens" in output
    assert "what follows is of layer 2" in output
    assert "(of h; k from 1 to 10)" in output
    assert "(of c; k from 1 to 10)" in output
    assert "gradients went back fewer than 7 tokens (--chunk-length)" in output
    assert "diag(forget) + rest" in output
    assert "layer 2's own recurrence\n  gradients through it become" in output
    assert "  verdict: " in output
    assert "clipping by norm acted at 2 of them, 50.0 %" in output


def test_json_has_the_numbers(folder, capsys):
    flags = ["--length", "15", "--layer", "1", "--stride", "2", "--json", "-o", str(folder / "x.json")]
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "x.json").read_text()) == [found]
    lm = LanguageModel.load(folder / "m")
    unrolled = gradients.unroll_model(lm.model.double(), lm.tokenizer.encode(TEXT)[:15])
    expected = gradients.gradient_map(unrolled, stride=2)
    np.testing.assert_allclose(found["pairs"]["hidden"], expected.hidden[0])
    np.testing.assert_allclose(found["pairs"]["cell"], expected.cell[0])
    np.testing.assert_allclose(found["losses"], unrolled.losses)
    assert found["pairs"]["t"] == [1, 3, 5, 7, 9, 11, 13]
    assert found["layer"] == 1
    assert found["decay"]["hidden"]["relative"][0] == 1
    assert found["chunk_length"] == 7
    assert found["clipping"]["before"] == [0.25, 0.5, 0.75, 1.0]
    assert found["clipping"]["clip_norm"] == 0.5
    assert sum(found["weight_gradient"]["shares"]) == pytest.approx(1)
    assert len(found["jacobians"]) == 8
    assert len(found["jacobians"][0]["singular_values"]) == 12
    assert (found["verdict"]["jacobians"], found["verdict"]["steps"]) == (8, 14)


def test_float32_finds_nearly_the_same(folder, capsys):
    found = []
    for dtype in ("float64", "float32"):
        flags = ["--length", "15", "--json", "--dtype", dtype, "--device", "cpu"]
        assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
        found += json.loads(capsys.readouterr().out)
    double, single = (each["pairs"]["hidden"] for each in found)
    np.testing.assert_allclose(single, double, rtol=1e-2, atol=1e-6)
    assert single != double


def test_a_model_of_independent_lines_starts_anew_at_each(tmp_path, capsys):
    lm = model_of(reset="lines", cell="gru")
    LanguageModel(lm.model.float(), lm.tokenizer, settings={"training": {"chunk_length": 7}}).save(tmp_path / "m")
    (tmp_path / "text.txt").write_text(TEXT)
    assert main(["gradients", str(tmp_path / "m"), str(tmp_path / "text.txt"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    starts = [0, 7, 14, 18, 25, 32, 36, 43, 50]
    assert found["pairs"]["starts"] == starts
    assert not set(starts) & {each["step"] for each in found["jacobians"]}
    assert len(found["decay"]["hidden"]["distances"]) == 7
    assert found["chunk_length"] is None  # lines are not cut
    expected = [nats for _, nats in lm.surprisal(TEXT)]
    np.testing.assert_allclose(found["losses"], expected, rtol=1e-5)


def test_a_damaged_log_is_told_and_no_more(folder, capsys):
    for content, message in (
        ("{}\nnonsense\n{}\n", "Gradients in training: {}/m/log.jsonl:2: damaged"),
        ('{"step": 1}\n', "Gradients in training: the log has no norms"),
    ):
        (folder / "m" / "log.jsonl").write_text(content)
        assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), "--length", "12"]) == 0
        output, errors = capsys.readouterr()
        assert message.replace("{}", str(folder)) in output
        assert errors == ""


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been saved, by their files."""
    pytest.importorskip("matplotlib")
    figures = {}
    monkeypatch.setattr(
        "recurra.gradients.pictures.save", lambda figure, path: figures.update({path.name: figure.axes[0]})
    )
    return figures


TITLES = {
    "map": "m, layer 2",
    "decay": "",
    "jacobians": "m, layer 2",
    "weights": "m, layer 2: gradient of all losses",
    "clipping": "m",
}


@pytest.mark.parametrize("show", TITLES)
def test_pictures(folder, drawn, show):
    flags = ["--length", "12", "--jacobians", "1", "--show", show, "-o", str(folder / "x.png")]
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
    axes = drawn["x.png"]
    assert axes.get_title(loc="left") == TITLES[show]
    if show == "map":
        assert axes.get_images()[0].get_array().shape == (12, 12)
    elif show == "decay":
        assert {7} in [set(line.get_xdata()) for line in axes.get_lines()]  # of truncated backpropagation
    elif show == "jacobians":
        assert [len(line.get_xdata()) for line in axes.get_lines()] == [2, 12, 6, 6]
    elif show == "clipping":
        assert axes.get_lines()[0].get_ydata().tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_picture_of_c(folder, drawn):
    outputs = ["-o", str(folder / "x.png"), "-o", str(folder / "y.svg")]
    model = [str(folder / "m"), str(folder / "text.txt"), "--length", "12"]
    assert main(["gradients", *model, "--state", "cell", *outputs]) == 0
    assert drawn.keys() == {"x.png", "y.svg"}
    assert "state c(i)" in drawn["x.png"].get_xlabel()


def test_fresh_layers_side_by_side(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = ["--cell", "rnn,lstm,gru", "--hidden-size", "8", "--length", "20", "-o", str(tmp_path / "decay.png")]
    assert main(["gradients", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["cell"] for each in found] == ["rnn", "lstm", "gru"]
    assert (tmp_path / "decay.png").read_bytes().startswith(b"\x89PNG")
    assert [each["pairs"] for each in found] == [None] * 3  # of several models the decay alone is kept
    assert found[0]["decay"]["hidden"]["half_life"] < found[2]["decay"]["hidden"]["half_life"]
    own = gradients.measure(gradients.fresh("rnn", hidden_size=8, length=20), name="rnn").without_map().to_mapping()
    assert found[0] == own


def test_open_gates_help(tmp_path, capsys, drawn):
    fresh = ["--hidden-size", "8", "--length", "40", "--cell", "rnn,lstm", "--forget-bias", "0,3"]
    assert main(["gradients", *fresh, "--state", "cell", "--json", "-o", str(tmp_path / "x.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found] == ["rnn", "lstm, forget bias 0", "lstm, forget bias 3"]
    curves = [each["decay"].get("cell", each["decay"]["hidden"]) for each in found]
    rates = [curve["rate"] for curve in curves]
    assert rates[0] < rates[1] < rates[2]
    shown = [text.get_text() for text in drawn["x.png"].get_legend().get_texts()]
    expected = [f"{each['name']}: {curve['in_words']}" for each, curve in zip(found, curves, strict=True)]
    assert [text.replace(" (h) (they vanish)", "") for text in shown] == expected


def test_layers_that_explode(tmp_path, capsys, drawn):
    fresh = ["--cell", "rnn", "--nonlinearity", "relu", "--recurrent-scale", "40", "--hidden-size", "8"]
    assert refused(capsys, *fresh, "--length", "400").startswith("recurra: the state is not finite from step ")
    assert main(["gradients", *fresh, "--length", "90", "-o", str(tmp_path / "x.png")]) == 0
    output = capsys.readouterr().out
    assert "doubles every" in output
    assert "nan" not in output
    assert drawn["x.png"].get_images()[0].norm.vmax > 90


def test_the_command_tells_mistakes(folder, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    model, text, picture = folder / "m", folder / "text.txt", folder / "x.png"
    assert "expected the folder" in refused(capsys)
    assert "not both" in refused(capsys, model, "--cell", "rnn")
    assert "--seed: means nothing to a trained model" in refused(capsys, model, text, "--seed", "1")
    assert "layer 3: the model has 2" in refused(capsys, model, text, "--layer", "3")
    assert "not there any more: give a TEXT" in refused(capsys, model)
    assert "--encoding: means nothing to a model without a TEXT" in refused(capsys, model, "--encoding", "latin-1")
    assert "give -o FILE" in refused(capsys, model, text, "--show", "map")
    assert "give -o FILE" in refused(capsys, model, text, "--show", "map", "-o", folder / "x.json")
    assert "unknown form; end the name in" in refused(capsys, model, text, "-o", folder / "x.npz")
    assert "no such folder" in refused(capsys, model, text, "-o", folder / "missing" / "x.png")
    assert "--stride 300 is longer" in refused(capsys, model, text, "--stride", "300")
    assert "give --jacobians" in refused(capsys, model, text, "--jacobians", "0", "--show", "jacobians", "-o", picture)
    assert "shows one model" in refused(capsys, model, text, "--compare", model, "--show", "map", "-o", picture)
    assert "read only once" in refused(capsys, model, "-", "--compare", model)
    assert "float64; give --dtype float32" in refused(capsys, model, text, "--device", "mps")
    assert "device: expected cpu" in refused(capsys, model, text, "--device", "abacus")
    arpa = folder / "m.arpa"
    arpa.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\n-0.05\t</s>\n\n\\end\\\n")
    assert "no gradients through time" in refused(capsys, arpa, text)
    monkeypatch.setattr("recurra.planning.available_memory", lambda: 1e3)
    assert "GB of memory" in refused(capsys, model, text)
    assert "GB of memory" in refused(capsys, "--cell", "gru")
    monkeypatch.undo()
    (model / "log.jsonl").write_text("{}\nnonsense\n{}\n")
    assert "log.jsonl:2" in refused(capsys, model, text, "--show", "clipping", "-o", picture)
    (model / "log.jsonl").write_text('{"step": 1}\n')
    assert "no norms of gradients" in refused(capsys, model, text, "--show", "clipping", "-o", picture)
    (model / "log.jsonl").unlink()
    assert "no log of training" in refused(capsys, model, text, "--show", "clipping", "-o", picture)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cell", "elman"], "--cell: expected some of rnn, lstm and gru, got 'elman'"),
        (["--cell", "lstm,gru", "--nonlinearity", "relu"], "--nonlinearity: means nothing to a fresh lstm or gru"),
        (["--cell", "rnn,gru", "--forget-bias", "3"], "--forget-bias: means nothing to a fresh rnn or gru"),
        (["--cell", "lstm", "--forget-bias", "a"], "expected numbers such as 0,3, got 'a'"),
        (["--cell", "lstm", "--forget-bias", "inf"], "forget_bias: expected a finite number"),
        (["--cell", "rnn", "--recurrent-scale", "nan"], "recurrent_scale: expected a finite number, got nan"),
        (["--cell", "rnn", "--seed", "99999999999999999999999"], "seed: expected 0 to 9007199254740992"),
        (["--cell", "rnn", "--layer", "2"], "--layer 2: expected 1 to 1"),
        (["--cell", "rnn,gru", "--state", "cell"], "--state cell: only an lstm has a cell state, got gru and rnn"),
        (["--cell", "rnn", "--compare", "x"], "--compare: means nothing to a fresh layer"),
        (["--cell", "rnn", "--target", "200"], "step 200: the text has 200"),
        (["--cell", "rnn", "--show", "clipping", "-o", "x.png"], "fresh layers were not trained"),
        (["--cell", "rnn", "--jacobians", "-1"], "--jacobians: expected 0 or more"),
    ],
)
def test_mistakes_of_fresh_layers(flags, message, capsys):
    pytest.importorskip("matplotlib")
    assert message in refused(capsys, *flags)


def test_other_tokens_are_warned_of(folder, capsys):
    other = model_of(tokenizer="characters")
    LanguageModel(other.model.float(), other.tokenizer).save(folder / "other")
    flags = [str(folder / "text.txt"), "--length", "12", "--jacobians", "0"]
    assert main(["gradients", str(folder / "m"), "--compare", str(folder / "m"), *flags]) == 0
    assert capsys.readouterr().err == ""
    assert main(["gradients", str(folder / "m"), "--compare", str(folder / "other"), *flags]) == 0
    errors = capsys.readouterr().err
    assert f"{folder / 'other'} has other tokens than {folder / 'm'}" in errors
    assert errors.count("\n") == 1


def test_pictures_say_that_gradients_vanish(tmp_path, drawn):
    fresh = ["--hidden-size", "8", "--length", "20", "--nonlinearity", "sigmoid"]
    assert main(["gradients", "--cell", "rnn", *fresh, "-o", str(tmp_path / "one.png")]) == 0
    assert main(["gradients", "--cell", "rnn,lstm", *fresh, "-o", str(tmp_path / "two.png")]) == 0
    assert drawn["one.png"].get_title(loc="left") == "rnn, layer 1: gradients vanish"
    first, second = (text.get_text() for text in drawn["two.png"].get_legend().get_texts())
    assert first.startswith("rnn (they vanish): half-life")
    assert second.startswith("lstm: half-life")


def test_of_a_lower_layer_the_map_says_nothing(tmp_path, drawn):
    """Its own recurrence may vanish while gradients grow through the layers above."""
    fresh = ["--cell", "rnn", "--hidden-size", "8", "--layers", "2", "--length", "20", "--nonlinearity", "sigmoid"]
    for layer, show in ((1, "map"), (1, "decay"), (1, "jacobians"), (2, "map")):
        flags = ["--layer", str(layer), "--show", show, "-o", str(tmp_path / f"{layer}{show}.png")]
        assert main(["gradients", *fresh, *flags]) == 0
    titles = {name: axes.get_title(loc="left") for name, axes in drawn.items()}
    assert titles["1map.png"] == "rnn, layer 1"
    assert titles["1jacobians.png"] == "rnn, layer 1's own recurrence: gradients vanish"
    assert titles["2map.png"] == "rnn, layer 2: gradients vanish"
    assert "they vanish" not in drawn["1decay.png"].get_legend().get_texts()[0].get_text()


def test_two_models_of_one_name_are_told_apart(folder, drawn):
    model, text = str(folder / "m"), str(folder / "text.txt")
    flags = ["--length", "12", "--jacobians", "0", "-o", str(folder / "x.png")]
    assert main(["gradients", model, text, "--compare", model, *flags]) == 0
    first, second, _ = (each.get_text() for each in drawn["x.png"].get_legend().get_texts())
    assert first.startswith(f"{model}: ")
    assert second.startswith(f"{model} (2): ")


def test_work_that_takes_long_says_what_it_is_at(folder, capsys, monkeypatch):
    monkeypatch.setattr("recurra.commands.gradients.PATIENCE", -1)
    flags = [str(folder / "m"), str(folder / "text.txt"), "--length", "12"]
    assert main(["gradients", *flags]) == 0
    assert f"{folder / 'm'}: Jacobian 8 of 8\n" in capsys.readouterr().err
    assert main(["gradients", *flags, "--json"]) == 0
    assert capsys.readouterr().err == ""

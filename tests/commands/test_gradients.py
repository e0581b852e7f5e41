"""`recurra gradients`: what it prints, its JSON and its pictures, and what it says to mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gradients.stacks import TEXT, model_of
from recurra import gradients
from recurra.cli import main
from recurra.language_model import LanguageModel


@pytest.fixture
def folder(tmp_path):
    lm = model_of()
    LanguageModel(lm.model.float(), lm.tokenizer, settings={"training": {"clip_norm": 0.5, "clip_value": 0.0}}).save(
        tmp_path / "m"
    )
    lines = [{"step": 10 * n, "gradient_norm": n / 4} for n in range(1, 5)]
    (tmp_path / "m" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def refused(capsys, *arguments):
    status = main(["gradients", *map(str, arguments)])
    output, errors = capsys.readouterr()
    assert (status, output, errors.count("\n")) == (2, "", 1)
    return errors


def test_the_command_prints_what_was_found(folder, capsys):
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), "--length", "20"]) == 0
    output = capsys.readouterr().out
    assert "LSTM, 2 layers of 6 units, 20 tokens" in output
    assert "layer 2" in output
    assert "half-life" in output
    assert "diag(forget) + rest" in output
    assert "verdict: " in output
    assert "clipping acted at 2 of them, 50.0 %" in output


def test_json_has_the_numbers(folder, capsys):
    flags = ["--length", "15", "--layer", "1", "--stride", "2", "--json"]
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    lm = LanguageModel.load(folder / "m")
    unrolled = gradients.unroll_model(lm.model.double(), lm.tokenizer.encode(TEXT)[:15])
    expected = gradients.gradient_map(unrolled, stride=2)
    np.testing.assert_allclose(found["pairs"]["hidden"], expected.hidden[0])
    np.testing.assert_allclose(found["losses"], unrolled.losses)
    assert found["pairs"]["t"] == [1, 3, 5, 7, 9, 11, 13]
    assert found["layer"] == 1
    assert found["decay"]["relative"][0] == 1
    assert found["clipping"]["before"] == [0.25, 0.5, 0.75, 1.0]
    assert found["clipping"]["clip_norm"] == 0.5
    assert sum(found["weight_gradient"]["shares"]) == pytest.approx(1)
    assert len(found["jacobians"]) == 8


@pytest.mark.parametrize("picture", ["map", "decay", "jacobians", "weights", "clipping"])
def test_pictures(folder, capsys, picture):
    pytest.importorskip("matplotlib")
    path = folder / ("picture.svg" if picture == "map" else "picture.png")
    flags = ["--length", "12", "--jacobians", "1", "--picture", picture, "-o", str(path)]
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
    assert path.read_bytes().startswith(b"<?xml" if picture == "map" else b"\x89PNG")


def test_fresh_layers_side_by_side(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = ["--cell", "rnn,lstm,gru", "--hidden-size", "8", "--length", "20", "-o", str(tmp_path / "decay.png")]
    assert main(["gradients", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["cell"] for each in found] == ["rnn", "lstm", "gru"]
    assert (tmp_path / "decay.png").exists()
    assert found[0]["verdict"] in ("vanish", "neither can be said")


def test_the_command_tells_mistakes(folder, capsys, monkeypatch):
    model, text = folder / "m", folder / "text.txt"
    assert "expected the folder" in refused(capsys)
    assert "not both" in refused(capsys, model, "--cell", "rnn")
    assert "--seed: means nothing to a trained model" in refused(capsys, model, text, "--seed", "1")
    assert "layer 3: the model has 2" in refused(capsys, model, text, "--layer", "3")
    assert "not there any more: give a TEXT" in refused(capsys, model)
    assert "give -o FILE" in refused(capsys, model, text, "--picture", "map")
    assert "stride 300 is longer" in refused(capsys, model, text, "--stride", "300")
    assert "give --jacobians" in refused(
        capsys, model, text, "--jacobians", "0", "--picture", "jacobians", "-o", folder / "x.png"
    )
    assert "shows one model" in refused(capsys, model, text, "--compare", model, "--picture", "map", "-o", "x.png")
    arpa = folder / "m.arpa"
    arpa.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\n-0.05\t</s>\n\n\\end\\\n")
    assert "no gradients through time" in refused(capsys, arpa, text)
    monkeypatch.setattr("recurra.planning.available_memory", lambda: 1e3)
    assert "GB of memory" in refused(capsys, model, text)
    (model / "log.jsonl").write_text("{}\nnonsense\n{}\n")
    monkeypatch.undo()
    assert "log.jsonl:2" in refused(capsys, model, text)


def test_pictures_say_that_gradients_vanish(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    titles = []
    monkeypatch.setattr("recurra.gradients.pictures.save", lambda figure, path: titles.append(figure.axes[0]))
    fresh = ["--hidden-size", "8", "--length", "20", "--nonlinearity", "sigmoid", "-o", str(tmp_path / "x.png")]
    assert main(["gradients", "--cell", "rnn", *fresh]) == 0
    assert main(["gradients", "--cell", "rnn,lstm", *fresh]) == 0
    assert titles[0].get_title(loc="left") == "rnn, layer 1: gradients vanish"
    first, second = (text.get_text() for text in titles[1].get_legend().get_texts())
    assert first.startswith("rnn (they vanish): half-life")
    assert second.startswith("lstm: half-life")


def test_two_models_of_one_name_are_told_apart(folder, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr("recurra.gradients.pictures.save", lambda figure, path: drawn.append(figure.axes[0]))
    model, text = str(folder / "m"), str(folder / "text.txt")
    flags = ["--length", "12", "--jacobians", "0", "-o", str(folder / "x.png")]
    assert main(["gradients", model, text, "--compare", model, *flags]) == 0
    first, second = (each.get_text() for each in drawn[0].get_legend().get_texts())
    assert first.startswith(f"{model}: ")
    assert second.startswith(f"{model} (2): ")

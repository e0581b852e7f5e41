"""Preparing a run: what is chosen, what is refused, and what is never lost."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import recurra
from recurra.cli import main
from recurra.config import UserError
from recurra.models.recurrent_lm import RecurrentLMSettings
from recurra.recipes import settle
from recurra.training import TrainingSettings

SHORT = {"tokenizer": "whitespace", "hidden_size": 8, "max_steps": 5, "batch_size": 2, "chunk_length": 5}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("red green blue\nblue red green\n" * 50)
    return path


def settled(**training):
    words = SimpleNamespace(kind="words", vocabulary=range(8_000))
    return settle("lm", RecurrentLMSettings(), TrainingSettings(**training), range(1_000_000), words)


def test_a_few_steps_ask_for_little_dropout_and_many_passes_for_much():
    few, _ = settled(max_steps=20)
    many, _ = settled(epochs=10)
    assert few.dropout < 0.01 < 0.3 < many.dropout
    assert few.maxent_dropout == 0 < 0.2 < many.maxent_dropout
    assert few.hidden_size < many.hidden_size


def test_sgd_is_clipped_to_what_its_rate_is_for():
    assert settled(optimizer="sgd")[1].clip_norm == 0.25
    assert settled(optimizer="adam")[1].clip_norm == 1.0
    assert settled(optimizer="sgd", clip_norm=0.0)[1].clip_norm == 0.0


def test_other_cells_than_the_lstm_learn_at_a_lower_rate():
    def rate(cell, kind="words", **options):
        tokenizer = SimpleNamespace(kind=kind, vocabulary=range(8_000 if kind == "words" else 80))
        training = TrainingSettings(epochs=5, **options)
        return settle("lm", RecurrentLMSettings(cell=cell), training, range(1_000_000), tokenizer)[1].learning_rate

    assert rate("rnn") < rate("gru") < rate("lstm")
    assert rate("rnn", "characters") < rate("gru", "characters") == rate("lstm", "characters")
    assert rate("gru", learning_rate=0.01) == 0.01
    assert rate("gru", optimizer="sgd") == rate("lstm", optimizer="sgd")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_model_loses_nothing(overwrite, text, tmp_path):
    mine = tmp_path / "project" / "training" / "precious.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="not a model's folder"):
        recurra.train_lm(text, tmp_path / "project", overwrite=overwrite, **SHORT)
    assert mine.read_text() == "mine"
    (tmp_path / "project" / "settings.json").write_text("{}")
    with pytest.raises(UserError):
        recurra.train_lm(text, tmp_path / "project", overwrite=overwrite, **SHORT)
    assert mine.read_text() == "mine"


def test_a_refused_run_leaves_the_old_model(text, tmp_path, monkeypatch):
    recurra.train_lm(text, tmp_path / "m", **SHORT)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="bfloat16"):
        recurra.train_lm(text, tmp_path / "m", overwrite=True, **SHORT, precision="bfloat16", device="cpu")
    assert recurra.load(tmp_path / "m").perplexity("red green blue\n") > 1


def test_no_folder_is_refused(text):
    with pytest.raises(UserError, match="no folder"):
        recurra.train_lm(text, **SHORT)


def test_resuming_takes_the_same_settings_however_they_are_given(text, tmp_path):
    valid = tmp_path / "valid.txt"
    valid.write_text("red green blue\n" * 20)
    recurra.train_lm(text, tmp_path / "m", valid=valid, **SHORT)
    again = recurra.train_lm(
        directory=tmp_path / "m", resume=True, valid=str(valid), hidden_size=8, learning_rate=None, max_steps=7
    )
    assert again.evaluations
    with pytest.raises(UserError, match="cannot change"):
        recurra.train_lm(directory=tmp_path / "m", resume=True, hidden_size=9)
    with pytest.raises(UserError, match="no end"):
        recurra.train_lm(directory=tmp_path / "m", resume=True, max_steps=None)
    assert recurra.train_lm(directory=tmp_path / "m", resume=True, max_steps=9)


def test_a_model_of_lines_forgets_the_lines_before_a_prompts_last(text, tmp_path):
    lm = recurra.train_lm(text, tmp_path / "m", **SHORT, reset="lines").lm
    assert lm.next_tokens("green green\nred", k=3) == lm.next_tokens("red", k=3)
    assert lm.next_tokens("green green\n", k=3) == lm.next_tokens("", k=3)


@pytest.mark.parametrize(
    "flags",
    [("--beta2", "1"), ("--hidden-size", ""), ("--seed", "18446744073709551616")],
    ids=" ".join,
)
def test_odd_values_are_one_line(flags, text, tmp_path, capsys):
    try:
        status = main(["train", "lm", str(text), "-o", str(tmp_path / "m"), "--max-steps", "2", *flags])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if not line.startswith("reading")]) == 1


def test_a_preset_is_below_the_file_and_the_flags(text, tmp_path):
    (tmp_path / "s.toml").write_text("[model]\nlayers = 3\n[training]\nlearning_rate = 0.05\n")
    options = {"preset": "lstm-8192-1024", "scale": 1 / 256, "config": tmp_path / "s.toml", "max_steps": 2}
    recurra.train_lm(
        text, tmp_path / "m", **options, tokenizer="whitespace", batch_size=2, learning_rate=0.01, samples=2
    )
    settings = json.loads((tmp_path / "m" / "settings.json").read_text())
    assert settings["model"]["hidden_size"] == 32
    assert settings["model"]["projection_size"] == 4
    assert settings["model"]["layers"] == 3
    assert settings["training"]["optimizer"] == "adagrad"
    assert settings["training"]["learning_rate"] == 0.01


def test_a_preset_cannot_change_on_resuming(text, tmp_path):
    options = {"tokenizer": "whitespace", "max_steps": 2, "batch_size": 2, "chunk_length": 5, "samples": 2}
    recurra.train_lm(text, tmp_path / "m", preset="lstm-2048-512", scale=1 / 128, **options)
    again = {**options, "max_steps": 4, "resume": True}
    assert recurra.train_lm(directory=tmp_path / "m", preset="lstm-2048-512", scale=1 / 128, **again).evaluations
    with pytest.raises(UserError, match="_size cannot change"):
        recurra.train_lm(directory=tmp_path / "m", preset="lstm-2048-512", scale=1 / 64, **again)
    with pytest.raises(UserError, match="'ngram' is the kind of preset"):
        recurra.train_lm(directory=tmp_path / "m", preset="kneser-ney-5", kind="lm", resume=True)


def test_what_was_not_trained_there_cannot_be_resumed(text, tmp_path):
    recurra.train_lm(text, tmp_path / "m", **SHORT).lm.save(tmp_path / "copy")
    with pytest.raises(UserError, match="not trained there"):
        recurra.train_lm(directory=tmp_path / "copy", resume=True)


def test_counting_is_for_one_process(text, tmp_path, monkeypatch):
    monkeypatch.setattr("recurra.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match="without torchrun"):
        recurra.train_lm(text, tmp_path / "m", kind="ngram")


def test_swatches_of_another_encoding_are_one_line(tmp_path, capsys):
    (tmp_path / "c.txt").write_bytes(b"caf\xe9 1 2 3\n")
    pytest.importorskip("matplotlib")
    assert main(["swatches", str(tmp_path / "c.txt"), "-o", str(tmp_path / "c.png")]) == 2
    assert "not UTF-8 at byte 3" in capsys.readouterr().err

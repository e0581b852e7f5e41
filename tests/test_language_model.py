"""What a user holds, and what is on disk."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import recurra
from recurra.checkpoint import TYPES, read_tensors, write_tensors
from recurra.config import UserError
from recurra.files import written_whole
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

TEXT = "the cat sat on the mat\nthe dog sat on the log\n" * 5
SETTINGS = RecurrentLMSettings(hidden_size=8, layers=1, embedding_size=8, output="full", tied=True)


@pytest.fixture(params=["characters", "words", "whitespace", "byte-pairs"])
def lm(request):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer=request.param))
    return recurra.LanguageModel(RecurrentLM(SETTINGS, tokenizer.vocabulary).eval(), tokenizer)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer="words"))
    recurra.LanguageModel(RecurrentLM(SETTINGS, tokenizer.vocabulary), tokenizer).save(tmp_path / "m")
    return tmp_path / "m"


def test_saving_and_loading_change_nothing(lm, tmp_path):
    lm.save(tmp_path / "m")
    again = recurra.load(tmp_path / "m")
    assert again.perplexity(TEXT) == lm.perplexity(TEXT)
    assert again.generate("the", seed=1, max_tokens=20)[0] == lm.generate("the", seed=1, max_tokens=20)[0]


def test_perplexity_is_the_exponential_of_the_mean_surprisal(lm):
    surprisals = [nats for _, nats in lm.surprisal(TEXT)]
    assert lm.perplexity(TEXT) == pytest.approx(math.exp(sum(surprisals) / len(surprisals)))
    assert lm.evaluate(TEXT).tokens == len(surprisals)


@pytest.mark.parametrize("reset", ["none", "lines"])
def test_perplexity_does_not_depend_on_batch_or_chunk(lm, reset):
    found = [lm.perplexity(TEXT, reset=reset, batch_size=b, chunk_length=c) for b, c in ((1, 1), (3, 7), (32, 256))]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_next_tokens_are_a_distribution_with_the_likeliest_first(lm):
    size = len(lm.tokenizer.vocabulary)
    found = lm.next_tokens("the ", k=size)
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-5)
    assert [p for _, p in found] == sorted((p for _, p in found), reverse=True)
    token, p = found[3]
    assert lm.next_probability("the ", token) == pytest.approx(p, rel=1e-5)


def test_stream_gives_what_generate_gives(lm):
    pieces = list(lm.stream("the", count=2, seed=3, max_tokens=15))
    texts = ["".join(p.text for p in pieces if p.row == row) for row in range(2)]
    assert texts == [passage.text for passage in lm.generate("the", count=2, seed=3, max_tokens=15)]


def test_tokens_of_another_vocabulary_are_refused(lm):
    other = build_tokenizer(Text.from_string("something else entirely\n"), TokenizerSettings(tokenizer="whitespace"))
    with pytest.raises(UserError, match="another vocabulary"):
        lm.perplexity(recurra.text.batches.TokenStream.from_text("something\n", other))


def test_an_unknown_generation_setting_names_the_nearest(lm):
    with pytest.raises(UserError, match="did you mean `temperature`"):
        lm.generate("the", temprature=0.5)


# ---- damaged or foreign folders -----------------------------------------------------------------------------------


def damage_cut_short(m):
    content = (m / "weights.safetensors").read_bytes()
    (m / "weights.safetensors").write_bytes(content[: len(content) // 2])


def damage_flipped_bit(m):
    content = bytearray((m / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (m / "weights.safetensors").write_bytes(content)


def damage_no_weights(m):
    (m / "weights.safetensors").unlink()


def damage_vocabulary(m):
    settings = json.loads((m / "settings.json").read_text())
    tokens = settings["tokenizer"]["vocabulary"]["tokens"]
    tokens[3], tokens[4] = tokens[4], tokens[3]
    (m / "settings.json").write_text(json.dumps(settings))


def damage_kind(m):
    settings = json.loads((m / "settings.json").read_text())
    (m / "settings.json").write_text(json.dumps({**settings, "kind": "tagger"}))


def damage_sizes(m):
    settings = json.loads((m / "settings.json").read_text())
    settings["model"]["hidden_size"] = 9
    (m / "settings.json").write_text(json.dumps(settings))


def damage_json(m):
    (m / "settings.json").write_text((m / "settings.json").read_text()[:-20])


def damage_format(m):
    settings = json.loads((m / "settings.json").read_text())
    (m / "settings.json").write_text(json.dumps({**settings, "format": 99}))


def damage_no_settings(m):
    (m / "settings.json").unlink()


def damage_no_folder(m):
    shutil.rmtree(m)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut_short, "cut short"),
        (damage_flipped_bit, "does not match its digest"),
        (damage_no_weights, "missing"),
        (damage_vocabulary, "another vocabulary"),
        (damage_kind, "kind 'tagger', expected one of lm, "),
        (damage_sizes, "expected .* by the settings, found"),
        (damage_json, "damaged"),
        (damage_format, "format 99"),
        (damage_no_settings, "not a model"),
        (damage_no_folder, "no such folder"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(damage, message, saved):
    damage(saved)
    with pytest.raises(UserError, match=message) as caught:
        recurra.load(saved)
    assert "\n" not in str(caught.value)


def test_tensors_of_every_type_come_back(tmp_path):
    tensors = {
        "half": torch.randn(3, 2).to(torch.bfloat16),
        "no half": torch.zeros(2, 0, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "whole": torch.arange(5),
        "across": torch.randn(4, 3).t(),
        "repeated": torch.randn(1, 3).expand(2, 3),
        "a parameter": torch.nn.Parameter(torch.randn(3)),
    } | {str(dtype): torch.tensor([[0, 1, 1]]).to(dtype) for dtype in TYPES}
    metadata = {"note": "x", "name": "Ω"}
    write_tensors(tmp_path / "t", tensors, metadata)
    for found, said in (read_tensors(tmp_path / "t"), (load_file(tmp_path / "t"), metadata)):  # and the library alone
        assert said == metadata
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0)

    write_tensors(tmp_path / "again", dict(reversed(tensors.items())), metadata)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "t").read_bytes()
    write_tensors(tmp_path / "none", {}, {})
    assert read_tensors(tmp_path / "none") == ({}, {})


def test_tensors_are_written_from_where_they_lie(tmp_path, monkeypatch):
    """No second copy: numpy's and Python's memory is traced, and what torch would allocate is shared with it."""
    tensors = {"a": torch.zeros(1_000_000), "b": torch.zeros(500_000, 2, dtype=torch.bfloat16)}
    lies = {tensor.data_ptr() for tensor in tensors.values()}
    written = []

    @contextlib.contextmanager
    def watched(path, mode):
        with written_whole(path, mode) as file:
            yield SimpleNamespace(write=lambda content: (written.append(content), file.write(content)))

    monkeypatch.setattr("recurra.checkpoint.written_whole", watched)
    tracemalloc.start()
    write_tensors(tmp_path / "t", tensors, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert {np.frombuffer(content, np.uint8).ctypes.data for content in written if len(content) > 1000} == lies


@pytest.mark.parametrize("output", ["full", "adaptive"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_int8_is_close_and_steps_agree_with_reading_at_once(cell, output, tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer="words"))
    settings = RecurrentLMSettings(
        cell=cell,
        hidden_size=40,
        layers=2,
        embedding_size=33,
        output=output,
        tied=False,
        cutoffs=(3, 5) if output == "adaptive" else None,
    )
    recurra.LanguageModel(RecurrentLM(settings, tokenizer.vocabulary), tokenizer).save(tmp_path / "m")
    exact, small = (recurra.load(tmp_path / "m", precision=precision) for precision in ("float32", "int8"))
    assert small.perplexity(TEXT) != exact.perplexity(TEXT)
    assert small.perplexity(TEXT) == pytest.approx(exact.perplexity(TEXT), rel=0.01)
    tokens = small.tokenizer.encode("the cat sat on the mat").tolist()
    state, steps = small.model.start(1), []
    with torch.no_grad():
        for token in tokens:
            log_probs, state = small.model.step(torch.tensor([token]), state)
            steps.append(log_probs)
        inputs = torch.tensor(tokens)[:, None]
        found, _ = small.model.score(inputs[:-1], inputs[1:], small.model.start(1))
    wanted = [float(step[0, token]) for step, token in zip(steps, tokens[1:], strict=False)]
    assert found[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)


def test_an_unknown_precision_is_named(saved):
    with pytest.raises(UserError, match="precision: expected float32 or int8, got 'int4'"):
        recurra.load(saved, precision="int4")

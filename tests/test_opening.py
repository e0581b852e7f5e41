"""One place knows what every kind of model is called and opens as."""

from __future__ import annotations

import json

import pytest

import recurra
from recurra.commands.predict import TRAINED, is_predictor
from recurra.config import UserError
from recurra.models.kinds import KINDS
from recurra.opening import about
from recurra.tasks import TASKS


@pytest.fixture(scope="module")
def ngram(tmp_path_factory):
    path = tmp_path_factory.mktemp("opening")
    (path / "text.txt").write_text("the dog sees the cat\nthe cat sees a dog\n" * 30)
    recurra.train_lm(path / "text.txt", path / "m", kind="ngram", tokenizer="whitespace", discount_fallback=True)
    return path / "m"


@pytest.mark.parametrize("kind", [*KINDS, *TASKS, "mixture"])
def test_every_kind_is_known(kind, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"format": 1, "kind": kind}))
    found = about(tmp_path)
    assert found.kind == kind
    assert found.title
    assert found.predicts == is_predictor(tmp_path) == (kind in TRAINED)
    assert found.unit == ("target" if kind in TASKS else "token")
    assert ("training" in found.sections) == found.trained == (kind not in ("ngram", "snm", "mixture"))


def test_what_opens(ngram, tmp_path):
    lm = about(ngram).open(device="cpu")
    assert isinstance(lm, recurra.LanguageModel)
    assert lm.recurrent is None
    (tmp_path / "m.arpa").write_text("")
    assert about(tmp_path / "m.arpa").kind == "ngram"
    assert not is_predictor(tmp_path / "m.arpa")


def test_what_is_no_model(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        about(tmp_path / "none")
    with pytest.raises(UserError, match="not a model"):
        is_predictor(tmp_path)
    (tmp_path / "settings.json").write_text('{"format": 1, "kind": "lamp"}')
    with pytest.raises(UserError, match=r"kind 'lamp', expected one of lm, .*mixture, tagger"):
        about(tmp_path)


def test_held_out_text(ngram):
    lm = recurra.load(ngram)
    for split in ("valid", "test"):
        assert lm.held_out(split).vocabulary == lm.tokenizer.vocabulary.digest()
    assert lm.held_out("other") is None
    assert recurra.LanguageModel(lm.model, lm.tokenizer, "ngram").held_out() is None

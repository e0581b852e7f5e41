"""Predictions as input arrives: the same as those of the whole, and none later than it must."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest

from recurra.cli import main
from recurra.config import UserError
from recurra.streaming import FrameStream, follow
from recurra.supervised import train_task
from recurra.text.features import FeatureSettings, log_mel

SMALL = {"hidden_size": 12, "layers": 1, "max_steps": 30, "learning_rate": 0.02, "batch_size": 16}
TEXT = "the dog bites\na hen sees the cat\n\nthe end"


class Slow(io.RawIOBase):
    """Standard input that gives a few bytes at a time, and notes how many were asked for."""

    def __init__(self, content, step):
        self.content, self.step, self.given = content, step, 0

    def read1(self, _):
        piece = self.content[self.given : self.given + self.step]
        self.given += len(piece)
        return piece


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streaming")
    chance = random.Random(1)
    words = ["the", "a", "dog", "cat", "hen", "sees", "bites", "end"]
    texts = [[chance.choice(words) for _ in range(chance.randint(1, 6))] for _ in range(150)]
    (folder / "tags").write_text("\n\n".join("\n".join(f"{w} {w[0].upper()}" for w in text) for text in texts))
    (folder / "labels.tsv").write_text("\n".join(f"{' '.join(text)}\t{text[0]}" for text in texts) + "\n")
    one_way = SMALL | {"bidirectional": False}
    return {
        "tagger": train_task("tagger", folder / "tags", folder / "tagger", **one_way).predictor,
        "classifier": train_task("classifier", folder / "labels.tsv", folder / "classifier", **one_way).predictor,
        "both ways": train_task("tagger", folder / "tags", folder / "both", **SMALL).predictor,
        "folder": folder,
    }


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_tagger_tags_as_it_does_with_the_whole_line(models, step):
    found = list(follow(models["tagger"].model, Slow(TEXT.encode(), step)))
    lines = [line.split() for line in TEXT.splitlines()]
    expected = []
    for words, tags in zip(lines, models["tagger"].predict(lines), strict=True):
        expected += [f"{word}\t{tag}" for word, tag in zip(words, tags, strict=True)] + [""]
    assert found == expected


def test_a_word_is_tagged_before_the_next_has_come(models):
    file = Slow(b"the dog bites", 1)
    pieces = follow(models["tagger"].model, file)
    assert next(pieces).startswith("the\t")
    assert file.given == len("the ")


@pytest.mark.parametrize("step", [1, 5])
def test_a_classifier_says_what_it_would_say_if_the_line_ended_there(models, step):
    found = [line.split("\t") for line in follow(models["classifier"].model, Slow(TEXT.encode(), step))]
    prefixes = ["the", "the dog", "the dog bites"]
    for line, expected in zip(found, models["classifier"].predict(prefixes), strict=False):
        assert line[1] == expected["label"]
        assert float(line[2]) == pytest.approx(expected["probabilities"][line[1]], abs=1e-3)
    assert found[3] == [""]


def test_who_needs_the_end_refuses_in_one_line(models, capsys, monkeypatch):
    with pytest.raises(UserError, match="bidirectional"):
        next(iter(follow(models["both ways"].model, io.BytesIO(b"the dog"))))
    with pytest.raises(UserError, match="not utf-8"):
        list(follow(models["tagger"].model, io.BytesIO(b"caf\xe9 ")))
    folder = models["folder"]
    assert main(["predict", str(folder / "both"), "--stream"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["predict", str(folder / "tagger"), str(folder / "tags"), "--stream"]) == 2
    assert "leave the files out" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the dog")))
    assert main(["predict", str(folder / "tagger"), "-", "--stream"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("the\t")


@pytest.mark.parametrize("pieces", [[4000], [1, 99, 100, 800, 3000], [37] * 108 + [4]])
def test_frames_of_pieces_are_those_of_the_whole_sound(pieces):
    settings = FeatureSettings(rate=8000, normalize=False)
    sound = np.random.default_rng(0).normal(0, 0.1, 4000)
    stream = FrameStream(settings)
    found = np.concatenate([stream.push(piece) for piece in np.split(sound, np.cumsum(pieces)[:-1])])
    np.testing.assert_allclose(found, log_mel(sound, 8000, settings), rtol=1e-5, atol=1e-5)


def test_features_that_need_the_whole_sound_are_refused():
    with pytest.raises(UserError, match="--no-normalize"):
        FrameStream(FeatureSettings(rate=8000))
    with pytest.raises(UserError, match="not on sound"):
        FrameStream(FeatureSettings(normalize=False))

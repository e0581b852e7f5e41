"""Predictions as input arrives: the same as those of the whole, and none later than it must."""

from __future__ import annotations

import io
import random
import wave

import numpy as np
import pytest
import torch

from recurra.cli import main
from recurra.config import UserError
from recurra.models.classifier import Classifier, ClassifierCodec, ClassifierSettings
from recurra.models.transcriber import Transcriber, TranscriberCodec, TranscriberSettings
from recurra.streaming import FrameStream, follow
from recurra.supervised import train_task
from recurra.text.examples import ExampleBatch, collate
from recurra.text.features import FeatureSettings, log_mel
from recurra.text.readers import Labelled, Recording

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
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_tagger_tags_as_it_does_with_the_whole_line(models, step, line_end):
    found = list(follow(models["tagger"].model, Slow(TEXT.replace("\n", line_end).encode(), step)))
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


@pytest.mark.parametrize("step", [1, 100])
def test_words_end_where_they_end_in_files(models, step, tmp_path):
    text = "the\u00a0dog bites\u2028a \x1fhen\r\nthe\x0cdog\n"
    (tmp_path / "lines.txt").write_bytes(text.encode())
    predictor = models["tagger"]
    whole = [list(example.words) for example in predictor.read([str(tmp_path / "lines.txt")])]
    lines = list(follow(predictor.model, Slow(text.encode(), step)))
    assert [line.split("\t")[0] for line in lines] == [word for words in whole for word in [*words, ""]]


@pytest.mark.parametrize("units", ["words", "characters", "byte-pairs"])
@torch.no_grad()
def test_a_classifier_reads_the_spaces_between_words_whatever_its_units(units):
    settings = ClassifierSettings(units=units, hidden_size=8, word_size=6, bidirectional=False, vocabulary_size=300)
    examples = [Labelled("the dog bites the dog", "a"), Labelled("a hen sees the dog", "b")]
    codec = ClassifierCodec.build(examples, settings)
    torch.manual_seed(0)
    model = Classifier(Classifier.settle(settings, examples, codec), codec).eval()
    text = "the dog bites\na hen"
    found = [line.split("\t") for line in follow(model, Slow(text.encode(), 3)) if line]
    for line, prefix in zip(found, ["the", "the dog", "the dog bites", "a", "a hen"], strict=True):
        (expected,) = model.predict(collate([codec.encode(Labelled(prefix), targets=False)]))
        assert line[1] == expected["label"]
        assert float(line[2]) == pytest.approx(expected["probabilities"][line[1]], abs=1e-4)


@pytest.mark.parametrize("kind", ["tagger", "classifier"])
def test_batches_go_where_the_model_is(models, kind, monkeypatch):
    devices = []
    to = ExampleBatch.to
    monkeypatch.setattr(ExampleBatch, "to", lambda batch, device: (devices.append(device), to(batch, device))[1])
    list(follow(models[kind].model, io.BytesIO(b"the dog")))
    assert devices == [next(models[kind].model.parameters()).device] * 2


@pytest.fixture(scope="module")
def hearing(tmp_path_factory):
    """A transcriber of one direction with random weights, and a function that writes a .wav file."""
    folder = tmp_path_factory.mktemp("hearing")

    def recorded(name, samples):
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.asarray(samples).astype("<i2").tobytes())
        return Recording(name, folder / name, "hello")

    first = recorded("first.wav", np.random.default_rng(0).normal(0, 3000, 4000))
    settings = TranscriberSettings(bidirectional=False, hidden_size=12, normalize=False, mels=10)
    codec = TranscriberCodec.build([first], settings)
    torch.manual_seed(0)
    model = Transcriber(Transcriber.settle(settings, [first], codec), codec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model, recorded


@pytest.mark.parametrize("step", [1, 333, 100_000])
@pytest.mark.parametrize("length", [0, 1, 100, 4000])
@torch.no_grad()
def test_a_transcriber_hears_what_it_does_in_the_file(hearing, step, length):
    model, recorded = hearing
    samples = np.random.default_rng(length).normal(0, 3000, length)
    expected = ""
    if length:
        recording = recorded("other.wav", samples)
        (found,) = model.predict(collate([model.codec.encode(recording, targets=False)]))
        expected = found["text"]
    step = max(step, length // 100)  # a step of the model for each
    assert "".join(follow(model, Slow(samples.astype("<i2").tobytes(), step))) == expected


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_file_is_no_stream_of_samples(hearing, step):
    model, recorded = hearing
    content = recorded("file.wav", np.zeros(500)).path.read_bytes()
    with pytest.raises(UserError, match=r"is a \.wav file, not bare samples: name the file"):
        list(follow(model, Slow(content, step)))


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


@pytest.mark.parametrize("pieces", [[4000], [1, 99, 100, 800, 3000], [37] * 108 + [4], [100], [0, 1], [199, 1], [300]])
@pytest.mark.parametrize("hop", [10.0, 25.0, 70.0])
def test_frames_of_pieces_are_those_of_the_whole_sound(pieces, hop):
    settings = FeatureSettings(rate=8000, normalize=False, hop=hop)
    sound = np.random.default_rng(0).normal(0, 0.1, sum(pieces))
    stream = FrameStream(settings)
    found = [stream.push(piece) for piece in np.split(sound, np.cumsum(pieces)[:-1])]
    found = np.concatenate([*found, stream.finish(), stream.finish()])
    np.testing.assert_allclose(found, log_mel(sound, 8000, settings), rtol=1e-5, atol=1e-5)


def test_features_that_need_the_whole_sound_are_refused():
    with pytest.raises(UserError, match="--no-normalize"):
        FrameStream(FeatureSettings(rate=8000))
    with pytest.raises(UserError, match="not on sound"):
        FrameStream(FeatureSettings(normalize=False))

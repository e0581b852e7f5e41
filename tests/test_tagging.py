"""Tags of spans, and pretrained vectors, through the whole recipe: from a file to a model directory and back."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest
import torch

from recurra.predictor import Predictor
from recurra.supervised import train_task
from recurra.text.tag_schemes import convert, detect_scheme

FIRST, LAST, TOWNS = ["Ann", "Bob", "Eva"], ["Lee", "Kim", "Roy"], ["Rome", "York", "Bonn"]
SMALL = {
    "hidden_size": 24,
    "layers": 1,
    "characters": "none",
    "word_dropout": 0.0,
    "rare_word_dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
    "max_steps": 60,
    "evaluate_every": 30,
}


def sentences(count, seed=0):
    """Words with BIO tags; people stand right beside people now and then."""
    chance = random.Random(seed)
    for _ in range(count):
        rows = []
        for _ in range(chance.randint(1, 4)):
            match chance.randint(0, 3):
                case 0:
                    rows += [(chance.choice(FIRST), "B-PER"), (chance.choice(LAST), "I-PER")]
                case 1:
                    rows += [(chance.choice(FIRST), "B-PER")]
                case 2:
                    rows += [("in", "O"), (chance.choice(TOWNS), "B-LOC")]
                case _:
                    rows += [(chance.choice(["met", "saw", "left"]), "O")]
        yield tuple(zip(*rows, strict=True))


def written(path, scheme, count=240, seed=0):
    parts = (zip(words, convert(tags, scheme), strict=True) for words, tags in sentences(count, seed))
    path.write_text("\n\n".join("\n".join(map(" ".join, rows)) for rows in parts) + "\n")
    return path


@pytest.mark.parametrize("scheme", ["bio", "iob1", "bilou"])
def test_entities_are_learnt_and_written_in_the_scheme_of_the_data(scheme, tmp_path):
    data, said = written(tmp_path / "data.conll", scheme), []
    outcome = train_task("tagger", data, tmp_path / "model", say=said.append, **SMALL)
    model = outcome.predictor.model
    assert model.settings.output == "crf"
    assert model.codec.scheme == scheme
    assert outcome.scores["test"]["f1"] > 0.97
    assert any(f"tags: of spans, in {scheme}" in line for line in said)
    again = Predictor.load(tmp_path / "model")
    words, tags = zip(*sentences(40, seed=1), strict=True)
    found = again.predict(words)
    assert sum(one == list(convert(other, scheme)) for one, other in zip(found, tags, strict=True)) > 36
    odd = [tuple(random.Random(seed).choices([*FIRST, *LAST, *TOWNS, "?"], k=8)) for seed in range(30)]
    for one in again.predict(odd):  # what training never had is valid all the same
        assert one == list(convert(one, scheme))
    assert detect_scheme([*found, ["O"]]) == scheme


def vectors_of(model):
    """The vector that each word of the file is given, by the word."""
    with torch.no_grad():
        numbers = {word: int(model.codec.words.encode([word])["words"][0]) for word in ("ann", "rome", "oslo", "zoe")}
        return {word: model.words._looked_up(torch.tensor([number]))[0].numpy() for word, number in numbers.items()}


@pytest.mark.parametrize("resumed", [False, True])
def test_frozen_vectors_are_those_of_the_file(resumed, tmp_path):
    """After training and after loading; and words that only the file has are tagged by what they are like."""
    chance = np.random.default_rng(0)
    kinds = {"per": ["ann", "bob", "eva", "zoe", "tom"], "last": ["lee", "kim", "roy"], "loc": ["rome", "york", "oslo"]}
    table = {
        word: (np.eye(3)[place] + chance.normal(0, 0.1, 3)).astype(np.float32)
        for place, words in enumerate(kinds.values())
        for word in words
    }
    lines = (" ".join([word, *map(repr, map(float, vector))]) for word, vector in table.items())
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n")
    data, said = written(tmp_path / "data.conll", "bio"), []
    options = {**SMALL, "vectors": str(tmp_path / "vectors.txt")}
    if resumed:

        def stop(progress):
            if progress.step >= 20:
                signal.raise_signal(signal.SIGINT)

        train_task("tagger", data, tmp_path / "model", **options, log_every=10, watch=stop)
        (tmp_path / "vectors.txt").unlink()  # the run has what it needs
        outcome = train_task("tagger", (), tmp_path / "model", resume=True)
    else:
        outcome = train_task("tagger", data, tmp_path / "model", say=said.append, **options)
        assert any("pretrained vectors: of " in line for line in said)
        (tmp_path / "vectors.txt").unlink()
    assert outcome.scores["test"]["f1"] > 0.95
    for predictor in (outcome.predictor, Predictor.load(tmp_path / "model")):
        found = vectors_of(predictor.model)
        for word, vector in found.items():
            np.testing.assert_array_equal(vector, table[word])
        assert predictor.predict([("Zoe", "Kim", "left"), ("in", "Oslo")]) == [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]


def test_a_run_that_saved_nothing_begins_again_with_the_vectors(tmp_path, monkeypatch):
    (tmp_path / "vectors.txt").write_text("ann 1 0\nrome 0 1\noslo 0 2\nzoe 2 0\n")
    data = written(tmp_path / "data.conll", "bio", 60)

    def failing(trainer):
        raise OSError("the power went off")

    with monkeypatch.context() as patch:
        patch.setattr("recurra.training.Trainer.run", failing)
        with pytest.raises(OSError, match="the power"):
            train_task("tagger", data, tmp_path / "model", **SMALL, vectors=str(tmp_path / "vectors.txt"))
    outcome = train_task("tagger", (), tmp_path / "model", resume=True, max_steps=2)
    assert vectors_of(outcome.predictor.model)["oslo"].tolist() == [0, 2]

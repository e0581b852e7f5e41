"""Training, predicting and scoring for every kind of task, by the same recipe and the same commands."""

from __future__ import annotations

import io
import json
import random
import signal

import numpy as np
import pytest
import torch

import recurra
from recurra.checkpoint import read_tensors
from recurra.cli import main
from recurra.config import UserError
from recurra.supervised import train_task
from recurra.tasks import TASKS

WORDS = {"the": "DET", "a": "DET", "dog": "NOUN", "cat": "NOUN", "hen": "NOUN", "sees": "VERB", "bites": "VERB"}
FRENCH = {"the": "le", "a": "un", "dog": "chien", "cat": "chat", "hen": "poule", "sees": "voit", "bites": "mord"}


def sentences(count, seed=0):
    chance = random.Random(seed)
    nouns, verbs, articles = ["dog", "cat", "hen"], ["sees", "bites"], ["the", "a"]
    for _ in range(count):
        words = [chance.choice(articles), chance.choice(nouns)]
        for _ in range(chance.randint(1, 3)):
            words += [chance.choice(verbs), chance.choice(articles), chance.choice(nouns)]
        yield words


def tagger_data(folder):
    rows = ("\n".join(f"{word} {WORDS[word]}" for word in words) for words in sentences(200))
    (folder / "tags.conll").write_text("\n\n".join(rows) + "\n")
    return folder / "tags.conll"


def classifier_data(folder):
    rows = (f"{' '.join(words)}\t{'bad' if words[1] == 'hen' else 'good'}" for words in sentences(200))
    (folder / "texts.tsv").write_text("\n".join(rows) + "\n")
    return folder / "texts.tsv"


def translator_data(folder):
    rows = (f"{' '.join(words)}\t{' '.join(FRENCH[word] for word in words)}" for words in sentences(200))
    (folder / "pairs.tsv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.tsv"


def reader_data(folder):
    chance = random.Random(0)
    lines = []
    for _ in range(200):
        who, where = chance.choice(["Mary", "John"]), chance.choice(["garden", "office", "kitchen"])
        day = chance.randint(1, 10**6)
        lines += [f"1 {who} went to the {where} on day {day}.", f"2 Where is {who}? \t{where}\t1"]
    (folder / "stories.txt").write_text("\n".join(lines) + "\n")
    return folder / "stories.txt"


def transcriber_data(folder):
    chance = np.random.default_rng(0)
    rows = ["path\ttranscript"]
    for number in range(120):
        letters = chance.integers(0, 3, chance.integers(1, 4))
        frames = np.repeat(np.eye(4, dtype=np.float32)[letters], 3, 0) + chance.normal(0, 0.1, (3 * len(letters), 4))
        silent = np.zeros((1, 4)) + np.eye(4)[3]
        features = np.concatenate([np.concatenate([frames[3 * i : 3 * i + 3], silent]) for i in range(len(letters))])
        np.save(folder / f"{number}.npy", features.astype(np.float32))
        rows.append(f"{number}.npy\t{''.join('abc'[letter] for letter in letters)}")
    (folder / "recordings.tsv").write_text("\n".join(rows) + "\n")
    return folder / "recordings.tsv"


DATA = {
    "tagger": tagger_data,
    "classifier": classifier_data,
    "translator": translator_data,
    "reader": reader_data,
    "transcriber": transcriber_data,
}
SMALL = {"hidden_size": 24, "max_steps": 60, "learning_rate": 0.02, "batch_size": 16, "evaluate_every": 30}
LOWEST = {"accuracy": 0.9, "bleu": 40.0, "exact_match": 0.8}  # of what learnt anything


def test_every_task_is_tried_here():
    assert DATA.keys() == TASKS.keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of every kind a model, and its data."""
    found = {}
    for kind, write in DATA.items():
        folder = tmp_path_factory.mktemp(kind)
        data = write(folder)
        found[kind] = data, folder / "model", train_task(kind, data, folder / "model", **SMALL)
    return found


@pytest.mark.parametrize("kind", TASKS)
def test_it_learns_and_says_so_in_the_terms_of_its_field(trained, kind):
    _, directory, outcome = trained[kind]
    assert outcome.stopped is None
    assert outcome.scores.keys() == {"valid", "test"}
    scores = outcome.scores["test"]
    for name, lowest in LOWEST.items():
        assert scores.get(name, lowest) >= lowest
    assert scores.get("wer", 0) < 0.5
    results = json.loads((directory / "results.json").read_text())
    assert results["test"] == json.loads(json.dumps(scores))
    assert results["parameters"] == outcome.predictor.model.parameters_count


@pytest.mark.parametrize("kind", TASKS)
def test_loaded_again_it_predicts_the_same_whatever_is_beside(trained, kind):
    data, directory, outcome = trained[kind]
    again = recurra.Predictor.load(directory)
    examples = list(again.task.read([str(data)], again.data_settings))[:40]
    predictions = again.predict(examples)
    assert predictions == outcome.predictor.predict(examples)
    alone = [again.predict([example])[0] for example in examples[:5]]
    assert _rounded(alone) == _rounded(predictions[:5])
    windows = [prediction for _, prediction in again.stream(iter(examples), window=7)]
    assert _rounded(windows) == _rounded(predictions)


def _rounded(value):
    """Without what depends on the order of sums."""
    return json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 4))


@pytest.mark.parametrize("kind", TASKS)
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(trained, kind, tmp_path):
    data, directory, _ = trained[kind]

    def stop(progress):
        if progress.step >= 30:
            signal.raise_signal(signal.SIGINT)

    outcome = train_task(kind, data, tmp_path / "model", **SMALL, log_every=10, watch=stop)
    assert outcome.stopped == signal.SIGINT
    assert outcome.scores == {}
    train_task(kind, (), tmp_path / "model", resume=True)
    whole, resumed = (read_tensors(each / "weights.safetensors")[0] for each in (directory, tmp_path / "model"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("kind", TASKS)
def test_commands(trained, kind, capsys, monkeypatch):
    data, directory, outcome = trained[kind]
    assert main(["evaluate", str(directory), str(data), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {"accuracy", "f1", "bleu", "chrf", "exact_match", "wer", "cer"} & scores.keys()
    assert main(["evaluate", str(directory), str(data)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert main(["predict", str(directory), str(data), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    examples = list(outcome.predictor.task.read([str(data)], outcome.predictor.data_settings))
    assert len(lines) == len(examples)
    assert _rounded(json.loads(lines[3])) == _rounded(outcome.predictor.predict(examples[3:4])[0])
    if kind != "transcriber":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.read_bytes())))
        assert main(["predict", str(directory)]) == 0
        assert capsys.readouterr().out.strip()


def test_a_tagger_fills_in_the_column_of_its_input(trained, tmp_path, capsys):
    data, directory, _ = trained["tagger"]
    assert main(["predict", str(directory), str(data)]) == 0
    found, given = capsys.readouterr().out.split(), data.read_text().split()
    assert len(found) == len(given)
    assert sum(a == b for a, b in zip(found, given, strict=True)) > 0.95 * len(given)
    (tmp_path / "plain.txt").write_text("the dog sees a cat\n")
    assert main(["predict", str(directory), str(tmp_path / "plain.txt")]) == 0
    assert capsys.readouterr().out.splitlines() == ["the\tDET", "dog\tNOUN", "sees\tVERB", "a\tDET", "cat\tNOUN", ""]


def test_what_python_users_write_is_an_example(trained):
    assert trained["tagger"][2].predictor.predict(["the dog sees", ["a", "hen"]]) == [
        ["DET", "NOUN", "VERB"],
        ["DET", "NOUN"],
    ]
    found = trained["classifier"][2].predictor.predict(["the hen bites a cat"])[0]
    assert found["label"] == "bad"
    assert sum(found["probabilities"].values()) == pytest.approx(1)
    assert trained["reader"][2].predictor.predict([("Where is Mary?", "Mary went to the garden.")])[0]["answer"]
    with pytest.raises(UserError, match="pair of question and context"):
        trained["reader"][2].predictor.predict(["Where is Mary?"])


def test_several_translations_with_their_scores(trained, capsys, tmp_path):
    directory = trained["translator"][1]
    (tmp_path / "text").write_text("the dog sees a cat\na hen bites\n")
    assert main(["predict", str(directory), str(tmp_path / "text"), "--beam", "4", "--n-best", "2"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["0", "0", "1", "1"]
    assert float(rows[0][2]) >= float(rows[1][2])


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    data, directory, _ = trained["tagger"]

    def refused(*arguments):
        assert main([str(each) for each in arguments]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        return errors

    assert "no data given" in refused("train", "tagger", "-o", tmp_path / "m")
    assert "already holds a model" in refused("train", "tagger", data, "-o", directory)
    assert "standard input" in refused("train", "tagger", "-", "-o", tmp_path / "m")
    assert "--beam: means nothing to a tagger" in refused("evaluate", directory, data, "--beam", "3")
    assert "--beam: means nothing to a tagger" in refused("predict", directory, data, "--beam", "3")
    assert "no such folder" in refused("predict", tmp_path / "nothing")
    (tmp_path / "empty").write_text("")
    assert "empty" in refused("train", "tagger", tmp_path / "empty", "-o", tmp_path / "m")
    assert "cannot change" in refused("train", "tagger", "-o", directory, "--resume", "--hidden-size", "7")
    assert not (tmp_path / "m").exists()


def test_a_run_is_not_resumed_on_other_data(trained, tmp_path):
    data = tmp_path / "tags.conll"
    data.write_bytes(trained["tagger"][0].read_bytes())
    train_task("tagger", data, tmp_path / "model", **SMALL | {"max_steps": 2})
    data.write_text(data.read_text().replace("dog", "cow"))
    with pytest.raises(UserError, match="data is not what it was"):
        train_task("tagger", (), tmp_path / "model", resume=True, max_steps=4)


def test_a_failed_start_leaves_the_old_model_alone(trained, tmp_path):
    data, directory, _ = trained["tagger"]
    before = (directory / "weights.safetensors").read_bytes()
    (tmp_path / "broken.conll").write_text("the DET\ndog\n")
    with pytest.raises(UserError):
        train_task("tagger", tmp_path / "broken.conll", directory, overwrite=True)
    assert (directory / "weights.safetensors").read_bytes() == before
    assert recurra.Predictor.load(directory).predict(["the dog"])
    assert data.exists()

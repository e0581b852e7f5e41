"""Training, predicting and scoring for every kind of task, by the same recipe and the same commands."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import recurra
from recurra import supervised
from recurra.checkpoint import read_tensors
from recurra.cli import main
from recurra.commands.reporter import Reporter
from recurra.config import UserError
from recurra.optimization import LEARNING_RATES
from recurra.supervised import train_task
from recurra.tasks import TASKS, several
from recurra.text.readers import Question, Sentence
from recurra.training import Progress

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
LONGER = {"translator": {"max_steps": 150, "evaluate_every": 50}}
LOWEST = {  # scores of what has learnt anything; errors with a minus
    "tagger": ("accuracy", 0.9),
    "classifier": ("accuracy", 0.9),
    "translator": ("bleu", 40.0),
    "reader": ("exact_match", 0.8),
    "transcriber": ("-wer", -0.5),
}


def small(kind):
    return SMALL | LONGER.get(kind, {})


def test_every_task_is_tried_here():
    assert DATA.keys() == TASKS.keys()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of every kind a model, and its data."""
    found = {}
    for kind, write in DATA.items():
        folder = tmp_path_factory.mktemp(kind)
        data = write(folder)
        found[kind] = data, folder / "model", train_task(kind, data, folder / "model", **small(kind))
    return found


@pytest.mark.parametrize("kind", TASKS)
def test_it_learns_and_says_so_in_the_terms_of_its_field(trained, kind):
    _, directory, outcome = trained[kind]
    assert outcome.stopped is None
    assert outcome.scores.keys() == {"valid", "test"}
    scores = outcome.scores["test"]
    name, lowest = LOWEST[kind]
    assert (-scores[name[1:]] if name.startswith("-") else scores[name]) >= lowest
    results = json.loads((directory / "results.json").read_text())
    assert results["test"] == json.loads(json.dumps(scores))
    assert results["parameters"] == outcome.predictor.model.parameters_count


@pytest.mark.parametrize("kind", TASKS)
def test_loaded_again_it_predicts_the_same_whatever_is_beside(trained, kind, monkeypatch):
    data, directory, outcome = trained[kind]
    again = recurra.Predictor.load(directory)
    examples = list(again.task.read([str(data)], again.data_settings))[:40]
    predictions = again.predict(examples)
    assert predictions == outcome.predictor.predict(examples)
    alone = [again.predict([example])[0] for example in examples[:5]]
    assert _rounded(alone) == _rounded(predictions[:5])
    for name in ("WINDOW", "WINDOW_TOKENS"):
        with monkeypatch.context() as patched:
            patched.setattr(f"recurra.predictor.{name}", 7)
            taken = 0

            def counted():
                nonlocal taken
                for taken, example in enumerate(examples, 1):  # noqa: B007
                    yield example

            windows = []
            for number, (_, prediction) in enumerate(again.stream(counted()), 1):
                assert taken < number + 7
                windows.append(prediction)
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

    outcome = train_task(kind, data, tmp_path / "model", **small(kind), log_every=10, watch=stop)
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
    found = json.loads(lines[3])
    if kind == "reader":
        assert found.pop("id") == examples[3].id
    if kind == "transcriber":
        assert found.pop("path") == examples[3].name
    assert _rounded(found) == _rounded(outcome.predictor.predict(examples[3:4])[0])
    if kind != "transcriber":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data.read_bytes())))
        assert main(["predict", str(directory)]) == 0
        assert capsys.readouterr().out.strip()


def test_attention_as_numbers_and_as_a_picture(trained, tmp_path, capsys):
    _, directory, outcome = trained["translator"]
    command = ["attention", str(directory), "the dog sees a cat"]
    assert main([*command, "un chien", "--json"]) == 0
    look = json.loads(capsys.readouterr().out)
    assert "".join(look["rows"]).endswith("<eos>")
    assert np.shape(look["weights"]) == (len(look["rows"]), len(look["columns"]))
    np.testing.assert_allclose(np.sum(look["weights"], 1), 1, atol=1e-5)
    own = outcome.predictor.look("the dog sees a cat")
    [[best]] = outcome.predictor.predict(["the dog sees a cat"], attention=True)
    assert own.rows == best["tokens"]
    assert own.rows != look["rows"]
    for name in ("look.png", "look.svg"):
        assert main([*command, "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert main([*command, "-o", str(tmp_path / "no" / "look.png")]) == 2
    assert f"{tmp_path / 'no'}: no such folder" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "look.txt")]) == 2
    assert "unknown picture format" in capsys.readouterr().err


def test_attention_of_a_reader_is_over_the_context(trained, capsys):
    directory = trained["reader"][1]
    context = "Mary went to the garden.\nJohn went to the kitchen."
    assert main(["attention", str(directory), "Where is Mary?", context, "--json"]) == 0
    look = json.loads(capsys.readouterr().out)
    assert look["columns"] == [
        "Mary",
        "went",
        "to",
        "the",
        "garden",
        ".",
        "John",
        "went",
        "to",
        "the",
        "kitchen",
        ".",
        "<eos>",
    ]
    assert look["rows"][0] == "hop 1"
    assert np.shape(look["weights"]) == (len(look["rows"]), 13)
    np.testing.assert_allclose(np.sum(look["weights"], 1), 1, atol=1e-5)
    assert main(["attention", str(directory), "Where is Mary?"]) == 2
    assert "pair of question and context" in capsys.readouterr().err


def test_attention_that_there_is_none_of_is_one_line(trained, capsys):
    assert main(["attention", str(trained["tagger"][1]), "the dog"]) == 2
    assert "no attention" in capsys.readouterr().err
    assert main(["attention", str(trained["translator"][1]), ""]) == 2
    assert "empty" in capsys.readouterr().err


@pytest.mark.parametrize("kind", TASKS)
def test_info_says_what_was_trained_without_the_vocabularies(trained, kind, capsys):
    assert main(["info", str(trained[kind][1])]) == 0
    output = capsys.readouterr().out
    assert f"kind: {kind}" in output
    assert "hidden_size" in output
    assert len(output) < 6000


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
    with pytest.raises(UserError, match="example 1: says not what is to be predicted"):
        trained["reader"][2].predictor.evaluate([("Where is Mary?", "Mary went to the garden.")])


@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_an_optimizer_has_a_rate_of_its_own(optimizer, tmp_path):
    data = tagger_data(tmp_path)
    settings = {"max_steps": 1, "schedule": "constant", "warmup": 0.0, "learning_rate": None, "optimizer": optimizer}
    train_task("tagger", data, tmp_path / "m", **small("tagger") | settings)
    rate = json.loads((tmp_path / "m" / "log.jsonl").read_text().splitlines()[0])["learning_rate"]
    assert rate == (3e-3 if optimizer in ("adam", "adamw") else LEARNING_RATES[optimizer])


def test_what_is_no_example_or_no_option_is_refused(trained):
    tagger, classifier = trained["tagger"][2].predictor, trained["classifier"][2].predictor
    for refused in (tagger.predict, tagger.stream):
        with pytest.raises(UserError, match=r"got a single text: put it in a list, \['the dog'\]"):
            refused("the dog")
    for predictor, given in ((tagger, 5), (tagger, ["the", 5]), (classifier, 5), (classifier, ("a", 5))):
        with pytest.raises(UserError, match=r"expected a (sentence|text), or a"):
            predictor.predict([given])
    with pytest.raises(UserError, match="unknown option 'beam'; a tagger has probabilities"):
        tagger.predict(["the dog"], beam=3)
    with pytest.raises(UserError, match="example 2: says not what is to be predicted"):
        classifier.evaluate([("a hen", "bad"), "a dog"])


def test_evaluation_takes_what_can_be_read_once_and_pairs(trained):
    data, _, outcome = trained["classifier"]
    predictor = outcome.predictor
    pairs = [tuple(line.split("\t")) for line in data.read_text().splitlines()]
    assert predictor.evaluate(iter(pairs)) == predictor.evaluate(data)


def test_a_source_with_several_targets_is_translated_once(trained, monkeypatch):
    sacrebleu = pytest.importorskip("sacrebleu")
    predictor = trained["translator"][2].predictor
    pairs = [
        ("the dog sees a cat", "le chien voit un chat"),
        ("a hen bites", "un poule mord"),
        ("the dog sees a cat", "x y"),
    ]
    encoded = []
    monkeypatch.setattr(predictor, "predict_encoded", lambda given, **_: encoded.extend(given) or real(given))
    real = type(predictor).predict_encoded.__get__(predictor)
    scores = predictor.evaluate(pairs)
    assert len(encoded) == 2
    texts = [
        found[0]["text"] for found in real([predictor.model.codec.encode(predictor.task.example(one)) for one in pairs])
    ]
    assert scores["bleu"] == sacrebleu.corpus_bleu(texts, [[target for _, target in pairs]]).score
    references = [["le chien voit un chat", "un poule mord"], ["x y", None]]
    assert scores["bleu_multi"] == sacrebleu.corpus_bleu(texts[:2], references).score
    assert (scores["sources"], scores["pairs"]) == (2, 3)
    assert "bleu_multi" not in predictor.evaluate(pairs[:2])


@pytest.mark.parametrize(("kind", "given"), [("tagger", "the dog"), ("classifier", "a hen"), ("translator", "a hen")])
@pytest.mark.parametrize("column", ["name", "7"])
def test_a_line_of_standard_input_is_read_whatever_the_columns_were(kind, given, column, trained, monkeypatch):
    predictor = recurra.Predictor.load(trained[kind][1])
    data = predictor.settings["data"] = dict(predictor.settings["data"])
    format = {"tagger": "conllu", "classifier": "csv", "translator": "parallel"}[kind]
    columns = [name for name in data if name.endswith("_column")]
    data |= dict.fromkeys(columns, column) | {"format": format} | ({} if kind == "tagger" else {"header": True})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode() + b"\n")))
    (example,) = predictor.read(["-"])
    assert " ".join(getattr(example, "words", ())) or getattr(example, "text", "") or example.source == given


def test_data_may_be_read_otherwise_than_in_training(trained, tmp_path, capsys):
    _, directory, outcome = trained["classifier"]
    (tmp_path / "other.csv").write_bytes("klasse,é\nbad,the hen sees\n".encode("latin-1"))
    how = ["--encoding", "latin-1", "--text-column", "é", "--label-column", "klasse", "--header"]
    assert main(["evaluate", str(directory), str(tmp_path / "other.csv"), *how, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1
    assert main(["predict", str(directory), str(tmp_path / "other.csv"), *how]) == 0
    assert capsys.readouterr().out.startswith("bad\t")
    (tmp_path / "lines.csv").write_text("klasse,text\n")
    assert [one.text for one in outcome.predictor.read([str(tmp_path / "lines.csv")], format="lines")] == [
        "klasse,text"
    ]
    transcriber = recurra.Predictor.load(trained["transcriber"][1])
    list(transcriber.read([str(trained["transcriber"][0])], resample=True))
    features = transcriber.model.codec.features
    assert (features.resample, features.mix_down) == (True, False)


def test_several_transcripts(trained, capsys):
    data, directory, _ = trained["transcriber"]
    assert main(["predict", str(directory), str(data), "--beam", "4", "--n-best", "2"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[:4]] == ["0.npy", "0.npy", "1.npy", "1.npy"]
    assert float(rows[0][2]) >= float(rows[1][2])


def test_tables_have_columns_by_what_was_asked_for():
    file = io.StringIO()
    TASKS["translator"].write([(None, [{"text": "a", "score": 0.5}])], file, 3)
    TASKS["translator"].write([(None, [{"text": "a", "score": 0.5}, {"text": "b", "score": 0.25}])], file, 1)
    question = Question("q", "Who?", "Ada\n Lovelace")
    TASKS["reader"].write([(question, {"answer": "Ada\n Lovelace"})], file, 1)
    assert file.getvalue() == "0\ta\t0.5000\na\nq\tAda Lovelace\n"


def test_several_translations_with_their_scores(trained, capsys, tmp_path):
    directory = trained["translator"][1]
    (tmp_path / "text").write_text("the dog sees a cat\na hen bites\n")
    assert main(["predict", str(directory), str(tmp_path / "text"), "--beam", "4", "--n-best", "2"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["0", "0", "1", "1"]
    assert float(rows[0][2]) >= float(rows[1][2])
    assert main(["predict", str(directory), str(tmp_path / "text"), "--max-length", "2"]) == 0
    assert all(len(line.split()) <= 2 for line in capsys.readouterr().out.splitlines())


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
    assert "empty" in refused("train", "tagger", tmp_path / "empty", "-o", tmp_path / "m", "--quiet")
    assert "--cache: means nothing to a model that reads" in refused("evaluate", directory, data, "--cache", "5")
    assert "--precision: means nothing" in refused("evaluate", directory, data, "--precision", "int8")
    for command in ("evaluate", "predict"):
        assert "--text-column: means nothing to a tagger" in refused(command, directory, data, "--text-column", "1")
        assert "--resample: means nothing to a tagger" in refused(command, directory, data, "--resample")
        assert "`format`: expected one of conllu" in refused(command, directory, data, "--format", "csv")
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


# ---- spans ------------------------------------------------------------------------------------------------------


def spans_data(folder):
    """The last noun of every sentence is a name of two words."""
    rows = []
    for words in sentences(120):
        tags = ["O"] * (len(words) - 2) + ["B-X", "I-X"]
        rows.append("\n".join(f"{word} {tag}" for word, tag in zip(words, tags, strict=True)))
    (folder / "spans.conll").write_text("\n\n".join(rows) + "\n")
    return folder / "spans.conll"


QUICK = {"hidden_size": 8, "layers": 1, "characters": "none", "batch_size": 16}


def test_spans_are_learnt_and_scored_as_spans(tmp_path, capsys):
    pytest.importorskip("seqeval")
    data = spans_data(tmp_path)
    command = ["train", "tagger", str(data), "-o", str(tmp_path / "m"), "--max-steps", "60", "--learning-rate", "0.05"]
    flags = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main([*command, *flags, "--scheme", "bioes"]) == 0
    output, errors = capsys.readouterr()
    assert "validation loss 0." in errors
    assert ", f1 " in errors
    assert "perplexity" not in errors
    assert "f1 " in output
    assert json.loads((tmp_path / "m" / "results.json").read_text())["test"]["f1"] > 0.9
    assert recurra.Predictor.load(tmp_path / "m").predict(["the dog sees a cat"]) == [["O", "O", "O", "B-X", "I-X"]]


@pytest.mark.parametrize(
    ("gold", "predicted", "f1"),
    [
        (["U-A", "O", "B-A", "L-A"], ["S-A", "O", "B-A", "E-A"], 1.0),  # BILOU
        (["U-A", "O", "B-A", "I-A"], ["B-A", "O", "B-A", "I-A"], 1.0),
        (["O", "O", "O", "O"], ["S-A", "O", "B-A", "E-A"], 0.0),
        (["S-A", "O", "O", "O"], ["O", "O", "O", "O"], 0.0),
        (["B-A", "-X-", "B-A", "I-A"], ["B-A", "O", "B-A", "I-A"], 1.0),  # a tag that is none
        (["I-A", "O", "I-A", "I-A"], ["B-A", "O", "I-A", "I-A"], 1.0),  # IOB1
    ],
)
def test_spans_are_compared_whatever_the_schemes(gold, predicted, f1):
    pytest.importorskip("seqeval")
    assert TASKS["tagger"].score([Sentence(("w",) * 4, tuple(gold))], [predicted])["f1"] == f1


def test_parts_of_speech_have_an_accuracy():
    scores = TASKS["tagger"].score([Sentence(("a", "b"), ("DET", "NOUN"))], [["DET", "VERB"]])
    assert scores == {"accuracy": 0.5, "words": 2}


# ---- what is settled and checked before an older model goes ---------------------------------------------------------


def test_what_cannot_be_scored_or_learnt_is_found_before_the_old_model_goes(trained, tmp_path, monkeypatch):
    _, directory, _ = trained["tagger"]
    before = (directory / "weights.safetensors").read_bytes()
    tags, spans = trained["tagger"][0], spans_data(tmp_path)
    (tmp_path / "broken.conll").write_text("the DET\ndog\n")
    again = {"overwrite": True, "max_steps": 1}
    for part in ("valid", "test"):
        with pytest.raises(UserError, match=r"broken\.conll, line 2"):
            train_task("tagger", tags, directory, **again, **{part: tmp_path / "broken.conll"})
    with pytest.raises(UserError, match="training has no end"):
        train_task("tagger", tags, directory, overwrite=True, early_stopping=2, valid_fraction=0.0)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "seqeval", None)
        with pytest.raises(UserError, match="need seqeval"):
            train_task("tagger", spans, directory, **again)
        train_task("tagger", spans, tmp_path / "m", **again, **QUICK, valid_fraction=0.0, test_fraction=0.0)
    data = trained["transcriber"][0]
    (data.parent / "impossible.tsv").write_text("0.npy\t" + "a" * 100 + "\n")
    with pytest.raises(UserError, match=r"0\.npy: its transcript needs"):
        train_task("transcriber", data, directory, **again, test=data.parent / "impossible.tsv")
    assert (directory / "weights.safetensors").read_bytes() == before


def test_early_stopping_alone_is_an_end(trained, tmp_path):
    data, log = trained["tagger"][0], tmp_path / "m" / "log.jsonl"
    train_task("tagger", data, tmp_path / "m", **QUICK, early_stopping=1, learning_rate=0.05)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["score"] <= max(line["score"] for line in lines[:-1])
    assert {line["learning_rate"] for line in lines} == {0.05}
    train_task("tagger", (), tmp_path / "m", resume=True, early_stopping=2)
    assert len(log.read_text().splitlines()) > len(lines)
    with pytest.raises(UserError, match="training has no end"):
        train_task("tagger", (), tmp_path / "m", resume=True, early_stopping=0)


def test_an_end_that_nobody_asked_for_gives_way(trained, tmp_path, monkeypatch):
    data = trained["tagger"][0]
    monkeypatch.setattr(supervised, "DEFAULT_MINUTES", 0.0)

    def steps():
        return json.loads((tmp_path / "m" / "results.json").read_text())["steps"]

    train_task("tagger", data, tmp_path / "m", **QUICK)
    assert steps() == 1
    train_task("tagger", (), tmp_path / "m", resume=True)
    assert steps() == 1
    train_task("tagger", (), tmp_path / "m", resume=True, max_steps=5)
    assert steps() == 5


def test_a_file_of_settings_counts_on_resuming(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    valid = tmp_path / "dev,1.conll"  # a comma that divides nothing
    valid.write_bytes(trained["tagger"][0].read_bytes())
    (tmp_path / "c.toml").write_text(
        '[training]\nmax_steps = 2\n[model]\nhidden_size = 8\n[data]\nvalid = "dev,1.conll"\n'
    )
    train_task("tagger", trained["tagger"][0], tmp_path / "m", config="c.toml", layers=1, characters="none")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "more.toml").write_text((tmp_path / "c.toml").read_text().replace("2", "3"))
    train_task("tagger", (), tmp_path / "m", resume=True, config="more.toml", tensorboard=False)
    monkeypatch.chdir(tmp_path / "elsewhere")
    train_task("tagger", (), tmp_path / "m", resume=True, max_steps=4)
    assert json.loads((tmp_path / "m" / "results.json").read_text())["steps"] == 4
    (tmp_path / "other.toml").write_text("[model]\nhidden_size = 9\n")
    with pytest.raises(UserError, match="hidden_size cannot change in a run that is resumed: it was 8, now 9"):
        train_task("tagger", (), tmp_path / "m", resume=True, config=tmp_path / "other.toml")
    valid.write_text(valid.read_text().replace("dog", "cow"))
    with pytest.raises(UserError, match="data is not what it was"):
        train_task("tagger", (), tmp_path / "m", resume=True, max_steps=5)


def test_commas_of_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.tsv", "a", "c"):
        (tmp_path / name).touch()
    assert several("a,b.tsv") == ["a,b.tsv"]
    assert several("c,a,b.tsv,c") == ["c", "a,b.tsv", "c"]
    assert several("a,c") == ["a", "c"]
    assert several("no,*.x") == ["no", "*.x"]


# ---- batches ------------------------------------------------------------------------------------------------------


def batches_of(monkeypatch):
    """The batches that training asks for, as they are made: whether shuffled, examples."""
    found = []

    class Watched(supervised.ExampleBatches):
        def __init__(self, examples, **options):
            super().__init__(examples, **options)
            found.append((options["shuffled"], self))

    monkeypatch.setattr(supervised, "ExampleBatches", Watched)
    return found


def test_a_long_sentence_pads_no_other(trained, tmp_path, monkeypatch):
    lines = [trained["tagger"][0].read_text(), "\n".join(["dog NOUN"] * 20_000) + "\n"]
    (tmp_path / "t.conll").write_text("\n".join(lines))
    found = batches_of(monkeypatch)
    train_task(
        "tagger", tmp_path / "t.conll", tmp_path / "m", **QUICK, max_steps=1, valid_fraction=0.0, test_fraction=0.0
    )
    sizes = [batch.arrays["words"].numel() for batch in found[1][1]]
    assert sorted(sizes)[-1] == 20_000
    assert sorted(sizes)[-2] <= 4096
    assert all(TASKS[kind].training["batch_tokens"] for kind in TASKS)


def test_validation_sees_all_of_a_sorted_file(trained, tmp_path, monkeypatch):
    lines = sorted(trained["classifier"][0].read_text().splitlines(), key=lambda line: line.split("\t")[1])
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(supervised, "VALID_SCORED", 20)
    found = batches_of(monkeypatch)
    asked = []
    real = recurra.Predictor.predict_encoded
    monkeypatch.setattr(
        recurra.Predictor, "predict_encoded", lambda self, e, **o: asked.append(e) or real(self, e, **o)
    )
    options = {"valid": tmp_path / "t.tsv", "hidden_size": 8, "max_steps": 2, "evaluate_every": 1}
    train_task("classifier", tmp_path / "t.tsv", tmp_path / "m", **options)
    labels = [int(label) for shuffled, batches in found if not shuffled for b in batches for label in b.arrays["label"]]
    assert len(labels) == 20
    assert len(set(labels)) == 2
    assert asked[0] is asked[1]  # encoded once for all validations
    assert len(asked[0]) == 20


def test_examples_without_anything_to_predict_are_passed_over(trained, tmp_path):
    data = trained["transcriber"][0]
    rows = data.read_text() + "".join(f"{number}.npy\t{'a' * 100}\n" for number in range(20))
    (data.parent / "some.tsv").write_text(rows)
    said = []
    options = {"batch_size": 1, "hidden_size": 8, "max_steps": 20, "skip_impossible": True, "log_every": 1}
    train_task("transcriber", data.parent / "some.tsv", tmp_path / "m", **options, say=said.append)
    assert any("of train passed over in training" in line for line in said)
    log = [json.loads(line) for line in (tmp_path / "m" / "log.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in log if "gradient_norm" in line)
    (data.parent / "none.tsv").write_text(f"0.npy\t{'a' * 100}\n")
    with pytest.raises(UserError, match="nothing to be predicted in any example"):
        train_task(
            "transcriber", data.parent / "none.tsv", tmp_path / "n", skip_impossible=True, max_steps=1,
            valid_fraction=0.0, test_fraction=0.0,
        )  # fmt: skip


def test_pretrained_vectors_are_where_training_begins(trained, tmp_path):
    (tmp_path / "vectors.txt").write_text("dog 0.5 -0.25 1\ncat 1 2 3\n")
    options = QUICK | {"vectors": tmp_path / "vectors.txt", "max_steps": 3}
    predictor = train_task("tagger", trained["tagger"][0], tmp_path / "m", **options).predictor
    assert [0.5, -0.25, 1] in predictor.model.words.frozen.tolist()


def test_questions_on_one_story_stay_together():
    key = TASKS["reader"].key
    story = [Question(str(number), "?", "a\n" * number, story="f:1") for number in (1, 2)]
    assert key(story[0]) == key(story[1])
    assert key(Question("1", "?", "a\nb")) != key(Question("2", "?", "a\nc"))


# ---- ranks --------------------------------------------------------------------------------------------------------


def two_ranks(*arguments):
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recurra")
    return subprocess.run(
        [*launch, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )


def test_two_ranks_train_the_model_of_one(trained, tmp_path):
    data = trained["tagger"][0]
    dropped = ("word_dropout", "rare_word_dropout", "input_dropout", "dropout", "output_dropout")
    options = {**QUICK, **dict.fromkeys(dropped, 0.0), "batch_size": 1, "max_steps": 12, "evaluate_every": 5}
    one = train_task("tagger", data, tmp_path / "one", **options)
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = two_ranks("train", "tagger", data, "-o", tmp_path / "two", *flags)
    assert result.returncode == 0, result.stderr
    first, second = (read_tensors(tmp_path / name / "weights.safetensors")[0] for name in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-5, rtol=1e-5)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["test"]["accuracy"] == one.scores["test"]["accuracy"]
    assert (
        results["training_targets"] == json.loads((tmp_path / "one" / "results.json").read_text())["training_targets"]
    )
    data = tmp_path / "changed.conll"
    data.write_bytes(trained["tagger"][0].read_bytes())
    train_task("tagger", data, tmp_path / "m", **options)
    data.write_text(data.read_text().replace("dog", "cow"))
    result = two_ranks("train", "tagger", "-o", tmp_path / "m", "--resume", "--max-steps", 14)
    assert result.returncode
    assert result.stderr.count("the data is not what it was") == 1


def test_progress_names_the_score(capsys):
    progress = Progress(1, 1, 0.5, 1.0, 10.0, 2.0, 1.0, 0.1, valid=0.5, score=-0.25, score_name="-cer")
    Reporter(False, perplexity=False).watch(progress)
    assert "validation loss 0.5000, cer 0.2500 (estimate)" in capsys.readouterr().err
    Reporter(False).watch(Progress(1, 1, 0.5, 1.0, 10.0, 2.0, 1.0, 0.1, valid=0.0))
    assert "validation perplexity 1.00 (estimate)" in capsys.readouterr().err

"""Every kind of language model, by the commands that a user types: what holds for all of them."""

from __future__ import annotations

import json
import random

import pytest

import recurra
from recurra.cli import main
from recurra.config import UserError
from recurra.models.kinds import KINDS

COMMON = {"tokenizer": "whitespace", "batch_size": 4, "chunk_length": 8, "epochs": 3}
VARIANTS = {
    "lm": {**COMMON, "hidden_size": 12},
    "lm of classes with n-grams": {
        **COMMON, "kind": "lm", "hidden_size": 12, "output": "classes", "maxent_order": 3, "maxent_bits": 12,
    },
    "lm of letters": {**COMMON, "kind": "lm", "hidden_size": 12, "inputs": "char-cnn", "filters": (4, 4)},
    "lm of letters by an LSTM": {**COMMON, "kind": "lm", "hidden_size": 12, "inputs": "char-lstm"},
    "lm, sampled": {**COMMON, "kind": "lm", "hidden_size": 12, "output": "sampled", "optimizer": "adagrad"},
    "lm, nce": {**COMMON, "kind": "lm", "hidden_size": 12, "output": "nce", "tied": False},
    "lm, blackout": {
        **COMMON, "kind": "lm", "hidden_size": 12, "output": "blackout", "optimizer": "rmsprop", "learning_rate": 0.02,
    },
    "window": {**COMMON, "hidden_size": 16, "embedding_size": 8, "direct": True, "reset": "documents"},
    "maxent": {**COMMON, "bits": 14},
    "ngram": {"tokenizer": "whitespace", "order": 3, "discount_fallback": True},
    "ngram, pruned": {"kind": "ngram", "tokenizer": "whitespace", "prune": (0, 0, 1), "discount_fallback": True},
    "snm": {"tokenizer": "whitespace", "order": 3, "adjust_events": 2_000},
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """400 lines whose third word depends on the second."""
    chance = random.Random(0)
    verbs = {"cat": "sat", "dog": "ran", "bird": "sang"}
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(
        "".join(f"the {a} {verbs[a]} in the {chance.choice('abc')}\n" for a in chance.choices([*verbs], k=400))
    )
    return path


@pytest.fixture(scope="module", params=VARIANTS)
def trained(request, text, tmp_path_factory):
    settings = dict(VARIANTS[request.param])
    kind = settings.pop("kind", request.param)
    folder = tmp_path_factory.mktemp("model") / "m"
    return recurra.train_lm(text, folder, kind=kind, **settings), folder


def test_every_kind_is_tried():
    assert {settings.get("kind", name) for name, settings in VARIANTS.items()} == set(KINDS)


def test_it_learns_and_says_what_it_is(trained):
    outcome, folder = trained
    # Nine words, equally likely, would be at 9; two choices of three a line of seven tokens, perfectly known, at 1.37.
    assert outcome.evaluations["test"].perplexity < 5
    results = json.loads((folder / "results.json").read_text())
    assert results["parameters"] == outcome.lm.model.parameters_count > 0
    assert results["training_tokens"] > 0
    assert results["training_seconds"] > 0


def test_what_is_loaded_is_what_was_trained(trained, text):
    outcome, folder = trained
    again = recurra.load(folder)
    assert again.kind == outcome.lm.kind
    passage = text.read_text()[-500:]
    assert again.evaluate(passage).nats == pytest.approx(outcome.lm.evaluate(passage).nats, rel=1e-6)


def test_perplexity_does_not_depend_on_batch_or_chunk(trained, text):
    lm, passage = trained[0].lm, text.read_text()[:800]
    for reset in ("none", "lines"):
        found = [
            lm.perplexity(passage, reset=reset, batch_size=b, chunk_length=c) for b, c in ((1, 1), (3, 7), (32, 256))
        ]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_it_says_what_comes_next_and_writes(trained):
    lm = trained[0].lm
    assert sum(p for _, p in lm.next_tokens("the cat", k=len(lm.tokenizer.vocabulary))) == pytest.approx(1, abs=1e-5)
    assert lm.next_tokens("the dog", k=1)[0][0] == "ran"
    assert lm.generate("the", seed=1, max_tokens=10) == lm.generate("the", seed=1, max_tokens=10)


def test_the_commands_take_it(trained, text, capsys):
    _, folder = trained
    assert main(["evaluate", str(folder), str(text), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1
    assert main(["info", str(folder)]) == 0
    assert main(["next", str(folder), "the cat", "-k", "2"]) == 0
    assert main(["generate", str(folder), "--max-tokens", "5"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_corpus_is_one_line(kind, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    assert main(["train", kind, str(tmp_path / "empty.txt"), "-o", str(tmp_path / "m")]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("ngram", ["--order", "0"], "whole number of at least 1"),
        ("ngram", ["--order", "30", "--discount-fallback"], "order"),
        ("ngram", [], "--discount-fallback"),
        ("ngram", ["--prune", "1"], "prune"),
        ("ngram", ["--hidden-size", "5"], "unknown flag"),
        ("lm", ["--output", "sampled", "--samples", "1000"], "expected 1 to"),
        ("lm", ["--maxent-order", "3"], "--output classes"),
        ("lm", ["--inputs", "char-cnn", "--tied"], "--no-tied"),
        ("lm", ["--preset", "kneser-ney-5"], "train ngram"),
        ("lm", ["--scale", "0.5"], "--preset"),
        ("ngram", ["--preset", "kneser-ney-6"], "did you mean 'kneser-ney-5'"),
        ("maxent", ["--order", "1"], "at least 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_does_not_fit_is_one_line(kind, flags, message, text, tmp_path, capsys):
    try:
        status = main(["train", kind, str(text), "-o", str(tmp_path / "m"), "--tokenizer", "whitespace", *flags])
    except SystemExit as stop:
        status = stop.code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recurra: ")]
    assert status == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "m" / "weights.safetensors").exists()


def test_what_cannot_be_counted_leaves_all_as_it_was(text, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    options = {"kind": "ngram", **VARIANTS["ngram"]}
    old = recurra.train_lm(text, tmp_path / "m", **options).evaluations["test"].nats
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="discounts"):
        recurra.train_lm(text, tmp_path / "m", **{**options, "discount_fallback": False}, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(KINDS["ngram"].model, "estimate", interrupted)
        for folder in ("m", "new"):
            with pytest.raises(KeyboardInterrupt):
                recurra.train_lm(text, tmp_path / folder, **options, overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    assert recurra.load(tmp_path / "m").evaluate(text.read_text()).nats > 0
    assert recurra.train_lm(text, tmp_path / "new", **options).evaluations["test"].nats == old
    with pytest.raises(UserError, match="nothing to resume"):
        recurra.train_lm(directory=tmp_path / "m", resume=True)


def test_ngrams_are_of_words_where_nothing_else_is_asked_for(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("A small text, of characters if it were for a network.\n" * 30)
    for kind in ("ngram", "snm"):
        fallback = {"discount_fallback": True} if kind == "ngram" else {}
        assert recurra.train_lm(path, tmp_path / kind, kind=kind, **fallback).lm.tokenizer.kind == "words"


def test_ngrams_go_to_arpa_and_back(text, tmp_path, capsys):
    recurra.train_lm(text, tmp_path / "m", kind="ngram", **VARIANTS["ngram"])
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "m.arpa.gz")]) == 0
    assert main(["convert", str(tmp_path / "m.arpa.gz"), str(tmp_path / "again")]) == 0
    expected = recurra.load(tmp_path / "m").perplexity(text.read_text())
    for path in (tmp_path / "m.arpa.gz", tmp_path / "again"):
        assert recurra.load(path).perplexity(text.read_text()) == pytest.approx(expected, rel=1e-5)
    for source, target in (("m", "m.arpa.gz"), ("m", "again"), ("nothing", "x.arpa"), ("text", "x.arpa")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 2
    (tmp_path / "cut.arpa").write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-1 <unk>\n")
    (tmp_path / "odd.txt").write_text("no model\n")
    for name in ("cut.arpa", "odd.txt"):
        assert main(["evaluate", str(tmp_path / name), str(text)]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 6
    assert output.out.count("-grams written to ") == 2
    assert not (tmp_path / "x.arpa").exists()


def test_what_an_arpa_file_cannot_hold_is_said(tmp_path, capsys):
    path = tmp_path / "small.txt"
    path.write_text("Words, and signs.\n" * 30)
    recurra.train_lm(path, tmp_path / "words", kind="ngram", order=2, discount_fallback=True)
    assert main(["convert", str(tmp_path / "words"), str(tmp_path / "words.arpa")]) == 0
    assert "tokenizer does (words)" in capsys.readouterr().err
    recurra.train_lm(path, tmp_path / "c", kind="ngram", tokenizer="characters", order=2, discount_fallback=True)
    assert main(["convert", str(tmp_path / "c"), str(tmp_path / "c.arpa")]) == 2
    assert main(["convert", str(tmp_path / "small.txt"), str(tmp_path / "folder")]) == 2
    assert not (tmp_path / "c.arpa").exists()
    assert not (tmp_path / "folder").exists()

"""Mixtures of saved models: better than their parts, told apart from what cannot be mixed, and the same once saved."""

from __future__ import annotations

import random

import pytest

import recurra
from recurra.cli import main
from recurra.config import UserError
from recurra.mixing import mix

SMALL = {"tokenizer": "whitespace", "hidden_size": 12, "epochs": 4, "batch_size": 4, "chunk_length": 8, "dropout": 0.0}


def written(path, lines, seed):
    """Sentences in which an animal of the line before comes again: what n-grams cannot see and a cache can."""
    chance = random.Random(seed)
    animals = ["cat", "dog", "bird", "cow", "hen"]
    text = []
    animal = chance.choice(animals)
    for _ in range(lines):
        animal = animal if chance.random() < 0.8 else chance.choice(animals)
        text.append(f"the {animal} sat on the {chance.choice(['mat', 'log', 'hill'])}")
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    train = written(folder / "train.txt", 300, 1)
    valid = written(folder / "valid.txt", 100, 2)
    splits = {"valid": str(valid), "test": str(written(folder / "test.txt", 100, 3))}
    recurra.train_lm(train, folder / "lstm", **SMALL, **splits)
    recurra.train_lm(
        train, folder / "ngram", kind="ngram", order=3, discount_fallback=True, tokenizer="whitespace", **splits
    )
    recurra.train_lm(train, folder / "lines", **SMALL, **splits, reset="lines")
    return folder


def test_a_mixture_is_at_least_as_good_as_its_parts_where_it_was_fitted(models, tmp_path):
    mixture = mix([models / "lstm", models / "ngram"], tmp_path / "m", models / "valid.txt")
    text = (models / "valid.txt").read_text()
    parts = [recurra.load(models / name).perplexity(text) for name in ("lstm", "ngram")]
    assert mixture.perplexity(text) <= min(parts) * (1 + 1e-6)
    assert recurra.load(tmp_path / "m").perplexity(text) == mixture.perplexity(text)


def test_weights_are_shown_and_sum_to_one(models, tmp_path, capsys):
    arguments = ["mix", str(models / "lstm"), str(models / "ngram"), "-o", str(tmp_path / "m"), "--valid"]
    assert main([*arguments, str(models / "valid.txt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(float(line.split()[0]) for line in lines[:2]) == pytest.approx(1, abs=1e-3)
    assert "lstm" in lines[0]


def test_a_cache_beside_a_model_is_saved_with_its_tuning(models, tmp_path):
    test = (models / "test.txt").read_text()
    cached = mix([models / "lstm"], tmp_path / "m", models / "valid.txt", cache=50)
    assert cached.model.settings.components[0].cache.size == 50
    assert recurra.load(tmp_path / "m").perplexity(test) == cached.perplexity(test)
    plain = recurra.load(models / "lstm").perplexity((models / "valid.txt").read_text())
    assert cached.perplexity((models / "valid.txt").read_text()) <= plain * (1 + 1e-5)


def test_a_mixture_writes_and_is_mixed_again(models, tmp_path):
    mix([models / "lstm", models / "ngram"], tmp_path / "m", models / "valid.txt")
    lm = recurra.load(tmp_path / "m")
    assert len(lm.generate("the", seed=1, max_tokens=12)[0].text) > 0
    assert sum(p for _, p in lm.next_tokens("the", k=len(lm.tokenizer.vocabulary))) == pytest.approx(1, abs=1e-5)
    again = mix([tmp_path / "m"], tmp_path / "again", models / "valid.txt")
    assert again.perplexity("the cat sat\n") == pytest.approx(lm.perplexity("the cat sat\n"))


def test_the_command_evaluates_with_a_cache(models, capsys):
    common = ["evaluate", str(models / "lstm"), str(models / "test.txt"), "--cache", "50"]
    assert main([*common, "--tune-on", str(models / "valid.txt")]) == 0
    assert main([*common, "--cache-theta", "0.1", "--cache-weight", "0"]) == 0
    assert main(common[:3]) == 0
    tuned, without, plain = (part.split()[0] for part in capsys.readouterr().out.split("perplexity   ")[1:])
    assert without == plain
    assert float(tuned) != float(plain)


def test_the_command_evaluates_dynamically(models, capsys):
    common = ["evaluate", str(models / "lstm"), str(models / "test.txt")]
    for method, rate in (("rms", "0"), ("sgd", "0"), ("sgd", "0.05")):
        assert main([*common, "--dynamic", method, "--dynamic-rate", rate]) == 0
    assert main(common) == 0
    *still, adapted, plain = (float(part.split()[0]) for part in capsys.readouterr().out.split("perplexity   ")[1:])
    assert still == pytest.approx([plain, plain], rel=1e-5)
    assert adapted != pytest.approx(plain, rel=1e-4)


def test_what_cannot_be_mixed_is_said_in_one_line(models, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("another text altogether\nwith other words\n" * 40)
    recurra.train_lm(other, tmp_path / "other", **{**SMALL, "epochs": 1})
    valid = models / "valid.txt"
    for folders, message in (
        ([models / "lstm", tmp_path / "other"], "another vocabulary"),
        ([models / "lstm", models / "lines"], "start anew in different places"),
        ([models / "lstm", models / "lstm"], "named twice"),
        ([models / "lstm", tmp_path / "nothing"], "no such folder"),
        ([], "nothing to mix"),
    ):
        with pytest.raises(UserError, match=message):
            mix(folders, tmp_path / "m", valid)
        assert not (tmp_path / "m").exists()
    with pytest.raises(UserError, match="1 to 1,000,000 words"):
        mix([models / "lstm"], tmp_path / "m", valid, cache=10**9)
    with pytest.raises(UserError, match="cannot take the place"):
        mix([models / "lstm"], models / "lstm", valid, overwrite=True)
    for flags in (
        ["--cache-theta", "0.1"],
        ["--cache", "5", "--cache-theta", "0.1"],
        ["--dynamic", "sgd"],
        ["--dynamic-rate", "0.1"],
        ["--cache", "5", "--dynamic", "sgd", "--dynamic-rate", "0.1"],
    ):
        assert main(["evaluate", str(models / "lstm"), str(valid), *flags]) == 2
    assert main(["evaluate", str(models / "ngram"), str(valid), "--dynamic", "sgd", "--dynamic-rate", "0.1"]) == 2
    assert capsys.readouterr().err.count("\n") == 6


def test_a_mixture_cannot_take_the_place_of_a_part_of_its_parts(models, tmp_path):
    recurra.load(models / "ngram").save(tmp_path / "part")
    mix([tmp_path / "part"], tmp_path / "one", models / "valid.txt")
    with pytest.raises(UserError, match="cannot take the place"):
        mix([tmp_path / "one"], tmp_path / "part", models / "valid.txt", overwrite=True)
    content = (tmp_path / "one" / "settings.json").read_text()
    (tmp_path / "one" / "settings.json").write_text(content.replace("../part", "../one"))
    with pytest.raises(UserError, match="a part of itself"):
        recurra.load(tmp_path / "one")
    for damaged in (content.replace('"weight": 1.0', '"weight": "a"'), content.replace('"../part"', "5")):
        (tmp_path / "one" / "settings.json").write_text(damaged)
        with pytest.raises(UserError, match="damaged"):
            recurra.load(tmp_path / "one")


def test_a_cached_model_and_a_mixture_are_saved_anywhere(models, tmp_path):
    text = (models / "test.txt").read_text()
    cached = recurra.load(models / "lstm").with_cache(20, theta=0.1, weight=0.2)
    cached.save(tmp_path / "deep" / "down" / "cached")
    assert recurra.load(tmp_path / "deep" / "down" / "cached").perplexity(text) == cached.perplexity(text)
    bare = recurra.LanguageModel(recurra.load(models / "lstm").model, cached.tokenizer)
    with pytest.raises(UserError, match="save the models first"):
        bare.with_cache(20, theta=0.1, weight=0.2).save(tmp_path / "x")


def test_info_shows_a_model_of_a_mixture_on_a_line(models, tmp_path, capsys):
    mix([models / "lstm", models / "ngram"], tmp_path / "m", models / "valid.txt", cache=50)
    assert main(["info", str(tmp_path / "m")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "path" in line]
    assert len(lines) == 2
    assert "weight 0." in lines[0]
    assert "cache size 50" in lines[0]
    assert "cache" not in lines[1]


def test_a_mixture_replaces_all_of_a_model(models, tmp_path):
    recurra.load(models / "ngram").save(tmp_path / "m")
    mix([models / "lstm"], tmp_path / "m", models / "valid.txt", overwrite=True)
    assert not (tmp_path / "m" / "weights.safetensors").exists()


def test_ngrams_in_an_arpa_file_are_mixed_too(models, tmp_path):
    assert main(["convert", str(models / "ngram"), str(tmp_path / "n.arpa")]) == 0
    mix([tmp_path / "n.arpa"], tmp_path / "m", models / "valid.txt")
    mixed = mix([tmp_path / "m", models / "lstm"], tmp_path / "all", models / "valid.txt")
    assert recurra.load(tmp_path / "all").perplexity("the cat\n") == mixed.perplexity("the cat\n")


def test_a_part_that_is_gone_is_named(models, tmp_path):
    recurra.load(models / "lstm").save(tmp_path / "part")
    mix([tmp_path / "part", models / "ngram"], tmp_path / "m", models / "valid.txt")
    (tmp_path / "part" / "settings.json").unlink()
    with pytest.raises(UserError, match=r"a mixture of .*part too, which is not there"):
        recurra.load(tmp_path / "m")

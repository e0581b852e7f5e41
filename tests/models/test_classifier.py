import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.models.classifier import Classifier, ClassifierCodec, ClassifierSettings
from recurra.models.protocol import evaluating
from recurra.models.words import UNSCORED
from recurra.optimization import build_optimizer
from recurra.text.examples import collate
from recurra.text.readers import Labelled, read_labelled

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

SMALL = {"hidden_size": 8, "word_size": 6, "character_size": 5, "character_features": 4}
TEXTS = [
    Labelled("A good film, really.", "good"),
    Labelled("good fun", "good"),
    Labelled("Bad, bad film!", "bad"),
    Labelled("", "good"),
]
NEW = [Labelled("It's a bad zebra"), Labelled(""), Labelled("xyz"), Labelled("good " * 9)]


def made(examples=TEXTS, seed=0, **changes):
    """A new model in evaluation mode."""
    settings = ClassifierSettings(**{**SMALL, **changes})
    codec = ClassifierCodec.build(examples, settings)
    settings = Classifier.settle(settings, examples, codec)
    torch.manual_seed(seed)
    return Classifier(settings, codec).eval()


def batch_of(model, examples, targets=False):
    return collate([model.codec.encode(example, targets=targets) for example in examples])


def predictions(model, examples, **options):
    with evaluating(model), torch.no_grad():
        return model.predict(batch_of(model, examples), **options)


def nats_of(model, examples):
    with torch.no_grad():
        return model(batch_of(model, examples, targets=True))[0].nats.item()


def train(model, examples, steps, rate=0.02):
    encoded = [model.codec.encode(example) for example in examples]
    optimizer = build_optimizer("adam", model, learning_rate=rate)
    model.train()
    for step in range(steps):
        loss, _ = model(collate(random.Random(step).sample(encoded, min(32, len(encoded)))))
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    model.eval()


def spoilt(batch):
    """The same batch with numbers of no meaning in its padding."""
    arrays = {}
    for name, array in batch.arrays.items():
        array = array.clone()
        for column, length in enumerate(batch.lengths[name].tolist() if name in batch.lengths else ()):
            array[length:, column] = -(10**6) if name != "unseen" else 7
        arrays[name] = array
    return batch._replace(arrays=arrays)


def close(one, other):
    assert one["label"] == other["label"]
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-12)


VARIANTS = [
    {"pooling": "final"},
    {"pooling": "max", "characters": "cnn"},
    {"pooling": "mean", "units": "characters"},
    {"pooling": "attention", "characters": "lstm", "layers": 2},
    {"pooling": "final", "bidirectional": False, "passes": 2, "cell": "gru"},
    {"pooling": "max", "units": "byte-pairs", "self_attention": 2},
]


class TestLearning:
    @pytest.mark.parametrize("changes", [{}, {"pooling": "attention"}, {"pooling": "final", "passes": 2}])
    def test_the_order_of_words(self, changes):
        """The label is whether `not` stands right before `good`: no bag of words can tell."""
        draw = random.Random(1)

        def text():
            words = draw.choices(["a", "film", "was", "the"], k=draw.randint(2, 7))
            place, negated = draw.randint(0, len(words)), draw.random() < 0.5
            words[place:place] = ["not", "good"] if negated else ["good", draw.choice(["a", "film"]), "not"]
            return Labelled(" ".join(words), "neg" if negated else "pos")

        examples = [text() for _ in range(300)]
        dropouts = {"input_dropout": 0.0, "output_dropout": 0.0, "word_dropout": 0.0, "rare_word_dropout": 0.0}
        model = made(examples, bidirectional="passes" not in changes, **changes, **dropouts)
        train(model, examples, 50)
        unseen = [text() for _ in range(100)]
        found = [prediction["label"] for prediction in predictions(model, unseen)]
        assert np.mean([label == one.label for label, one in zip(found, unseen, strict=True)]) > 0.97

    def test_loss_is_minus_log_of_the_probability_of_the_label(self):
        model = made()
        found = predictions(model, TEXTS)
        wanted = -sum(math.log(one["probabilities"][text.label]) for one, text in zip(found, TEXTS, strict=True))
        assert nats_of(model, TEXTS) == pytest.approx(wanted, rel=1e-5)
        assert model(batch_of(model, TEXTS, targets=True))[0].tokens == 4

    def test_targets_are_smoothed_in_training_alone(self):
        plain = dict.fromkeys(("input_dropout", "dropout", "output_dropout", "word_dropout", "rare_word_dropout"), 0.0)
        model, smooth = made(label_smoothing=0.0, **plain), made(label_smoothing=0.3, **plain)
        assert nats_of(model, TEXTS) == nats_of(smooth, TEXTS)
        model.train(), smooth.train()
        shares = [one["probabilities"] for one in predictions(model, TEXTS)]
        wanted = -sum(
            math.log(p) * (0.3 / 2 + 0.7 * (label == text.label))
            for share, text in zip(shares, TEXTS, strict=True)
            for label, p in share.items()
        )
        assert nats_of(smooth, TEXTS) == pytest.approx(wanted, rel=1e-5)
        assert nats_of(smooth, TEXTS) != pytest.approx(nats_of(model, TEXTS), rel=1e-3)

    def test_balanced_labels_have_the_same_sum_of_weights(self):
        plain, balanced = made(), made(class_weights="balanced")
        each = [nats_of(plain, [text]) for text in TEXTS]
        weights = [4 / (2 * 3), 4 / (2 * 3), 4 / 2, 4 / (2 * 3)]  # three of them are good
        assert sum(weights) == pytest.approx(4)
        assert nats_of(balanced, TEXTS) == pytest.approx(np.dot(weights, each), rel=1e-5)

    def test_a_label_never_seen_is_not_scored(self):
        model, odd = made(), Labelled("good", "odd")
        assert model.codec.encode(odd).arrays["label"] == UNSCORED
        assert nats_of(model, [odd, TEXTS[0]]) == pytest.approx(nats_of(model, TEXTS[:1]), rel=1e-5)
        loss, _ = model(batch_of(model, [odd, TEXTS[0]], targets=True))
        assert loss.tokens == 1

    @pytest.mark.parametrize("pooling", ["final", "max", "mean", "attention"])
    def test_empty_texts_are_learnt_from(self, pooling):
        model = made(pooling=pooling)
        train(model, [Labelled("", "bad"), Labelled("", "bad")], 40, rate=0.1)
        assert predictions(model, [Labelled("")])[0]["label"] == "bad"


class TestExactness:
    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_a_batch_is_its_texts_one_by_one(self, changes):
        model = made(**changes).double()
        for one, text in zip(predictions(model, NEW), NEW, strict=True):
            close(one, predictions(model, [text])[0])
            assert sum(one["probabilities"].values()) == pytest.approx(1)
            assert one["label"] == max(one["probabilities"], key=one["probabilities"].get)

    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_nothing_reads_the_padding(self, changes):
        model = made(**changes)
        batch = batch_of(model, [*NEW, *TEXTS])
        with torch.no_grad():
            assert model.predict(batch) == model.predict(spoilt(batch))
            batch = batch_of(model, TEXTS, targets=True)
            assert model.loss(batch).item() == model.loss(spoilt(batch)).item()

    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_saved_and_opened_it_says_the_same(self, changes):
        model = made(**changes)
        codec = ClassifierCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        other = Classifier(model.settings, codec).eval()
        other.load_tensors({name: tensor.clone() for name, tensor in model.tensors().items()})
        assert predictions(other, NEW) == predictions(model, NEW)

    @pytest.mark.parametrize("pooling", ["final", "max", "mean", "attention"])
    def test_an_empty_text_has_the_probabilities_of_the_bias(self, pooling):
        model = made(pooling=pooling)
        for found in predictions(model, [Labelled(""), Labelled("  ")]):
            wanted = model.scores.bias.softmax(0).tolist()
            assert list(found["probabilities"].values()) == pytest.approx(wanted)

    def test_a_very_long_text(self):
        text = Labelled(" ".join(random.Random(0).choices(["good", "bad", "zebra"], k=20_000)))
        assert predictions(made(pooling="attention"), [text])[0]["label"] in ("good", "bad")

    def test_json_holds_predictions(self):
        found = predictions(made(pooling="attention"), NEW, attention=True)
        assert json.loads(json.dumps(found)) == found


class TestUnits:
    def test_words_apart_from_symbols(self):
        codec = made().codec
        assert codec.units("It's  good,really (3.5 of 5)!\n") == [
            "It's", "good", ",", "really", "(", "3.5", "of", "5", ")", "!"
        ]  # fmt: skip
        words = codec.words.encode(["GOOD", "good", "zebra"])["words"]
        assert words[0] == words[1] != words[2] == 0

    def test_what_is_cut_already_stays_as_it_is(self):
        examples = [Labelled("it 's good , really .", "good"), Labelled("well-made e.g. this , so bad .", "bad")]
        codec = made(examples).codec
        assert codec.kind == "whitespace"
        assert codec.units(examples[1].text) == ["well-made", "e.g.", "this", ",", "so", "bad", "."]

    def test_what_comes_uncut_is_cut_at_words_that_are_unknown(self):
        examples = [Labelled("it 's good , really .", "good"), Labelled("well-made e.g. this , so bad .", "bad")]
        model = made(examples)
        codec = model.codec
        assert codec.units("Good, well-made (so bad). e.g. zoo-zoo") == [
            "Good", ",", "well-made", "(", "so", "bad", ")", ".", "e.g.", "zoo-zoo"
        ]  # fmt: skip
        close(*predictions(model, [Labelled("It 's good , really ."), Labelled("It 's good, really.")]))
        assert codec.summary() == "texts: cut into words already; 2 labels, the most frequent 'bad'"
        assert made(units="characters").codec.summary().startswith("texts: cut into characters; 2 labels")

    def test_pretrained_vectors(self, tmp_path):
        (tmp_path / "v").write_text("good 1 2\nmoon 9 9\n")
        model = made(vectors=str(tmp_path / "v"), word_size=None)
        assert "pretrained vectors: of 15.4% of the training" in model.codec.summary()  # twice in 13
        codec = ClassifierCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        codec.reload(model.settings)
        with torch.no_grad():
            found = Classifier(model.settings, codec).eval().words(batch_of(model, [Labelled("Good moon")]))
        assert found[:, 0].tolist() == [[1, 2], [9, 9]]

    def test_characters_and_byte_pairs(self):
        assert made(units="characters").codec.units("ab c") == ["a", "b", " ", "c"]
        codec = made(units="byte-pairs").codec
        assert codec.tokenizer.decode([codec.tokenizer.id(unit) for unit in codec.units("Good zoo")]) == "good zoo"
        assert set(codec.units("good fun")) <= set(codec.words.vocabulary.tokens)  # bytes that look like capitals stay
        assert not any(codec.words.encode(codec.units("good fun"))["words"] == 0)

    def test_characters_of_words_tell_unknown_ones_apart(self):
        one, other = (Labelled(word) for word in ("moody", "doomy"))
        plain, spelled = made(), made(characters="cnn")
        assert predictions(plain, [one]) == predictions(plain, [other])
        assert predictions(spelled, [one]) != predictions(spelled, [other])


class TestAttention:
    def test_weights_are_one_a_unit(self):
        model = made(pooling="attention")
        for found, text in zip(predictions(model, NEW, attention=True), NEW, strict=True):
            units = model.codec.units(text.text)
            assert len(found["weights"]) == len(units)
            assert not units or sum(found["weights"]) == pytest.approx(1, abs=1e-5)
        close(predictions(model, NEW)[0], {**predictions(model, NEW, attention=True)[0]})

    def test_only_attention_has_them(self):
        with pytest.raises(UserError, match="only pooling by attention has weights, this model pools by max"):
            predictions(made(), NEW, attention=True)


class TestStreams:
    @pytest.mark.parametrize("sign", [1, -1])  # scores of attention then rise, or fall
    @pytest.mark.parametrize("pooling", ["final", "max", "mean", "attention"])
    def test_each_prediction_is_that_of_the_text_so_far(self, pooling, sign):
        model = made(pooling=pooling, bidirectional=False, characters="cnn", layers=2).double()
        with torch.no_grad():
            if pooling == "attention":
                model.pooling.query.mul_(100 * sign)  # far from even
        texts = [["good", "zebra", "film", "bad"], ["bad", "xyz", "good", "!"]]
        state = model.start(2)
        for count in range(1, 5):
            units = [Labelled(text[count - 1]) for text in texts]
            with torch.no_grad():
                found, state = model.step(batch_of(model, units), state)
            whole = predictions(model, [Labelled(" ".join(text[:count])) for text in texts])
            for one, other in zip(found, whole, strict=True):
                close(one, other)

    def test_a_step_is_one_unit(self):
        model = made(bidirectional=False)
        with pytest.raises(ValueError, match=r"expected examples of one word each, got lengths \[1, 0\]"):
            model.step(batch_of(model, [Labelled("good"), Labelled("")]), model.start(2))

    @pytest.mark.parametrize(
        ("changes", "why"),
        [({}, "bidirectional"), ({"bidirectional": False, "passes": 2}, "reads its input twice")],
    )
    def test_what_cannot_stream_says_why(self, changes, why):
        with pytest.raises(UserError, match=why):
            made(**changes).start(1)


class TestBadData:
    @pytest.mark.parametrize(
        ("examples", "message"),
        [
            ([], "expected texts of two labels or more to learn from, got none"),
            ([Labelled("a", "x"), Labelled("b", "x")], "two labels or more to learn from, got only 'x'"),
            ([Labelled("a", "x"), Labelled("b")], "expected a label for each text, got none for 'b'"),
            ([Labelled("", "x"), Labelled(" ", "y")], "expected words to learn from"),
        ],
    )
    def test_nothing_to_learn_from(self, examples, message):
        with pytest.raises(UserError, match=message):
            made(examples)

    def test_options_that_are_not_there(self):
        with pytest.raises(TypeError, match="atention"):
            predictions(made(), TEXTS, atention=True)

    def test_targets_that_are_not_there(self):
        with pytest.raises(UserError, match="got none for 'xyz'"):
            made().codec.encode(NEW[2])

    def test_characters_of_what_has_none(self):
        with pytest.raises(
            UserError, match="characters cnn are those of words: with units byte-pairs leave it at none"
        ):
            made(units="byte-pairs", characters="cnn")


@needs_data
def test_sentences_of_films_are_cut_already():
    folder = Path(os.environ["RECURRA_DATA"], "sentence-polarity")
    files = [folder / "rt-polarity.neg", folder / "rt-polarity.pos"]
    if not all(file.exists() for file in files):
        pytest.skip(f"{folder} is not there")
    examples = list(read_labelled([str(file) for file in files], encoding="latin-1"))
    codec = ClassifierCodec.build(examples, ClassifierSettings())
    assert codec.kind == "whitespace"
    assert codec.counts == [5331, 5331]
    assert codec.encode(examples[0]).length == len(examples[0].text.split())

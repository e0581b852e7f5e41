"""Transcribers: they learn to write down what they hear, at once or as it is heard, and read nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recurra.config import UserError, from_mapping, to_mapping
from recurra.models.transcriber import Transcriber, TranscriberCodec, TranscriberSettings
from recurra.nn.ctc import BLANK
from recurra.text.documents import Document, Text
from recurra.text.examples import Encoded, ExampleBatch, ExampleBatches, collate
from recurra.text.features import FeatureSettings, strokes
from recurra.text.readers import Recording
from recurra.text.tokenizer import CharacterTokenizer, TokenizerSettings, WordTokenizer, build_tokenizer
from recurra.text.vocabulary import SPECIAL, Vocabulary

SIZE = 4
SMALL = TranscriberSettings(hidden_size=5, layers=1, dropout=0.0, output_dropout=0.0)
SHAPES = {
    letter: np.random.default_rng(number).normal(size=(3, SIZE)) * 2 + 5
    for number, letter in enumerate("abc ", start=40)
}


@pytest.fixture
def said(tmp_path):
    """Make recordings of texts: each letter has a shape of its own, drawn out, with noise, and silence between."""
    numbers = itertools.count()

    def record(text, seed=0, *, transcript=None):
        rng = np.random.default_rng((seed, *map(ord, text)))
        parts = [np.full((rng.integers(1, 3), SIZE), 5.0)]
        for letter in text:
            parts += [np.repeat(SHAPES[letter], rng.integers(1, 3), 0), np.full((rng.integers(1, 3), SIZE), 5.0)]
        path = tmp_path / f"{next(numbers)}.npy"
        frames = np.concatenate(parts)
        np.save(path, (frames + rng.normal(size=frames.shape) * 0.1).astype(np.float32))
        return Recording(path.name, path, text if transcript is None else transcript)

    return record


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    words = ["a", "ab", "cab", "bac", "cc"]
    return [" ".join(rng.choice(words, size=rng.integers(1, 4))) for _ in range(count)]


def settled(settings, examples):
    codec = TranscriberCodec.build(examples, settings)
    return Transcriber.settle(settings, examples, codec), codec


def model_of(settings, examples):
    torch.manual_seed(0)
    return Transcriber(*settled(settings, examples)).double().eval()


def trained(settings, examples, *, steps, learning_rate=1e-2):
    torch.manual_seed(0)
    settings, codec = settled(settings, examples)
    model = Transcriber(settings, codec)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    encoded = [codec.encode(example) for example in examples]
    done = 0
    while done < steps:
        for batch in ExampleBatches(encoded, batch_size=16, epoch=done):
            model(batch)[0].mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
    return model.eval()


@torch.no_grad()
def heard(model, examples, **options):
    return model.predict(collate([model.codec.encode(example, targets=False) for example in examples]), **options)


def share_right(model, examples, **options):
    found = heard(model, examples, **options)
    return np.mean([one["text"] == example.transcript for one, example in zip(found, examples, strict=True)])


VARIANTS = {
    "both directions": dataclasses.replace(SMALL, reduction=1),
    "stacked": dataclasses.replace(SMALL, reduction=3, skip_impossible=True),
    "convolution": dataclasses.replace(SMALL, reduction=2, reduce_by="convolution", skip_impossible=True),
    "words": dataclasses.replace(SMALL, reduction=2, units="words", cell="gru", layers=2),
    "one direction": dataclasses.replace(SMALL, reduction=2, bidirectional=False, skip_impossible=True),
    "one direction, convolution": dataclasses.replace(
        SMALL, reduction=3, bidirectional=False, reduce_by="convolution", skip_impossible=True
    ),
}


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def transcriber(request, said):
    model = model_of(VARIANTS[request.param], [said(text) for text in texts(12)])
    return model, [said(text, 1) for text in texts(6, seed=1)]


class TestLearning:
    @pytest.mark.parametrize(
        "changes", [{"reduction": 1}, {"reduction": 2, "reduce_by": "convolution"}, {"units": "words"}]
    )
    def test_letters_and_words(self, said, changes):
        settings = dataclasses.replace(SMALL, hidden_size=24, skip_impossible=True, **changes)
        model = trained(settings, [said(text) for text in texts(160)], steps=150)
        new = [said(text, 2) for text in texts(60, seed=2)]
        assert share_right(model, new) > 0.9
        assert share_right(model, new, beam=4) > 0.9

    def test_one_symbol_a_drawing(self, tmp_path):
        """A cross, a square or a line, drawn a little askew each time."""
        shapes = {
            "cross": [[(0, 0), (1, 1)], [(0, 1), (1, 0)]],
            "square": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]],
            "line": [[(0, 0), (1, 0.1)]],
        }
        rng = np.random.default_rng(0)
        examples = []
        for number in range(90):
            name = list(shapes)[number % 3]
            lines = [np.array(line) + rng.normal(size=(len(line), 2)) * 0.05 for line in shapes[name]]
            np.save(tmp_path / f"{number}.npy", strokes(lines))
            examples.append(Recording(f"{number}.npy", tmp_path / f"{number}.npy", name))
        settings = dataclasses.replace(SMALL, hidden_size=16, units="words")
        model = trained(settings, examples[:60], steps=60)
        assert share_right(model, examples[60:]) > 0.95

    def test_varied_recordings_are_learnt_from_too(self, said):
        settings = dataclasses.replace(SMALL, hidden_size=24, augment=True, time_mask=2, frequency_mask=1, reduction=1)
        model = trained(settings, [said(text) for text in texts(80)], steps=150)
        assert share_right(model, [said(text, 2) for text in texts(40, seed=2)]) > 0.8


class TestIndependence:
    @pytest.mark.parametrize("options", [{}, {"beam": 3, "n_best": 2}])
    def test_a_batch_is_its_examples_one_by_one(self, transcriber, options):
        model, examples = transcriber
        together = heard(model, examples, **options)
        for one, example in zip(together, examples, strict=True):
            (alone,) = heard(model, [example], **options)
            assert one["text"] == alone["text"]
            assert one["log_prob"] == pytest.approx(alone["log_prob"])
        encoded = [model.codec.encode(example) for example in examples]
        whole, _ = model(collate(encoded))
        alone = torch.stack([model(collate([one]))[0].nats for one in encoded])
        torch.testing.assert_close(whole.nats, alone.sum())

    def test_padding_is_never_read(self, transcriber):
        model, examples = transcriber
        batch = collate([model.codec.encode(example) for example in examples])
        dirty = {name: array.clone() for name, array in batch.arrays.items()}
        for column in range(batch.size):
            dirty["features"][batch.lengths["features"][column] :, column] = torch.nan
            dirty["symbols"][batch.lengths["symbols"][column] :, column] = 10**9
        spoiled = ExampleBatch(dirty, batch.lengths, batch.size, batch.tokens)
        gradients = []
        for one in (batch, spoiled):
            model.zero_grad()
            model(one)[0].nats.backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        torch.testing.assert_close(*gradients)
        with torch.no_grad():
            assert model.predict(spoiled) == model.predict(batch)

    def test_varied_recordings_have_no_padding_in_them(self, said):
        settings = dataclasses.replace(SMALL, augment=True, time_mask=2, frequency_mask=1, reduction=1)
        model = model_of(settings, [said(text) for text in texts(8)]).train()
        batch = collate([model.codec.encode(said(text, 1)) for text in texts(6, seed=1)])
        losses = []
        for filler in (torch.nan, 0.0):
            features = batch.arrays["features"].clone()
            for column, length in enumerate(batch.lengths["features"].tolist()):
                features[length:, column] = filler
            torch.manual_seed(5)
            losses.append(model.loss(batch._replace(arrays={**batch.arrays, "features": features})))
        assert torch.isfinite(losses[0])
        assert losses[0] == losses[1]

    def test_saving_changes_nothing(self, transcriber):
        model, examples = transcriber
        settings = from_mapping(TranscriberSettings, json.loads(json.dumps(to_mapping(model.settings))), "settings")
        codec = TranscriberCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        torch.manual_seed(7)
        opened = Transcriber(settings, codec).double().eval()
        opened.load_tensors(model.tensors())
        assert heard(opened, examples) == heard(model, examples)


class TestNetwork:
    def test_features_are_normalised(self, said):
        examples = [said(text) for text in texts(6)]
        model = model_of(SMALL, examples)
        frames = np.concatenate([np.load(example.path) for example in examples]).astype(np.float64)
        assert model.codec.mean == pytest.approx(frames.mean(0))
        assert model.codec.deviation == pytest.approx(frames.std(0))
        batch = collate([model.codec.encode(example) for example in examples])
        found = model._normalised(batch.arrays["features"], batch.lengths["features"])
        there = torch.arange(len(found))[:, None] < batch.lengths["features"]
        torch.testing.assert_close(found[there].mean(0), torch.zeros(SIZE).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(found[there].std(0, correction=0), torch.ones(SIZE).double(), atol=1e-5, rtol=0)

    def test_a_constant_feature_does_no_harm(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([[1.0, 5.0], [2.0, 5.0]]))
        codec = TranscriberCodec.build([Recording("a", tmp_path / "a.npy", "x")], SMALL)
        assert codec.deviation == pytest.approx([0.5, 1])

    def test_stacking(self, said):
        model = model_of(dataclasses.replace(SMALL, reduction=3), [said("abc")])
        frames = torch.randn(6, 2, SIZE).double()
        found, last = model._reduced(frames, torch.zeros(2, 3 * SIZE).double())
        torch.testing.assert_close(found[1, 0], torch.cat(tuple(frames[3:, 0])))
        torch.testing.assert_close(last, found[1])

    def test_the_convolution_is_one(self, said):
        settings = dataclasses.replace(SMALL, reduction=2, reduce_by="convolution")
        model = model_of(settings, [said("abc")])
        frames = torch.randn(8, 3, SIZE).double()
        found, _ = model._reduced(frames, torch.zeros(3, 2 * SIZE).double())
        kernel = model.convolution.weight.view(-1, 4, SIZE).transpose(1, 2)  # [out, D, 2 reduction]
        padded = F.pad(frames.permute(1, 2, 0), (2, 0))
        expected = F.conv1d(padded, kernel, model.convolution.bias, stride=2).relu()
        torch.testing.assert_close(found, expected.permute(2, 0, 1))

    def test_the_loss_is_that_of_all_paths(self, said):
        examples = [said("ab")]
        model = model_of(dataclasses.replace(SMALL, reduction=3), examples)
        batch = collate([model.codec.encode(example) for example in examples])
        frames = model._normalised(batch.arrays["features"], batch.lengths["features"])
        log_probs, (length,) = model._log_probs(frames, batch.lengths["features"])
        total = 0.0
        for path in itertools.product(range(3), repeat=int(length)):
            kept = [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]
            if kept == batch.arrays["symbols"][:, 0].tolist():
                total += math.exp(sum(log_probs[t, 0, symbol].item() for t, symbol in enumerate(path)))
        assert model(batch)[0].nats.item() == pytest.approx(-math.log(total))
        best = heard(model, examples, beam=500, n_best=500)[0]["alternatives"]
        (own,) = (one for one in best if one["text"] == "ab")
        assert own["log_prob"] == pytest.approx(math.log(total))
        assert sum(math.exp(one["log_prob"]) for one in best) == pytest.approx(1)

    def test_the_reduction_leaves_room_for_every_symbol(self, tmp_path):
        def made(frames, text):
            np.save(tmp_path / f"{text}.npy", np.random.default_rng(0).normal(size=(frames, 2)))
            return Recording(text, tmp_path / f"{text}.npy", text)

        for frames, text, expected in ((12, "ab", 3), (7, "ab", 2), (9, "aab", 1), (20, "aab", 2), (2, "ab", 1)):
            settings, codec = settled(SMALL, [made(frames, text)])
            assert settings.reduction == codec.reduction == expected

    def test_one_odd_transcript_decides_nothing_unless_it_were_lost(self, tmp_path):
        examples = []
        for number, (frames, text) in enumerate([(12, "ab")] * 150 + [(7, "abc")]):
            np.save(tmp_path / f"{number}.npy", np.random.default_rng(0).normal(size=(frames, 2)))
            examples.append(Recording(text, tmp_path / f"{number}.npy", text))
        assert settled(SMALL, examples)[0].reduction == 3
        assert settled(SMALL, examples[100:])[0].reduction == 1  # a fiftieth
        examples[-1] = dataclasses.replace(examples[-1], transcript="abab")
        assert settled(SMALL, examples)[0].reduction == 2  # 4 symbols do not fit into 3 frames
        examples[-1] = dataclasses.replace(examples[-1], transcript="ab" * 9)  # it does not fit anyway
        assert settled(SMALL, examples)[0].reduction == 3
        examples[-1] = dataclasses.replace(examples[-1], transcript="abab")
        assert settled(dataclasses.replace(SMALL, skip_impossible=True), examples)[0].reduction == 3


class TestVaried:
    def varied(self, said, seed=3, **changes):
        model = model_of(dataclasses.replace(SMALL, reduction=2, **changes), [said("abc")])
        frames = torch.arange(1.0, 61)[:, None, None].expand(60, 3, 8).clone().double()
        lengths = torch.tensor([60, 40, 1])
        for column, length in enumerate(lengths):
            frames[length:, column] = 0
        torch.manual_seed(seed)
        return (frames, *model._varied(frames, lengths, torch.tensor([5, 19, 1])))

    def test_nothing_unless_asked_for(self, said):
        assert settled(SMALL, [said("abc")])[0].time_masks == 0
        frames, found, lengths = self.varied(said)
        torch.testing.assert_close(found, frames)
        assert lengths.tolist() == [60, 40, 1]

    def test_augment_turns_on_what_was_left_open(self, said):
        settings, _ = settled(dataclasses.replace(SMALL, augment=True, noise=0.0), [said("abc")])
        assert (settings.time_masks, settings.speed, settings.noise) == (2, 0.1, 0.0)
        assert settings.frequency_masks == 0  # its features are no sound's
        assert settled(dataclasses.replace(SMALL, augment=True, frequency_masks=1), [said("a")])[0].frequency_masks == 1

    def test_hidden_stretches(self, said):
        frames, found, _ = self.varied(said, time_masks=1, time_mask=10)
        hidden = (found == 0) & (frames != 0)
        for column, longest in ((0, 10), (1, 8), (2, 1)):
            rows = hidden[:, column].all(-1)
            assert torch.equal(rows, hidden[:, column].any(-1))
            places = rows.nonzero()[:, 0]
            assert len(places) <= longest
            assert not len(places) or len(places) == places[-1] - places[0] + 1
        assert hidden.any()
        torch.testing.assert_close(found[~hidden], frames[~hidden])

    def test_hidden_bands(self, said):
        frames, found, _ = self.varied(said, 4, frequency_masks=1, frequency_mask=3)
        hidden = (found == 0) & (frames != 0)
        assert hidden.any()
        for column, length in enumerate((60, 40, 1)):
            bands = hidden[:length, column].all(0)
            assert torch.equal(bands, hidden[:length, column].any(0))
            assert int(bands.sum()) <= 2  # a quarter of them

    def test_a_band_is_hidden_in_all_frames_that_were_joined(self, said):
        model = model_of(dataclasses.replace(SMALL, frequency_masks=1, frequency_mask=3), [said("abc")])
        model.codec.features = FeatureSettings(rate=8000, mels=8, stack=3)
        frames = torch.ones(5, 40, 24).double()
        found, _ = model._varied(frames, torch.full((40,), 5), torch.ones(40))
        hidden = (found == 0).view(5, 40, 3, 8)
        assert hidden.any()
        assert (hidden == hidden[:1, :, :1]).all()
        assert int(hidden[0, :, 0].sum(-1).max()) == 2

    def test_speed_keeps_ends_and_order(self, said):
        _, found, lengths = self.varied(said, speed=0.5)
        assert lengths.tolist() != [60, 40, 1]
        assert 40 <= lengths[0] <= 120
        assert lengths[1] >= 38  # 19 frames once two are one
        for column, (length, last) in enumerate(zip(lengths.tolist(), (60, 40, 1), strict=True)):
            own = found[:, column, 0]
            assert (own[0], own[length - 1]) == (1, last)
            assert (own[1:length] > own[: length - 1]).all()
            assert not own[length:].any()

    def test_noise(self, said):
        frames, found, _ = self.varied(said, noise=0.25)
        there = frames != 0
        assert (found - frames)[there].std() == pytest.approx(0.25, rel=0.2)
        assert not found[~there].any()

    def test_evaluation_knows_nothing_of_it(self, said):
        examples = [said(text) for text in texts(4)]
        plain, varied = model_of(SMALL, examples), model_of(dataclasses.replace(SMALL, augment=True), examples)
        assert heard(plain, examples) == heard(varied, examples)


class TestStreaming:
    @pytest.mark.parametrize("variant", ["one direction", "one direction, convolution"])
    @pytest.mark.parametrize("chunk", [1, 2, 5, 100])
    def test_as_it_is_heard(self, said, variant, chunk):
        model = model_of(dataclasses.replace(VARIANTS[variant], hidden_size=16), [said(text) for text in texts(12)])
        with torch.no_grad():
            model.output.weight.mul_(20)  # so that blanks and symbols come and go
            for parameter in model.encoder.parameters():
                parameter.mul_(3)
        features = torch.from_numpy(np.random.default_rng(0).normal(5, 8, (50, 2, SIZE)).astype(np.float32))
        batch = collate([Encoded({"features": features[:, row].numpy()}, len(features), 0) for row in range(2)])
        with torch.no_grad():
            expected = [one["text"] for one in model.predict(batch)]
        assert max(map(len, expected)) > 2
        state = model.start(2)
        found = ["", ""]
        for begin in range(0, len(features), chunk):
            symbols, state = model.step(features[begin : begin + chunk], state)
            found = [text + "".join(more) for text, more in zip(found, symbols, strict=True)]
        found = [text + "".join(more) for text, more in zip(found, model.finish(state), strict=True)]
        assert [" ".join(text.split()) for text in found] == expected

    def test_not_backwards(self, said):
        with pytest.raises(UserError, match="bidirectional"):
            model_of(SMALL, [said("abc")]).start(1)


class Bigrams:
    """A language model by a table ``[tokens, tokens]``."""

    def __init__(self, table):
        self.table = table.log_softmax(-1)

    def start(self, batch_size):
        return torch.zeros(batch_size)

    def step(self, tokens, state):
        return self.table[tokens], state

    def select(self, state, rows):
        return state[rows]


def language_model(tokens, kind="characters"):
    vocabulary = Vocabulary([*SPECIAL, *tokens], [1] * (len(tokens) + 2))
    if kind == "byte-pairs":
        text = Text((Document("words", lambda: iter([" ".join(tokens)] * 9)),))
        tokenizer = build_tokenizer(text, TokenizerSettings(tokenizer=kind, vocabulary_size=300))
    else:
        tokenizer = CharacterTokenizer(vocabulary) if kind == "characters" else WordTokenizer(kind, vocabulary)
    size = len(tokenizer.vocabulary)
    table = torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * 2
    return SimpleNamespace(model=Bigrams(table.double()), tokenizer=tokenizer)


class TestLanguageModels:
    def alternatives(self, said, lm, text="ab", others=("b a", "ab"), **changes):
        model = model_of(dataclasses.replace(SMALL, reduction=3, **changes), [said(other, 4) for other in others])
        return heard(model, [said(text)], beam=500, n_best=500, language_model=lm, lm_weight=0.7, word_bonus=0.3)[0]

    def test_of_characters(self, said):
        lm = language_model("ba ")
        found = self.alternatives(said, lm, others=["ba", "ab"])["alternatives"]
        for one in found:
            ids = [1, *(lm.tokenizer.id(letter) for letter in one["text"]), 1]
            log_prob = sum(lm.model.table[a, b].item() for a, b in itertools.pairwise(ids))
            assert one["language_model"] == pytest.approx(log_prob)
            assert one["score"] == pytest.approx(one["log_prob"] + 0.7 * log_prob + 0.3 * len(one["text"]))
        assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)

    @pytest.mark.parametrize("units", ["characters", "words"])
    @pytest.mark.parametrize("kind", ["whitespace", "words", "byte-pairs"])
    def test_of_words(self, said, units, kind):
        """What the language model would make of the text, and of nothing else."""
        lm = language_model(["a", "b", "ab", "cab", "￭,"], kind)
        lists = {"characters": ("b a", "ab"), "words": ("b, a", "a,b cab")}
        transcripts = {"others": lists[units], "text": "ab"}
        if units == "words":
            model = model_of(
                dataclasses.replace(SMALL, units=units, reduction=3),
                [said("ab a", 4, transcript=text) for text in lists[units]],
            )
            options = {"lm_weight": 0.7, "word_bonus": 0.3, "beam": 900, "n_best": 900}
            (found,) = heard(model, [said("ab")], language_model=lm, **options)
        else:
            found = self.alternatives(said, lm, units=units, **transcripts)
        assert found["text"] == found["alternatives"][0]["text"]
        for one in found["alternatives"]:
            words = one["text"].split()
            ids = [1, *lm.tokenizer.encode(one["text"]).tolist(), 1]
            log_prob = sum(lm.model.table[a, b].item() for a, b in itertools.pairwise(ids))
            assert one["language_model"] == pytest.approx(log_prob)
            assert one["score"] == pytest.approx(one["log_prob"] + 0.7 * log_prob + 0.3 * len(words))

    def test_that_do_not_fit(self, said):
        model = model_of(SMALL, [said("ab")])
        with pytest.raises(UserError, match="has learnt no spaces"):
            heard(model, [said("ab")], language_model=language_model(["a"], "whitespace"))
        with pytest.raises(UserError, match="cannot tell a language model of byte-pairs where words end"):
            heard(model, [said("ab")], language_model=language_model(["a"], "byte-pairs"))
        words = model_of(dataclasses.replace(SMALL, units="words"), [said("ab")])
        with pytest.raises(UserError, match="language model of characters cannot judge transcripts made of words"):
            heard(words, [said("ab")], language_model=language_model("ab"))


class TestOddInput:
    def test_a_very_long_recording(self, said):
        model = model_of(dataclasses.replace(SMALL, hidden_size=2, reduction=1), [said("abc")]).float()
        features = np.random.default_rng(0).normal(size=(100_000, SIZE)).astype(np.float32)
        with torch.no_grad():
            (found,) = model.predict(collate([Encoded({"features": features}, len(features), 0)]))
        assert math.isfinite(found["log_prob"])

    @pytest.mark.parametrize("beam", [1, 3])
    def test_a_recording_without_frames(self, transcriber, beam):
        model, examples = transcriber
        nothing = Encoded({"features": np.zeros((0, SIZE), np.float32)}, 0, 0)
        with torch.no_grad():
            assert model.predict(collate([nothing]), beam=beam) == [{"text": "", "log_prob": 0.0}]
            (several,) = model.predict(collate([nothing]), beam=beam + 1, n_best=2)
            assert several["alternatives"] == [{"text": "", "log_prob": 0.0, "language_model": 0.0, "score": 0.0}]
            encoded = model.codec.encode(examples[0], targets=False)
            empty, other = model.predict(collate([nothing, encoded]), beam=beam)
        assert empty == {"text": "", "log_prob": 0.0}
        assert other["text"] == heard(model, examples[:1], beam=beam)[0]["text"]

    def test_more_than_the_beam_holds_is_not_to_be_had(self, transcriber):
        model, examples = transcriber
        with pytest.raises(UserError, match="beam: expected at least 1, got 0"):
            heard(model, examples, beam=0)
        for beam, n_best in ((1, 2), (4, 5), (4, 0)):
            with pytest.raises(UserError, match=f"n_best: expected 1 to {beam}, the size of the beam, got {n_best}"):
                heard(model, examples, beam=beam, n_best=n_best)

    def test_texts_have_single_spaces_between_words_and_are_given_once(self, said):
        model = model_of(dataclasses.replace(SMALL, reduction=3), [said("b a"), said("ab")])
        symbols = [model.codec.symbol(letter) for letter in "  a  b "]
        assert model.codec.decode(symbols) == "a b"
        (found,) = heard(model, [said("ab")], beam=900, n_best=900)
        texts = [one["text"] for one in found["alternatives"]]
        assert len(set(texts)) == len(texts)
        assert sum(math.exp(one["log_prob"]) for one in found["alternatives"]) == pytest.approx(1)

    def test_symbols_that_training_had_not_are_left_out(self, said):
        codec = TranscriberCodec.build([said("ab")], SMALL)
        encoded = codec.encode(said("acb"))
        assert codec.decode(encoded.arrays["symbols"].tolist()) == "ab"

    def test_white_space_is_one_space(self, said):
        codec = TranscriberCodec.build([said("abc abc", transcript=" ab \t c\n")], SMALL)
        assert codec.symbols == [" ", "a", "b", "c"]

    def test_transcripts_that_do_not_fit(self, said):
        codec = TranscriberCodec.build([said("ab abc" * 4), said("cc" * 20)], dataclasses.replace(SMALL, reduction=4))
        long = said("ab", transcript="abab" * 3)
        frames = len(np.load(long.path))
        with pytest.raises(
            UserError, match=rf"^{long.path}: its transcript needs 12 frames, and it has {frames}, \d+ once 4"
        ):
            codec.encode(long)

    def test_or_are_skipped_and_counted(self, said):
        settings = dataclasses.replace(SMALL, reduction=2, skip_impossible=True)
        examples = [said("abc"), said("ab", transcript="ab" * 9), said("cab"), said("a", transcript="b" * 20)]
        model = model_of(settings, examples)
        encoded = [model.codec.encode(example) for example in examples]
        assert model.codec.skipped == 2
        assert [one.targets for one in encoded] == [3, 0, 3, 0]
        assert model.codec.summary() == (
            "recordings: 2 of their frames become one; 2 with more symbols than frames are left out"
        )
        whole, _ = model(collate(encoded))
        assert whole.tokens == 6
        kept, _ = model(collate(encoded[::2]))
        torch.testing.assert_close(whole.nats, kept.nats)
        nothing, _ = model(collate(encoded[1:2]))
        nothing.nats.backward()
        assert (nothing.nats.item(), nothing.tokens) == (0, 0)

    def test_numbers_that_are_none(self, said, tmp_path):
        np.save(tmp_path / "bad.npy", np.array([[1.0, 2, 3, math.nan]]))
        bad = Recording("bad.npy", tmp_path / "bad.npy", "a")
        with pytest.raises(UserError, match=r"bad\.npy: expected finite numbers, got nan"):
            TranscriberCodec.build([said("a"), bad], SMALL)
        with pytest.raises(UserError, match=r"bad\.npy: expected finite numbers, got nan"):
            TranscriberCodec.build([said("a")], SMALL).encode(bad)

    def test_other_features(self, said, tmp_path):
        np.save(tmp_path / "wide.npy", np.ones((9, 7)))
        wide = Recording("wide.npy", tmp_path / "wide.npy", "a")
        first = said("a")
        with pytest.raises(UserError, match=rf"^{wide.path}: expected 4 features a frame, as {first.path} has, got 7"):
            TranscriberCodec.build([first, wide], SMALL)
        with pytest.raises(UserError, match=rf"^{wide.path}: expected 4 features a frame, as in training, got 7"):
            TranscriberCodec.build([first], SMALL).encode(wide)

    def test_nothing_to_learn_from(self, said):
        with pytest.raises(UserError, match="expected recordings with transcripts to learn from, got none"):
            TranscriberCodec.build([], SMALL)
        one = said("ab")
        with pytest.raises(UserError, match=rf"^{one.path}: expected a transcript to learn from, got none"):
            TranscriberCodec.build([dataclasses.replace(one, transcript=None)], SMALL)
        with pytest.raises(UserError, match="got only empty ones"):
            TranscriberCodec.build([dataclasses.replace(one, transcript=" ")], SMALL)

    def test_sounds_have_one_rate(self, tmp_path):
        import wave

        def made(name, rate):
            samples = (np.sin(np.arange(rate // 4) / 5) * 9000).astype("<i2")
            with wave.open(str(tmp_path / name), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(rate)
                file.writeframes(samples.tobytes())
            return Recording(name, tmp_path / name, "hi")

        examples = [made("a.wav", 8000)]
        settings, codec = settled(dataclasses.replace(SMALL, mels=20), examples)
        assert (settings.rate, codec.size, settings.size) == (8000, 20, 20)
        assert settled(dataclasses.replace(SMALL, mels=20, augment=True), examples)[0].frequency_masks == 2
        codec = TranscriberCodec.from_mapping(json.loads(json.dumps(codec.to_mapping())))
        assert codec.encode(examples[0]).arrays["features"].shape[1] == 20
        with pytest.raises(UserError, match="expected 8000 samples a second, got 16000"):
            codec.encode(made("b.wav", 16000))

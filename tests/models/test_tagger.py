import copy
import dataclasses
import json
import math
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.models import words
from recurra.models.protocol import evaluating
from recurra.models.tagger import Tagger, TaggerCodec, TaggerSettings
from recurra.models.words import UNSCORED
from recurra.optimization import build_optimizer
from recurra.text.columns import Sentence, read_sentences
from recurra.text.examples import collate
from recurra.text.tag_schemes import convert, detect_scheme

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

SMALL = {"hidden_size": 8, "layers": 1, "word_size": 6, "character_size": 5, "character_features": 4}
PLAIN = [
    Sentence(("the", "Dog", "barks"), ("DET", "NOUN", "VERB")),
    Sentence(("the", "cat", "sees", "the", "dog"), ("DET", "NOUN", "VERB", "DET", "NOUN")),
    Sentence((), ()),
    Sentence(("run",), ("VERB",)),
]
ENTITIES = [  # IOB1: B only where a chunk follows another of its type
    Sentence(("Ann", "Lee", "Bo", "saw", "Rome"), ("I-PER", "I-PER", "B-PER", "O", "I-LOC")),
    Sentence(("in", "New", "York"), ("O", "I-LOC", "I-LOC")),
]
NEW = [  # words of which training had none, some or all
    Sentence(("Xylo", "the", "zebras", "Xylo")),
    Sentence(("qi",)),
    Sentence(()),
    Sentence(("the", "dog", "Dog", "DOG", "<unk>", "zebra", "naïve😀")),
]


def made(examples=PLAIN, seed=0, **changes):
    """A new model in evaluation mode."""
    settings = TaggerSettings(**{**SMALL, **changes})
    codec = TaggerCodec.build(examples, settings)
    settings = Tagger.settle(settings, examples, codec)
    torch.manual_seed(seed)
    return Tagger(settings, codec).eval()


def batch_of(model, sentences, targets=False):
    return collate([model.codec.encode(sentence, targets=targets) for sentence in sentences])


def predictions(model, sentences, **options):
    with evaluating(model), torch.no_grad():
        return model.predict(batch_of(model, sentences), **options)


def train(model, examples, steps, rate=0.02):
    encoded = [model.codec.encode(example) for example in examples]
    optimizer = build_optimizer("adam", model, learning_rate=rate)
    model.train()
    for step in range(steps):
        rows = random.Random(step).sample(encoded, min(32, len(encoded)))
        loss, _ = model(collate(rows))
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    model.eval()


def spoilt(batch):
    """The same batch with numbers of no meaning in its padding."""
    arrays = {}
    for name, array in batch.arrays.items():
        array = array.clone()
        for column, length in enumerate(batch.lengths[name].tolist()):
            array[length:, column] = -(10**6) if name != "unseen" else 7
        arrays[name] = array
    return batch._replace(arrays=arrays)


VARIANTS = [
    {"characters": "none"},
    {"characters": "cnn"},
    {"characters": "lstm"},
    {"characters": "lstm", "cell": "gru", "layers": 2, "self_attention": 2},
    {"characters": "cnn", "bidirectional": False, "passes": 2},
    {"characters": "cnn", "output": "crf"},
]


class TestSettling:
    def test_spans_get_a_crf_and_others_a_softmax(self):
        assert made().settings.output == "softmax"
        assert made(ENTITIES).settings.output == "crf"
        assert made(ENTITIES, output="softmax").settings.output == "softmax"
        assert made(word_size=None).settings.word_size == 100

    def test_connections_chosen_are_saved(self):
        assert made(layers=4).settings.connections == "residual"
        assert made().settings.connections == "plain"


class TestLearning:
    def test_tags_by_the_next_word_and_by_endings_of_unseen_words(self):
        draw = random.Random(1)

        def sentence():
            stems = ["".join(draw.choices("abcdefgh", k=3)) for _ in range(draw.randint(1, 7))]
            words = [stem + draw.choice(["ing", "ed"]) for stem in stems]
            following = [*words[1:], "."]
            tags = [word[-1] + after[-1] for word, after in zip(words, following, strict=True)]
            return Sentence(tuple(words), tuple(tags))

        examples = [sentence() for _ in range(200)]
        dropouts = {"input_dropout": 0.0, "output_dropout": 0.0, "rare_word_dropout": 9.0}
        model = made(examples, hidden_size=16, character_features=12, **dropouts)
        train(model, examples, 40)
        unseen = [sentence() for _ in range(50)]
        known = set(model.codec.words.vocabulary.tokens)
        assert sum(word not in known for one in unseen for word in one.words) > 20
        pairs = [
            (guess, tag)
            for one, tags in zip(unseen, predictions(model, unseen), strict=True)
            for guess, tag in zip(tags, one.tags, strict=True)
        ]
        assert np.mean([guess == tag for guess, tag in pairs]) > 0.97

    @pytest.mark.parametrize("scheme", ["keep", "bio", "bioes"])
    def test_spans_come_back_in_the_scheme_of_the_data(self, scheme):
        model = made(ENTITIES, scheme=scheme, word_dropout=0.0, rare_word_dropout=0.0)
        assert model.codec.scheme == "iob1"
        train(model, ENTITIES, 40)
        assert predictions(model, ENTITIES) == [list(sentence.tags) for sentence in ENTITIES]

    def test_loss_is_minus_log_of_the_probability_of_the_tags(self):
        for model in (made(), made(output="crf")):
            with torch.no_grad():
                loss, _ = model(batch_of(model, PLAIN, targets=True))
            assert loss.tokens == 9
            if model.crf is None:
                nats = sum(
                    -math.log(shares[tag])
                    for sentence, found in zip(PLAIN, predictions(model, PLAIN, probabilities=True), strict=True)
                    for shares, tag in zip(found["probabilities"], sentence.tags, strict=True)
                )
            else:  # as its transitions are 0, it is a softmax
                twin = made()
                twin.load_tensors({name: p for name, p in model.tensors().items() if not name.startswith("crf")})
                with torch.no_grad():
                    nats = float(twin.loss(batch_of(model, PLAIN, targets=True)))
            assert float(loss.nats) == pytest.approx(nats, rel=1e-5)

    def test_a_sentence_with_a_tag_never_seen_is_not_scored(self):
        odd = Sentence(("the", "dog", "x"), ("DET", "NOUN", "NEVER"))
        for model in (made(), made(output="crf")):
            assert model.codec.encode(odd).targets == 0
            with torch.no_grad():
                both, one = (model(batch_of(model, some, targets=True))[0] for some in ([odd, PLAIN[0]], PLAIN[:1]))
            assert both.tokens == one.tokens == 3
            assert float(both.nats) == pytest.approx(float(one.nats), rel=1e-5)
            nothing = model(batch_of(model, [odd], targets=True))[0]
            assert nothing.nats.item() == 0

    def test_in_training_a_batch_of_empty_sentences_does_not_fail(self):
        for output in ("softmax", "crf"):
            model = made(output=output).train()
            loss, _ = model(batch_of(model, [PLAIN[2]] * 2, targets=True))
            loss.nats.backward()
            assert loss.nats.item() == loss.tokens == 0


class TestExactness:
    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_a_batch_is_its_sentences_one_by_one(self, changes):
        model = made(**changes).double()
        together = predictions(model, NEW, probabilities=True)
        alone = [predictions(model, [sentence], probabilities=True)[0] for sentence in NEW]
        for one, other, sentence in zip(together, alone, NEW, strict=True):
            assert one["tags"] == other["tags"]
            assert len(one["tags"]) == len(one["probabilities"]) == len(sentence.words)
            for shares, again in zip(one["probabilities"], other["probabilities"], strict=True):
                assert shares == pytest.approx(again, abs=1e-12)
                assert sum(shares.values()) == pytest.approx(1)

    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_nothing_reads_the_padding(self, changes):
        model = made(**changes)
        batch = batch_of(model, [*NEW, *PLAIN])
        with torch.no_grad():
            assert model.predict(batch, probabilities=True) == model.predict(spoilt(batch), probabilities=True)
        batch = batch_of(model, PLAIN, targets=True)
        assert model.loss(batch).item() == model.loss(spoilt(batch)).item()

    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_saved_and_opened_it_says_the_same(self, changes):
        model = made(**changes)
        codec = TaggerCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        other = Tagger(model.settings, codec).eval()
        other.load_tensors({name: tensor.clone() for name, tensor in model.tensors().items()})
        assert predictions(other, NEW, probabilities=True) == predictions(model, NEW, probabilities=True)

    def test_empty_sentences_have_no_tags(self):
        for output in ("softmax", "crf"):
            model = made(output=output)
            assert predictions(model, [Sentence(()), Sentence(())]) == [[], []]
            assert predictions(model, [Sentence(())], probabilities=True) == [{"tags": [], "probabilities": []}]

    def test_a_very_long_sentence(self):
        words = tuple(random.Random(0).choices(["the", "dog", "zebra", "run"], k=20_000))
        for output in ("softmax", "crf"):
            assert len(predictions(made(output=output), [Sentence(words)])[0]) == 20_000


class TestWords:
    def test_lookups_are_small_and_characters_keep_the_case(self):
        codec = made().codec
        arrays = codec.words.encode(["dog", "Dog", "DOG"])
        assert len(set(arrays["words"].tolist())) == 1
        assert len(set(arrays["spellings"].tolist())) == 3
        kept = made(lowercase=False).codec.words.encode(["dog", "Dog", "DOG"])
        assert [number == 0 for number in kept["words"]] == [False, False, True]

    def test_rare_words_have_no_vector_but_their_characters(self):
        codec = made(min_count=2).codec
        assert codec.words.vocabulary.tokens[2:] == ["the", "dog"]
        arrays = codec.words.encode(["barks", "cat"])
        assert arrays["words"].tolist() == [0, 0]
        assert len(arrays["unseen"]) == 0

    @pytest.mark.parametrize("characters", ["cnn", "lstm"])
    def test_unseen_words_are_spelled_each_for_itself(self, characters):
        model = made(characters=characters)
        layer = model.words
        with torch.no_grad():
            found = layer(batch_of(model, NEW))[..., -4:]  # what the characters add
            for column, sentence in enumerate(NEW):
                wanted = [word[:48] for word in sentence.words]
                if wanted:
                    torch.testing.assert_close(found[: len(wanted), column], layer.characters.spell(wanted))
        assert not torch.allclose(found[0, 0], found[0, 1])

    def test_spellings_kept_are_forgotten_when_a_parameter_changes(self):
        model = made()
        before = predictions(model, NEW, probabilities=True)
        assert model.words._kept.vectors
        assert predictions(model, NEW, probabilities=True) == before
        with torch.no_grad():
            model.words.characters.projection.weight.add_(1.0)
        after = predictions(model, NEW, probabilities=True)
        assert after[1]["probabilities"] != before[1]["probabilities"]
        assert after == predictions(copy.deepcopy(model), NEW, probabilities=True)

    def test_spellings_kept_are_forgotten_in_training(self):
        model = made()
        predictions(model, NEW)
        train(model, PLAIN, 2)  # in which no word is unseen, and fused Adam does not tell that it changed a parameter
        after = predictions(model, NEW, probabilities=True)
        assert after == predictions(copy.deepcopy(model), NEW, probabilities=True)

    def test_as_many_spellings_are_kept_as_are_allowed(self, monkeypatch):
        monkeypatch.setattr(words, "KEPT_WORDS", 3)
        model = made()

        def kept(*unseen):
            before = set(model.words._kept.vectors)
            with torch.no_grad():
                found = model.words._spell(unseen)
            torch.testing.assert_close(found, model.words.characters.spell(unseen))
            after = set(model.words._kept.vectors)
            return before & after, after - before

        assert kept("qa", "qb") == (set(), {"qa", "qb"})
        assert kept("qa", "qb", "qc") == ({"qa", "qb"}, {"qc"})  # what is kept already does not count again
        assert kept("qa", "qb", "qc") == ({"qa", "qb", "qc"}, set())
        assert kept("qa", "qd") == (set(), {"qd"})
        assert len(kept("qe", "qf", "qg", "qh", "qi")[1]) == 3

    def test_threads_share_the_spellings_kept(self, monkeypatch):
        monkeypatch.setattr(words, "KEPT_WORDS", 5)
        model = made()
        names = [f"q{number}" for number in range(20)]
        with torch.no_grad():
            wanted = {name: model.words.characters.spell([name])[0] for name in names}

        def ask(seed):
            draw = random.Random(seed)
            with torch.no_grad():
                for _ in range(30):
                    some = draw.sample(names, 4)
                    found = model.words._spell(some)
                    torch.testing.assert_close(found, torch.stack([wanted[name] for name in some]))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(4)))

    def test_long_unseen_words_are_cut_as_those_that_were_seen(self):
        long = "ab" * 40
        seen = made([Sentence((long, "the"), ("X", "DET"))])
        with torch.no_grad():
            known = seen.words.characters(torch.tensor([seen.codec.words.spellings.index(long)]))
            as_unseen = seen.words(batch_of(seen, [Sentence((long + "!",))]))[0, :, -4:]
        torch.testing.assert_close(known, as_unseen)

    def test_gradients_reach_characters_through_unseen_words(self):
        model = made()
        model.words(batch_of(model, NEW[1:2])).sum().backward()
        assert model.words.characters.projection.weight.grad.abs().sum() > 0

    def test_rare_words_are_taken_for_unknown_ones_more_often(self):
        model = made([Sentence(("a",) * 9 + ("b",), ("X",) * 10)], word_dropout=0.1, rare_word_dropout=0.5)
        words = model.codec.words.vocabulary.ids
        chances = {"a": 1 - 0.9 * (1 - 0.5 / 9.5), "b": 1 - 0.9 * (1 - 0.5 / 1.5)}
        with torch.no_grad():
            model.words.embedding.weight.fill_(1.0)
            model.words.embedding.weight[0] = 0.0
        torch.manual_seed(0)
        model.train()
        drawn = {}
        for word, chance in chances.items():
            assert float(model.words.chances[words[word]]) == pytest.approx(chance)
            found = model.words(batch_of(model, [Sentence((word,) * 4000)]))
            drawn[word] = 1 - float(found[:, 0, 0].detach().mean())
            assert drawn[word] == pytest.approx(chance, abs=0.04)
        model.eval()
        assert bool((model.words(batch_of(model, [Sentence(("b",))]))[..., :6] == 1).all())


class TestPretrained:
    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "vectors.txt"
        path.write_bytes(b"the 1 2 3\ndog -1 0 1\n\xff\xfe 1 1 1\nMars 8 8 8\nmoon 9 9 9\n<unk> 5 5 5\nsun 7 7 7\n")
        return path

    @staticmethod
    def vectors(model, *words):
        with torch.no_grad():
            return model.words(batch_of(model, [Sentence(words)]))[:, 0, :3].clone()

    def test_a_file_without_any_of_the_words_is_the_wrong_one(self, tmp_path):
        (tmp_path / "other.txt").write_text("hund 1 2 3\nkatze 4 5 6\n")
        with pytest.raises(UserError, match=r"other.txt: has no vector for any word of the training text"):
            made(vectors=str(tmp_path / "other.txt"), word_size=None)

    @pytest.mark.parametrize("tune", [False, True])
    def test_frozen_or_trained(self, file, tune):
        plain = {"word_size": None, "word_dropout": 0.0, "rare_word_dropout": 0.0}
        model = made(vectors=str(file), tune_vectors=tune, **plain)
        assert model.settings.word_size == 3
        assert model.codec.words.covered_share == pytest.approx(5 / 9)  # the, 3 times, and dog, twice
        assert "of 55.6% of the training text's words, and of 3 that it has not" in model.codec.summary()
        before = self.vectors(model, "the", "dog", "cat", "moon", "Sun", "venus", "<unk>")
        assert before[:2].tolist() == [[1, 2, 3], [-1, 0, 1]]
        assert before[3:5].tolist() == [[9, 9, 9], [7, 7, 7]]  # training had neither
        assert before[5:].tolist() == [[0, 0, 0]] * 2  # not <unk> of the file
        train(model, PLAIN, 3)
        after = self.vectors(model, "the", "dog", "cat", "moon", "Sun")
        assert torch.equal(before[:2], after[:2]) != tune
        assert not torch.equal(before[2], after[2])
        assert torch.equal(before[3:5], after[3:])
        file.unlink()  # it is needed no more
        codec = TaggerCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        other = Tagger(model.settings, codec).eval()
        other.load_tensors(model.tensors())
        sentences = [*PLAIN, Sentence(("moon", "venus"))]
        assert predictions(other, sentences, probabilities=True) == predictions(model, sentences, probabilities=True)

    @pytest.mark.parametrize("tune", [False, True])
    def test_read_anew_they_are_those_of_the_first_time(self, file, tune):
        model = made(vectors=str(file), tune_vectors=tune, word_size=None)
        codec = TaggerCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        with torch.device("meta"):
            assert Tagger(model.settings, codec).parameters_count == model.parameters_count
            assert Tagger(model.settings, model.codec).parameters_count == model.parameters_count
        assert not self.vectors(Tagger(model.settings, codec).eval(), "moon").any()
        codec.reload(model.settings)
        torch.manual_seed(0)
        again = Tagger(model.settings, codec).eval()
        for one, other in zip(model.tensors().values(), again.tensors().values(), strict=True):
            assert torch.equal(one, other)
        for changed in (("moon", "noon"), ("dog", "cow")):
            file.write_bytes(file.read_bytes().replace(*(word.encode() for word in changed)))
            with pytest.raises(UserError, match="no longer has the words that it had; train anew"):
                codec.reload(model.settings)
            file.write_bytes(file.read_bytes().replace(*(word.encode() for word in reversed(changed))))

    def test_frozen_numbers_are_not_learnt(self, file):
        frozen = made(vectors=str(file), word_size=None)
        assert frozen.parameters_count == made(word_size=3).parameters_count
        empty = collate([])
        loss, _ = frozen(empty)
        loss.nats.backward()  # of a process without an example
        assert loss.tokens == 0

    def test_further_words_as_many_as_asked_for(self, file):
        def known(**changes):
            return list(made(vectors=str(file), word_size=None, **changes).codec.words.further)

        assert known(vector_words=0) == []
        assert known(vector_words=2) == ["\ufffd\ufffd", "moon"]
        assert known(lowercase=False) == ["\ufffd\ufffd", "Mars", "moon", "sun"]  # in small letters none asks for Mars

    def test_words_too_rare_for_a_vector_of_their_own_have_that_of_the_file(self, file):
        file.write_text("barks 4 4 4\nmoon 9 9 9\n")
        model = made(vectors=str(file), word_size=None, min_count=2)
        assert model.codec.words.further == {"barks": 1, "moon": 0}
        assert model.codec.words.covered_share == pytest.approx(1 / 9)
        assert self.vectors(model, "barks").tolist() == [[4, 4, 4]]

    def test_sizes_that_differ(self, file):
        with pytest.raises(UserError, match="expected vectors of 6 features, got 3"):
            made(vectors=str(file))


class TestSpans:
    def test_all_tags_of_the_types_seen_are_there(self):
        assert made(ENTITIES, scheme="bioes").codec.tags == [
            "O", *(f"{letter}-{kind}" for kind in ("LOC", "PER") for letter in "BIES")
        ]  # fmt: skip
        assert made(ENTITIES).codec.tags == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]

    @pytest.mark.parametrize("given", ["iob1", "bio", "bioes", "bilou"])
    @pytest.mark.parametrize("types", [True, False])
    @pytest.mark.parametrize("scheme", ["keep", "bio", "bioes"])
    def test_encoded_and_decoded_tags_are_the_same(self, scheme, types, given):
        tags = [convert(one.tags, "bio") for one in ENTITIES]
        if not types:
            tags = [tuple(tag[0] for tag in one) for one in tags]
        sentences = [Sentence(one.words, convert(own, given)) for one, own in zip(ENTITIES, tags, strict=True)]
        model = made(sentences, scheme=scheme)
        codec = model.codec
        assert codec.scheme == given
        assert codec.summary() == f"tags: of spans, in {given}"
        for sentence in sentences:
            assert codec.decode(codec.encode(sentence).arrays["tags"].tolist()) == list(sentence.tags)
        model.loss(batch_of(model, sentences, targets=True))  # the CRF has nothing against them

    def test_a_mistyped_tag_counts_as_outside_and_is_said(self):
        typos = [Sentence(("Bob", "Lee", "left"), ("B_PER", "I-PER", "O")), Sentence(("Bo",), ("PER",))]
        model = made([*ENTITIES * 12, *typos])
        codec = model.codec
        assert codec.scheme == "iob1"
        assert codec.tags == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
        tags = [[codec.tags[number] for number in codec.encode(one).arrays["tags"]] for one in typos]
        assert tags == [["O", "I-PER", "O"], ["O"]]
        said = "iob1; 2 are not valid there and are read as others: B_PER as O, PER as O"
        assert codec.summary() == f"tags: of spans, in {said}"
        assert made().codec.summary() == "tags: 3 kinds, not of spans (such as DET)"

    def test_tags_that_are_not_valid_are_repaired(self):
        examples = [Sentence(("a", "b", "c"), ("B-X", "O", "I-X")), Sentence(("a", "b"), ("B-X", "B-X"))]
        model = made(examples)
        ids = model.codec.encode(examples[0]).arrays["tags"].tolist()
        assert [model.codec.tags[number] for number in ids] == ["B-X", "O", "B-X"]
        model.loss(batch_of(model, examples, targets=True))  # the CRF would refuse others

    @pytest.mark.parametrize("output", ["softmax", "crf"])
    @pytest.mark.parametrize("scheme", ["keep", "bio", "bioes"])
    def test_answers_are_valid_whatever_the_weights(self, output, scheme):
        examples = [dataclasses.replace(one, tags=convert(one.tags, "bio")) for one in ENTITIES]
        words = [Sentence(tuple(random.Random(seed).choices("abcdefg", k=9))) for seed in range(20)]

        def share(**changes):
            model = made(examples, output=output, scheme=scheme, **changes)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(5)
            found = predictions(model, words)
            return np.mean([tuple(tags) == convert(tags, "bio") for tags in found])

        assert share() == 1
        if scheme == "keep":
            assert share(constrained=False) < 1

    def test_probabilities_are_of_the_tags_learnt(self):
        model = made(ENTITIES, scheme="bioes")
        (found,) = predictions(model, ENTITIES[1:], probabilities=True)
        assert list(found["probabilities"][0]) == model.codec.tags
        assert detect_scheme([found["tags"]]) is not None
        for shares in found["probabilities"]:
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert found["probabilities"][0]["E-LOC"] == 0  # nothing can end before it begins


class TestStreams:
    def test_a_word_at_a_time_is_the_whole_sentence(self):
        model = made(bidirectional=False, layers=2, cell="gru")
        sentences = [Sentence(("the", "Xylo", "sees", "qi")), Sentence(("run", "the", "dog", "barks"))]
        with torch.no_grad():
            state = model.start(2)
            found = []
            for words in zip(*(sentence.words for sentence in sentences), strict=True):
                tags, state = model.step(batch_of(model, [Sentence((word,)) for word in words]), state)
                found.append(tags)
        assert [list(tags) for tags in zip(*found, strict=True)] == predictions(model, sentences)

    @pytest.mark.parametrize("scheme", ["bio", "iob1"])
    @pytest.mark.parametrize("constrained", [True, False])
    def test_tags_of_spans_follow_one_another_as_their_scheme_has_it(self, scheme, constrained):
        examples = [dataclasses.replace(one, tags=convert(one.tags, scheme)) for one in ENTITIES]
        model = made(examples, bidirectional=False, output="softmax", constrained=constrained)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)
        columns = [random.Random(seed).choices("abcdefg", k=9) for seed in range(20)]
        rows, found = list(zip(*columns, strict=True)), []
        with torch.no_grad():
            state = model.start(20)
            for words in rows:
                tags, state = model.step(batch_of(model, [Sentence((word,)) for word in words]), state)
                found.append(tags)
        found = [list(tags) for tags in zip(*found, strict=True)]
        valid = [tags == list(convert(tags, scheme)) for tags in found]
        if not constrained:
            assert not all(valid)
            assert found == predictions(model, [Sentence(tuple(words)) for words in columns])
            return
        assert all(valid)
        likeliest = predictions(model, [Sentence(tuple(words)) for words in columns], probabilities=True)
        for tags, prediction in zip(found, likeliest, strict=True):  # each the best of those that may follow
            for place, tag in enumerate(tags):
                shares = prediction["probabilities"][place]
                may = [one for one in shares if list(convert([*tags[:place], one], scheme)) == [*tags[:place], one]]
                assert tag == max(may, key=shares.get)

    def test_a_step_is_one_word(self):
        model = made(bidirectional=False)
        state = model.start(2)
        for several in ((), ("the", "dog")):
            with pytest.raises(ValueError, match="expected examples of one word each"):
                model.step(batch_of(model, [Sentence(("the",)), Sentence(several)]), state)

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({}, "bidirectional"),
            ({"bidirectional": False, "passes": 2}, "reads its input twice"),
            ({"bidirectional": False, "output": "crf"}, "its CRF chooses all tags at once"),
            ({"bidirectional": False, "output": "softmax", "scheme": "bioes"}, "learnt bioes tags"),
        ],
    )
    def test_what_cannot_stream_says_why(self, changes, why):
        with pytest.raises(UserError, match=why):
            made(ENTITIES, **changes).start(1)

    def test_where_a_span_ends_depends_on_what_comes(self):
        examples = [dataclasses.replace(one, tags=convert(one.tags, "bioes")) for one in ENTITIES]
        one_way = {"bidirectional": False, "output": "softmax"}
        with pytest.raises(UserError, match=r"a bioes tag says whether its span ends.*--no-constrained"):
            made(examples, **one_way).start(1)
        made(examples, constrained=False, **one_way).start(1)


class TestBadData:
    @pytest.mark.parametrize(
        ("examples", "message"),
        [
            ([Sentence(("a", "b"))], "expected a tag for each word, got none in the sentence 'a b'"),
            ([Sentence(("a", "b"), ("X",))], "expected a tag for each of 2 words, got 1 in the sentence"),
            ([Sentence((), ())], "expected words to learn from"),
            ([], "expected words to learn from"),
        ],
    )
    def test_nothing_to_learn_from(self, examples, message):
        with pytest.raises(UserError, match=message):
            made(examples)

    def test_targets_that_are_not_there(self):
        with pytest.raises(UserError, match="got none in the sentence"):
            made().codec.encode(NEW[0])

    def test_a_scheme_for_tags_that_are_no_spans(self):
        with pytest.raises(UserError, match=r"scheme bio is for tags of spans.*got DET"):
            made(scheme="bio")

    def test_options_that_are_not_there(self):
        with pytest.raises(TypeError, match="probabilites"):
            predictions(made(), PLAIN, probabilites=True)

    def test_tensors_of_other_sizes(self):
        with pytest.raises(UserError, match=r"expected .* by the settings"):
            made().load_tensors(made(hidden_size=9).tensors())


@needs_data
def test_entities_of_real_text_survive_every_scheme():
    file = Path(os.environ["RECURRA_DATA"], "wnut17", "emerging.dev.conll")
    if not file.exists():
        pytest.skip(f"{file} is not there")
    sentences = list(read_sentences(str(file)))
    for scheme in ("keep", "bio", "bioes"):
        codec = TaggerCodec.build(sentences, TaggerSettings(scheme=scheme))
        for sentence in sentences:
            encoded = codec.encode(sentence)
            assert UNSCORED not in encoded.arrays["tags"]
            assert codec.decode(encoded.arrays["tags"].tolist()) == list(convert(sentence.tags, codec.scheme))

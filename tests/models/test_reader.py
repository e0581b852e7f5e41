"""Readers: they learn to answer, and nothing but question and text decides what they answer."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from recurra.config import UserError, from_mapping, to_mapping
from recurra.models.reader import LONGEST_SENTENCE, Reader, ReaderCodec, ReaderSettings, _Flow, _tokens
from recurra.text.examples import ExampleBatch, ExampleBatches, collate
from recurra.text.questions import Answer, Question, read_questions

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

SMALL = ReaderSettings(hidden_size=5, word_size=6)
PEOPLE, PLACES = ("Mary", "John", "Sandra"), ("kitchen", "garden", "office", "hallway")


def story(rng, *, once=False):
    """Who went where, and where somebody is: the last place that is said of them; or everyone goes once."""
    count = rng.integers(2, 6)
    facts = [(str(rng.choice(PEOPLE)), str(rng.choice(PLACES))) for _ in range(count)]
    if once:
        facts = [(str(person), place) for person, (_, place) in zip(rng.permutation(PEOPLE), facts, strict=False)]
    asked = facts[rng.integers(len(facts))][0]
    answer = next(place for person, place in reversed(facts) if person == asked)
    context = "\n".join(f"{person} went to the {place}." for person, place in facts)
    return Question("s", f"Where is {asked}?", context, (Answer(answer, None),))


def codes(rng, *, unanswerable=False):
    """Whose code is which: a number that no other text has."""
    names = [str(name) for name in rng.permutation(["Ann", "Bob", "Cid", "Dot"])]
    numbers = [f"{rng.integers(10**6)}-{rng.choice(list('XY'))}" for _ in names[:3]]
    context = " ".join(f"{name}'s code is {number}," for name, number in zip(names, numbers, strict=False))
    asked = int(rng.integers(4 if unanswerable else 3))
    question = f"What code has {names[asked]}?"
    if asked == 3:
        return Question("c", question, context)
    place = context.index(f"{names[asked]}'s code is ") + len(f"{names[asked]}'s code is ")
    return Question("c", question, context, (Answer(numbers[asked], place),))


def made(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    return [story(rng) if kind == "word" else codes(rng) for _ in range(count)]


def settled(settings, examples):
    codec = ReaderCodec.build(examples, settings)
    return Reader.settle(settings, examples, codec), codec


def model_of(settings, examples):
    torch.manual_seed(0)
    return Reader(*settled(settings, examples)).double().eval()


VARIANTS = {
    "sentences": ("word", SMALL),
    "tokens": ("word", dataclasses.replace(SMALL, memory="tokens", hops=2)),
    "spans": ("span", SMALL),
    "spans, two hops, letters": ("span", dataclasses.replace(SMALL, hops=2, characters="lstm", character_features=4)),
    "one direction": ("word", dataclasses.replace(SMALL, bidirectional=False, cell="lstm", layers=2)),
    "attention to itself": ("span", dataclasses.replace(SMALL, self_attention=2)),
}


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def reader(request):
    kind, settings = VARIANTS[request.param]
    return model_of(settings, made(kind, 12)), made(kind, 7, seed=1)


def close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["answer"] == other["answer"]
        assert one["start"] == other["start"]
        assert one["probability"] == pytest.approx(other["probability"])
        for key in one.keys() - {"answer", "start", "probability"}:
            assert len(one[key]) == len(other[key])
            for row, expected_row in zip(one[key], other[key], strict=True):
                assert row == pytest.approx(expected_row)


def trained(settings, examples, *, steps, batch_size=32, learning_rate=5e-3):
    torch.manual_seed(0)
    settings, codec = settled(settings, examples)
    model = Reader(settings, codec)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    encoded = [codec.encode(example) for example in examples]
    done = 0
    while done < steps:
        for batch in ExampleBatches(encoded, batch_size=batch_size, epoch=done):
            loss, _ = model(batch)
            loss.mean.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
    return model.eval()


@torch.no_grad()
def answered(model, examples, **options):
    return model.predict(collate([model.codec.encode(example, targets=False) for example in examples]), **options)


def share_right(model, examples):
    found = answered(model, examples)
    gold = [example.answers[0] if example.answers else Answer("", None) for example in examples]
    return np.mean([(one["answer"], one["start"]) == own for one, own in zip(found, gold, strict=True)])


class TestLearning:
    def test_where_somebody_went_last(self):
        settings = ReaderSettings(hidden_size=20, word_size=16, hops=2)
        model = trained(settings, made("word", 500), steps=110, learning_rate=1e-2)
        assert model.settings.memory == "sentences"
        assert share_right(model, made("word", 200, seed=1)) > 0.95

    def test_where_somebody_went_word_by_word(self):
        rng = np.random.default_rng(0)
        examples = [story(rng, once=True) for _ in range(500)]
        settings = ReaderSettings(hidden_size=16, word_size=12, memory="tokens", hops=1)
        model = trained(settings, examples[:400], steps=150, learning_rate=1e-2)
        assert share_right(model, examples[400:]) > 0.95

    def test_spans_that_were_never_seen(self):
        settings = ReaderSettings(hidden_size=16, word_size=12)
        model = trained(settings, made("span", 400), steps=60, learning_rate=1e-2)
        assert share_right(model, made("span", 200, seed=1)) > 0.95

    def test_questions_without_an_answer(self):
        rng = np.random.default_rng(0)
        examples = [codes(rng, unanswerable=True) for _ in range(600)]
        model = trained(ReaderSettings(hidden_size=16, word_size=12), examples[:400], steps=80, learning_rate=1e-2)
        assert not all(example.answers for example in examples)
        assert share_right(model, examples[400:]) > 0.95


class TestIndependence:
    def test_a_batch_is_its_examples_one_by_one(self, reader):
        model, examples = reader
        together = answered(model, examples, attention=True)
        close(together, [answered(model, [example], attention=True)[0] for example in examples])
        encoded = [model.codec.encode(example) for example in examples]
        whole, _ = model(collate(encoded))
        alone = [model(collate([one]))[0] for one in encoded]
        torch.testing.assert_close(whole.nats, torch.stack([one.nats for one in alone]).sum())
        assert whole.tokens == len(examples)

    def test_padding_is_never_read(self, reader):
        model, examples = reader
        for targets in (True, False):
            batch = collate([model.codec.encode(example, targets=targets) for example in examples])
            dirty = {}
            for name, array in batch.arrays.items():
                dirty[name] = array.clone()
                for column in range(batch.size if name in batch.lengths else 0):
                    garbage = torch.nan if array.is_floating_point() else 10**9
                    dirty[name][batch.lengths[name][column] :, column] = garbage
            spoiled = ExampleBatch(dirty, batch.lengths, batch.size, batch.tokens)
            if not targets:
                close(model.predict(spoiled, attention=True), model.predict(batch, attention=True))
                continue
            gradients = []
            for one in (batch, spoiled):
                model.zero_grad()
                model(one)[0].nats.backward()
                gradients.append([parameter.grad for parameter in model.parameters()])
            torch.testing.assert_close(*gradients)

    def test_saving_changes_nothing(self, reader):
        model, examples = reader
        settings = from_mapping(ReaderSettings, json.loads(json.dumps(to_mapping(model.settings))), "settings")
        codec = ReaderCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
        torch.manual_seed(7)
        opened = Reader(settings, codec).double().eval()
        opened.load_tensors(model.tensors())
        assert answered(opened, examples, attention=True) == answered(model, examples, attention=True)

    @torch.no_grad()
    def test_what_was_learnt_is_one_distribution(self):
        model = model_of(SMALL, made("word", 30))
        example = made("word", 1, seed=3)[0]
        chosen = [dataclasses.replace(example, answers=(Answer(text, None),)) for text in [*PLACES, "never seen"]]
        shares = [float(torch.exp(-model(collate([model.codec.encode(one)]))[0].nats)) for one in chosen]
        assert sum(shares) == pytest.approx(1)
        assert answered(model, [example])[0]["probability"] == pytest.approx(max(shares[:-1]))


class TestSpans:
    @torch.no_grad()
    @pytest.mark.parametrize("longest", [1, 2, 5, 100])
    def test_the_best_of_all(self, longest):
        model = model_of(dataclasses.replace(SMALL, longest_answer=longest), made("span", 12))
        examples = made("span", 5, seed=2)
        batch = collate([model.codec.encode(example, targets=False) for example in examples])
        begins, ends = model._spans(model._look_up(batch))
        for column, (example, found) in enumerate(zip(examples, model.predict(batch), strict=True)):
            places = _tokens(example.context).places
            shares = {
                (first, last): float((begins[first, column] + ends[last, column]).exp())
                for first in range(len(places))
                for last in range(first, min(first + longest, len(places)))
            }
            first, last = max(shares, key=lambda span: shares[span])
            start, stop = places[first][0], places[last][1]
            assert (found["answer"], found["start"]) == (example.context[start:stop], start)
            assert found["probability"] == pytest.approx(shares[first, last])

    def test_an_answer_is_the_context_to_the_letter(self):
        contexts = ["Ünder  the\tBRIDGE 🦆 lives\n(a) Troll.", "𝔊othic 🦆🦆 \ud800x."]
        model = model_of(dataclasses.replace(SMALL, longest_answer=4), made("span", 12))
        for found, context in zip(
            answered(model, [Question("", "Who?", one) for one in contexts]), contexts, strict=True
        ):
            assert found["answer"]
            assert context[found["start"] :].startswith(found["answer"])

    def test_answers_within_tokens_take_whole_ones(self):
        context = "In 1990s-style shoes"
        model = model_of(SMALL, made("span", 12))
        encoded = model.codec.encode(Question("q", "When?", context, (Answer("1990", 3),)))
        assert (encoded.arrays["begin"], encoded.arrays["end"]) == (1, 1)
        encoded = model.codec.encode(Question("q", "What?", context, (Answer("style shoes", 9),)))
        assert (encoded.arrays["begin"], encoded.arrays["end"]) == (3, 4)

    def test_the_longest_answer_is_that_of_training(self):
        examples = [Question("q", "?", "a b c d", (Answer("b c d", 2),)), Question("r", "?", "a b", (Answer("a", 0),))]
        settings, codec = settled(SMALL, examples)
        assert (settings.longest_answer, settings.memory, settings.hops, settings.answer) == (3, "tokens", 1, "span")
        assert not codec.unanswerable

    def test_flow_has_the_gradient_it_should(self):
        torch.manual_seed(0)
        flow = _Flow(3).double()
        context, question = torch.randn(4, 2, 3).double(), torch.randn(3, 2, 3).double()
        valid = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 0]], dtype=torch.bool)
        asked = torch.tensor([[1, 1], [0, 1], [0, 1]], dtype=torch.bool)
        given = (context.requires_grad_(), question.requires_grad_())
        assert torch.autograd.gradcheck(lambda c, q: flow(c, valid, q, asked), given)

    def test_flow_is_the_papers(self):
        torch.manual_seed(0)
        flow = _Flow(3).double()
        context, question = torch.randn(4, 1, 3).double(), torch.randn(2, 1, 3).double()
        h, u = context[:, 0], question[:, 0]
        similarity = torch.empty(4, 2).double()
        for t in range(4):
            for j in range(2):
                similarity[t, j] = flow.of_context(h[t]) + flow.of_question(u[j]) + flow.of_both @ (h[t] * u[j])
        attended = similarity.softmax(1) @ u
        back = similarity.max(1).values.softmax(0) @ h
        merged = flow.merged(torch.cat((h, attended, h * attended, h * back), 1)).relu()
        all_there = torch.ones(4, 1, dtype=torch.bool)
        torch.testing.assert_close(flow(context, all_there, question, all_there[:2])[:, 0], merged)


class TestSentences:
    def test_lines_and_full_stops(self):
        found = _tokens("Mr. Fox ran.\nHe ran 3.5 miles! Why?no  \n\nEnd")
        sentences = [found.words[a:b] for a, b in zip((0, *found.ends), found.ends, strict=False)]
        assert [" ".join(words) for words in sentences] == [
            "Mr .", "Fox ran .", "He ran 3 . 5 miles !", "Why ? no", "End",
        ]  # fmt: skip
        assert _tokens("  ").ends == ()

    def test_long_ones_are_cut(self):
        assert _tokens("x " * (2 * LONGEST_SENTENCE + 3)).ends == (
            LONGEST_SENTENCE, 2 * LONGEST_SENTENCE, 2 * LONGEST_SENTENCE + 3,
        )  # fmt: skip

    def test_each_is_read_by_itself(self):
        model = model_of(SMALL, made("word", 12))
        examples = made("word", 4, seed=4)
        batch = collate([model.codec.encode(example) for example in examples])
        found = model._sentences(batch)
        lines = [example.context.split("\n") for example in examples]
        assert found.shape[:2] == (max(map(len, lines)) + 1, 4)  # and the end mark
        for column, (own, example) in enumerate(zip(lines, examples, strict=True)):
            for number, line in enumerate(own):
                alone = collate([model.codec.encode(dataclasses.replace(example, context=line))])
                vectors = model._vectors(alone, "context")[:-1]
                # by itself, a line may have other words in common with the question than the whole text: none here
                states, _ = model.encoder(vectors)
                torch.testing.assert_close(found[number, column], model.sentence(states)[0])
            assert not found[len(own) + 1 :, column].any()

    def test_attention_says_from_where(self):
        model = model_of(SMALL, made("word", 12))
        example = made("word", 1, seed=5)[0]
        (found,) = answered(model, [example], attention=True)
        assert [example.context[a:b] for a, b in found["places"]] == example.context.split("\n")
        assert len(found["attention"]) == 3
        for weights in found["attention"]:
            assert len(weights) == len(found["places"])
            assert 0 < sum(weights) < 1

    def test_tokens_have_places_too(self):
        model = model_of(SMALL, made("span", 12))
        (found,) = answered(model, [Question("", "What?", "Some  text.")], attention=True)
        assert found["places"] == [[0, 4], [6, 10], [10, 11]]


class TestOddInput:
    @pytest.mark.parametrize("kind", ["word", "span"])
    def test_unknown_and_empty(self, kind):
        model = model_of(SMALL, made(kind, 12))
        odd = [
            Question("", "", ""),
            Question("", "qwerty uiop", "zxcv \n asdf"),
            Question("", "?", " \n "),
            *made(kind, 2),
        ]
        found = answered(model, odd)
        close(found, [answered(model, [one])[0] for one in odd])
        if kind == "span":
            assert (found[0]["answer"], found[0]["start"]) == (found[2]["answer"], found[2]["start"]) == ("", None)
        else:
            assert {one["answer"] for one in found} <= set(PLACES)

    @pytest.mark.parametrize("kind", ["word", "span"])
    def test_a_very_long_text(self, kind):
        model = model_of(dataclasses.replace(SMALL, hidden_size=2, word_size=2), made(kind, 12)).float()
        (found,) = answered(model, [Question("", "Where is Mary?", "Mary has no end " * 5000)])
        assert np.isfinite(found["probability"])

    def test_a_word_that_was_never_an_answer_has_a_loss(self):
        model = model_of(SMALL, made("word", 12))
        example = dataclasses.replace(made("word", 1)[0], answers=(Answer("moon", None),))
        assert torch.isfinite(model(collate([model.codec.encode(example)]))[0].nats)

    def test_nothing_to_learn_from(self):
        with pytest.raises(UserError, match="expected questions with answers to learn from, got none"):
            ReaderCodec.build([Question("q", "Why?", "No.")], SMALL)
        codec = ReaderCodec.build(made("word", 3), SMALL)
        with pytest.raises(UserError, match="question q7: expected an answer to learn from, got none"):
            codec.encode(Question("q7", "Why?", "No."))

    def test_spans_need_places(self):
        examples = [Question("q3", "Why?", "No.", (Answer("No", None),))]
        with pytest.raises(
            UserError, match="question q3: expected an answer with its place in the text, got 'No' at None"
        ):
            ReaderCodec.build(examples, dataclasses.replace(SMALL, answer="span"))
        with pytest.raises(UserError, match="got 'No' at 1"):
            ReaderCodec.build([Question("q3", "Why?", "No.", (Answer("No", 1),))], SMALL)

    def test_answers_that_are_not_in_their_place_are_passed_over_and_counted(self):
        wrong = [
            Question("q1", "Why?", "No no", (Answer("no", 1),)),
            Question("q2", "Why?", "No no", (Answer(" ", 2),)),
            Question("q3", "Why?", "No no", (Answer("no", None),)),
            Question("q4", "Why?", "No no", (Answer("o", -1),)),
        ]
        right = made("span", 6)
        model = model_of(SMALL, [*wrong, *right])
        assert model.codec.answer == "span"
        assert model.codec.summary() is None
        encoded = [model.codec.encode(example) for example in [*wrong, *right]]
        assert [one.targets for one in encoded] == [0] * 4 + [1] * 6
        assert model.codec.summary().endswith("not where they are said to be: 4")
        whole, _ = model(collate(encoded))
        kept, _ = model(collate(encoded[4:]))
        torch.testing.assert_close(whole.nats, kept.nats)
        assert whole.tokens == kept.tokens
        nothing, _ = model(collate(encoded[:4]))
        assert (nothing.nats.item(), nothing.tokens) == (0, 0)

    def test_spans_may_be_learnt_as_words(self):
        settings, codec = settled(dataclasses.replace(SMALL, answer="word"), made("span", 5))
        assert codec.answer == settings.answer == "word"

    def test_sentences_cannot_hold_spans(self):
        with pytest.raises(UserError, match="a memory of sentences cannot say where a span begins"):
            settled(dataclasses.replace(SMALL, memory="sentences"), made("span", 3))

    def test_a_memory_for_single_sentences_is_of_tokens(self):
        assert settled(SMALL, [Question("", "Is it?", "It is", (Answer("yes", None),))])[0].memory == "tokens"


@needs_data
def test_real_stories_and_paragraphs_are_read():
    data = Path(os.environ["RECURRA_DATA"])
    for source, answer in (
        (data / "babi" / "qa1_single-supporting-fact_test.txt", "word"),
        (data / "xquad-en", "span"),
    ):
        if not source.exists():
            pytest.skip(f"{source.name} is not in RECURRA_DATA")
        examples = list(read_questions(next(source.glob("*.json")) if source.is_dir() else source))[:60]
        model = model_of(SMALL, examples)
        assert model.codec.answer == answer
        loss, _ = model(collate([model.codec.encode(example) for example in examples[:4]]))
        assert torch.isfinite(loss.nats)
        assert len(answered(model, examples[:4])) == 4

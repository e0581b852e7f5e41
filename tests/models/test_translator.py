"""The translator: what it learns, that it says the same step by step, and what a user gets from it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random

import numpy as np
import pytest
import torch

from recurra.config import UserError, from_mapping, to_mapping
from recurra.models.translation import TranslationCodec
from recurra.models.translator import Translator, TranslatorSettings
from recurra.nn.softmax import AdaptiveSoftmax
from recurra.text.examples import ExampleBatches, collate
from recurra.text.readers import Pair

WORDS = ["ba", "do", "ki", "lu", "me", "no", "pa", "ra", "si", "tu"]
DRY = {"input_dropout": 0.0, "dropout": 0.0, "output_dropout": 0.0, "word_dropout": 0.0}
SMALL = {**DRY, "units": "words", "hidden_size": 6, "layers": 2}


def reversals(count, longest=6, seed=0):
    choose = random.Random(seed)
    texts = [choose.sample(WORDS, choose.randint(1, longest)) for _ in range(count)]
    return [Pair(" ".join(words), " ".join(reversed(words))) for words in texts]


def built(pairs, **settings):
    """A model in float64 with random weights, in evaluation mode."""
    torch.manual_seed(0)
    chosen = TranslatorSettings(**{**SMALL, **settings})
    codec = TranslationCodec.build(pairs, chosen)
    model = Translator(Translator.settle(chosen, pairs, codec), codec).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from what all models start as
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def batch_of(model, pairs, **options):
    return collate([model.codec.encode(pair, **options) for pair in pairs])


def predicted(model, pairs, **options):
    with torch.no_grad():
        return model.predict(batch_of(model, pairs, targets=False), **options)


def taught(pairs, epochs, rate=1e-2, **settings):
    torch.manual_seed(0)
    chosen = TranslatorSettings(**{**SMALL, "hidden_size": 40, "layers": 1, **settings})
    codec = TranslationCodec.build(pairs, chosen)
    model = Translator(Translator.settle(chosen, pairs, codec), codec)
    encoded = [codec.encode(pair) for pair in pairs]
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * (1 - epoch / epochs)
        for batch in ExampleBatches(encoded, batch_size=50, epoch=epoch):
            optimizer.zero_grad()
            loss, _ = model(batch)
            loss.mean.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval()


def right(model, pairs, **options):
    found = predicted(model, pairs, **options)
    return sum(own[0]["text"] == pair.target for own, pair in zip(found, pairs, strict=True)) / len(pairs)


KINDS = {
    "general": {},
    "one layer asks": {"decoder_layers": 1},
    "three layers, dense": {"decoder_layers": 3, "connections": "dense"},
    "three layers, highway, rnn": {"decoder_layers": 3, "connections": "highway", "cell": "rnn"},
    "normalised": {"layer_norm": True},
    "additive, gru": {"attention": "additive", "cell": "gru"},
    "dot, one direction": {"attention": "dot", "bidirectional": False, "tie": "none"},
    "no attention": {"attention": "none", "decoder_layers": 3},
    "input feeding": {"input_feeding": True, "hidden_size": (5, 6), "embedding_size": 4},
    "input feeding, rnn, 4 layers": {"input_feeding": True, "cell": "rnn", "layers": 4, "decoder_layers": 1},
    "joint, all tied, 5 layers": {"joint": True, "tie": "all", "decoder_layers": 5, "self_attention": 2},
    "adaptive": {"output": "adaptive"},
    "adaptive, untied": {"output": "adaptive", "tie": "none", "decoder_size": 5},
}
TEXTS = {
    "ki ba": "ba ki",
    "me si ba do": "do ba si me",
    "ba me tu si do no ba": "ba no do si tu me ba",
    "tu tu": "tu do",
    "ki no": "no ki pa",
    "ba": "",
    "": "tu",
    "do tu si": "no pa",
}
PAIRS = [Pair(*texts) for texts in TEXTS.items()]


# ---- what is learnt -------------------------------------------------------------------------------------------------


def test_learns_to_reverse():
    model = taught(reversals(1000, 5), 7)
    assert right(model, reversals(100, 5, seed=1)) > 0.95
    assert right(model, reversals(100, 5, seed=1), beam=1) > 0.95


def test_learns_to_reverse_with_input_feeding_and_its_own_guesses():
    model = taught(reversals(800, 4), 8, input_feeding=True, scheduled_sampling=0.1)
    assert right(model, reversals(100, 4, seed=1)) > 0.95


def test_learns_to_copy_short_texts_without_attention():
    pairs = [Pair(pair.source, pair.source) for pair in reversals(600, 3)]
    assert right(taught(pairs, 14, 1.5e-2, attention="none"), pairs[:100]) > 0.95


# ---- step by step, in batches, saved --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_teaching_is_stepping(kind):
    model = built(PAIRS, **KINDS[kind])
    batch = batch_of(model, PAIRS)
    targets, lengths = batch.arrays["target"], batch.lengths["target"]
    at_once = model.target_log_probs(batch)
    state, tokens = model.encode_source(batch), torch.ones(len(PAIRS), dtype=torch.long)
    with torch.no_grad():
        for step, following in enumerate(targets):
            log_probs, state = model.step(tokens, state)
            torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(len(PAIRS), dtype=torch.float64))
            here = step < lengths
            expected = log_probs.gather(1, following[:, None])[:, 0] * here
            torch.testing.assert_close(at_once[step], expected)
            tokens = following
    loss, _ = model(batch)
    assert loss.tokens == int(lengths.sum())
    torch.testing.assert_close(loss.nats, -at_once.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_examples_whatever_is_in_the_padding(kind):
    model = built(PAIRS, **KINDS[kind])
    batch = batch_of(model, PAIRS)
    for name, array in batch.arrays.items():
        for column, length in enumerate(batch.lengths[name]):
            array[length:, column] = 10**9
    together = model.target_log_probs(batch)
    for column, pair in enumerate(PAIRS):
        alone = model.target_log_probs(batch_of(model, [pair]))[:, 0]
        torch.testing.assert_close(together[: len(alone), column], alone)
        assert not together[len(alone) :, column].any()
    found = predicted(model, PAIRS, n_best=2, beam=3)
    for pair, own in zip(PAIRS, found, strict=True):
        (alone,) = predicted(model, [pair], n_best=2, beam=3)
        assert [each["text"] for each in own] == [each["text"] for each in alone]
        assert [each["score"] for each in own] == pytest.approx([each["score"] for each in alone])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_and_no_padding(kind):
    model = built(PAIRS, **KINDS[kind]).train()
    model(batch_of(model, PAIRS))[0].nats.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # a cluster of one word has nothing to choose
        assert parameter.grad.any() or name.startswith(("output.tail", "output.projections")), name


def test_gradients_of_a_whole_model_are_those_of_finite_differences():
    model = built(PAIRS[:2], hidden_size=3, layers=1, label_smoothing=0.2).train()
    batch = batch_of(model, PAIRS[:2])
    names = [name for name, _ in model.named_parameters()]

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch,))[0].nats

    values = tuple(parameter.detach().requires_grad_() for parameter in model.parameters())
    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind):
    model = built(PAIRS, **KINDS[kind])
    codec = TranslationCodec.from_mapping(json.loads(json.dumps(model.codec.to_mapping())))
    settings = from_mapping(TranslatorSettings, json.loads(json.dumps(to_mapping(model.settings))), "settings")
    other = Translator(settings, codec).double().eval()
    other.load_tensors({name: tensor.detach().clone() for name, tensor in model.tensors().items()})
    assert predicted(other, PAIRS) == predicted(model, PAIRS)
    assert codec.joint == model.codec.joint


def test_what_was_looked_up_is_fed_to_the_next_step():
    model = built(PAIRS, input_feeding=True)
    state, tokens = model.encode_source(batch_of(model, PAIRS)), torch.ones(len(PAIRS), dtype=torch.long)
    assert not state.fed.any()
    with torch.no_grad():
        log_probs, state = model.step(tokens, state)
        torch.testing.assert_close(model.output.log_probs(state.fed), log_probs)
        following, _ = model.step(tokens, state)
        starved, _ = model.step(tokens, state._replace(fed=torch.zeros_like(state.fed)))
    assert ((following - starved).abs().amax(1) > 1e-3).all()


def test_rows_are_picked_in_any_order():
    model = built(PAIRS, input_feeding=True)
    state = model.encode_source(batch_of(model, PAIRS))
    tokens = torch.arange(len(PAIRS)) % 7 + 1
    with torch.no_grad():
        before, state = model.step(tokens, state)
        following, _ = model.step(tokens, state)
        for rows in ([3, 3, 1, 1, 0], [0, 0, 2, 2], [5], [7, 6, 5, 4, 3, 2, 1, 0], [2, 0, 2]):
            chosen = model.select(state, torch.tensor(rows))
            found, _, weights = model.step(tokens[rows], chosen, attention=True)
            torch.testing.assert_close(found, following[rows])
            torch.testing.assert_close(weights.sum(1), torch.ones(len(rows), dtype=torch.float64))
    assert before.shape == (len(PAIRS), len(model.codec.target.vocabulary))


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_smoothed_labels_are_as_the_formula_has_it():
    model = built(PAIRS, label_smoothing=0.3)
    batch = batch_of(model, PAIRS)
    vectors, targets, _ = model._teach(batch)
    log_probs = model.output.log_probs(vectors)
    words = log_probs.shape[1]
    wanted = torch.full_like(log_probs, 0.3 / words)
    wanted[range(len(targets)), targets] += 0.7
    expected = -(wanted * log_probs).sum()
    torch.testing.assert_close(model.train()(batch)[0].nats, expected)
    plain = -model.eval().target_log_probs(batch).sum()
    torch.testing.assert_close(model(batch)[0].nats, plain)
    assert abs(expected - plain) > 0.1


def test_scheduled_sampling_reads_what_the_model_would_write():
    model = built(PAIRS, scheduled_sampling=1.0)
    batch = batch_of(model, PAIRS)
    reads = []
    model.embedding.register_forward_hook(lambda module, inputs, output: reads.append(inputs[0]))
    model.output.bias.data[5] += 1000  # it is sure of the next token
    model.train()(batch)
    assert len(reads) == len(batch.arrays["target"])
    assert all((tokens == 5).all() for tokens in reads[1:])  # the first is the truth
    lengths = [len(pair.target.split()) + 1 for pair in PAIRS]
    vectors, _, _ = model._teach(batch)
    log_probs = iter(model.output.log_probs(vectors))
    state, tokens = model.eval().encode_source(batch), torch.ones(len(PAIRS), dtype=torch.long)
    for step in range(max(lengths)):
        expected, state = model.step(tokens, state)
        for row in (row for row, length in enumerate(lengths) if step < length):
            torch.testing.assert_close(next(log_probs), expected[row])
        tokens = torch.full_like(tokens, 5)
    reads.clear()
    model(batch)
    assert len(reads) == 1  # the truth, all at once


@pytest.mark.parametrize("name", ["input_dropout", "dropout", "output_dropout", "recurrent_dropout", "word_dropout"])
def test_dropout_is_for_training(name):
    model = built(PAIRS, **{name: 0.5})
    batch = batch_of(model, PAIRS)
    assert model(batch)[0].nats == model(batch)[0].nats
    model.train()
    assert model(batch)[0].nats != model(batch)[0].nats


@pytest.mark.parametrize("recurrent", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["general", "additive, gru", "three layers, dense", "no attention", "normalised"])
def test_what_is_dropped_is_the_same_step_by_step(kind, recurrent):
    dropped = {"input_dropout": 0.3, "dropout": 0.3, "output_dropout": 0.3, "word_dropout": 0.3}
    model = built(PAIRS, **KINDS[kind], **dropped, recurrent_dropout=recurrent).train()
    batch = batch_of(model, PAIRS)

    def loss(seed):
        torch.manual_seed(seed)
        return model(batch)[0].nats

    at_once, other = loss(5), loss(6)
    assert abs(at_once - other) > 1e-3
    model.settings = dataclasses.replace(model.settings, scheduled_sampling=1e-300)  # it steps, and never guesses
    torch.testing.assert_close(loss(5), at_once)


def test_an_input_that_is_fed_has_one_mask_for_all_steps():
    model = built(PAIRS, input_feeding=True, input_dropout=0.5, dropout=0.5, recurrent_dropout=0.5).train()
    seen = []
    model._advance = lambda words, reading, masks: (
        seen.append(masks),
        Translator._advance(model, words, reading, masks),
    )[1]
    model(batch_of(model, PAIRS))
    assert len(seen) > 2
    assert all(masks is seen[0] for masks in seen)
    given = [mask for masks in seen[0] for mask in (masks if isinstance(masks, list) else [masks])]
    assert sum(mask is not None for mask in given) == 4  # of words, between two layers, of both layers' states


# ---- decoding -------------------------------------------------------------------------------------------------------


def test_a_full_beam_finds_the_likeliest_of_all():
    model = built([Pair("a b", "c d"), Pair("b", "d")], min_count=1, copy_unknown=False)
    source, options = Pair("a b", None), {"max_length": 3, "length_penalty": 0.0}
    found = predicted(model, [source], beam=40, n_best=9, **options)[0]
    vocabulary = model.codec.target.vocabulary.tokens
    log_probs = {}
    for size in range(4):
        for words in itertools.product(vocabulary[2:], repeat=size):
            batch = batch_of(model, [Pair("a b", " ".join(words))])
            whole = model.target_log_probs(batch)[:, 0]
            log_probs[" ".join(words)] = float(whole[:3].sum().detach())  # cut where it is as long as may be
    best = sorted(log_probs, key=lambda text: (text.count(" ") < 2, log_probs[text]), reverse=True)[:9]
    assert [each["ended"] for each in found] == [True] * 7 + [False] * 2
    assert [each["text"] for each in found] == best
    assert [each["log_prob"] for each in found] == pytest.approx([log_probs[text] for text in best])


def test_a_beam_is_no_worse_than_greedy_and_scores_are_penalised():
    model = taught(reversals(300), 3)
    pairs = reversals(50, seed=5)
    greedy = predicted(model, pairs, beam=1, length_penalty=0.0)
    wide = predicted(model, pairs, beam=8, length_penalty=0.0)
    gains = [own[0]["score"] - other[0]["score"] for own, other in zip(wide, greedy, strict=True)]
    assert min(gains) > -1e-4
    assert max(gains) > 0.01
    for (best,) in predicted(model, pairs[:5], beam=3, length_penalty=0.7):
        tokens = len(best["text"].split()) + 1
        assert best["score"] == pytest.approx(best["log_prob"] / ((5 + tokens) / 6) ** 0.7)


def test_several_predictions_come_the_best_first():
    (found,) = predicted(built(PAIRS), [Pair("ba do")], beam=4, n_best=4)
    assert len({each["text"] for each in found}) == 4
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    json.dumps(found)


def test_an_empty_source_has_an_empty_target():
    model = built(PAIRS)
    none = [{"text": "", "score": 0.0, "log_prob": 0.0, "ended": True}]
    assert predicted(model, [Pair(""), Pair(" \n\t")]) == [none, none]
    (found,) = predicted(model, [Pair("")], attention=True)
    assert found[0]["attention"] == []


def test_what_is_cut_is_told():
    model = built(PAIRS)
    for bias, ended in ((1000.0, True), (-1000.0, False)):
        model.output.bias.data[1] = bias
        assert all(each["ended"] == ended for (each,) in predicted(model, PAIRS[:6]))
    ((cut,),) = predicted(model, PAIRS[:1], max_length=2)
    assert len(cut["text"].split()) == 2


def test_a_target_may_be_as_long_as_those_of_training():
    settings = TranslatorSettings(**SMALL)
    replies = TranslationCodec.build([Pair("ba", "do " * 40), Pair("ba " * 20, "ki")] * 50, settings)
    assert 41 <= replies.limit(2) <= 60
    assert replies.limit(60) <= 60
    summaries = TranslationCodec.build([Pair("ba " * 400, "do " * 20)] * 9, settings)
    assert 21 <= summaries.limit(401) <= 40
    translations = TranslationCodec.build([Pair("ba " * n, "do do " * n) for n in range(1, 20)], settings)
    assert 401 <= translations.limit(201) <= 450  # of a source that is longer than any of training
    assert translations.limit(5000) == settings.longest_target + 1  # with its end
    assert TranslationCodec.from_mapping(translations.to_mapping()).limit(201) == translations.limit(201)


def test_a_very_long_source_is_read_as_far_as_settings_say():
    model = built(PAIRS, longest_source=20_000, hidden_size=2)
    long = Pair("ba do " * 50_000, "tu " * 50_000)
    ids = model.codec.encode(long)
    assert (len(ids.arrays["source"]), ids.targets) == (20_001, 500)
    assert ids.arrays["target"][-1] != 1  # its end is not there
    assert len(predicted(model, [long, PAIRS[0]], max_length=3)) == 2


# ---- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].get("attention") != "none"])
def test_weights_sum_to_1_over_the_source(kind):
    model = built(PAIRS, **KINDS[kind])
    for pair, weights in zip(PAIRS, model.align(batch_of(model, PAIRS)), strict=True):
        assert weights.shape == (len(pair.target.split()) + 1, len(pair.source.split()) + 1)
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=weights.dtype))
        assert (weights >= 0).all()


def test_predictions_come_with_the_weights_they_were_made_by():
    model = built(PAIRS)
    pair = Pair("do tu si")
    ((best,),) = predicted(model, [pair], attention=True)
    assert best["source_tokens"] == ["do", "tu", "si", "<eos>"]
    weights = model.align(batch_of(model, [Pair(pair.source, best["text"])]))[0]
    np.testing.assert_allclose(best["attention"], weights[: len(best["tokens"])], rtol=1e-6)


def test_unknown_words_are_copied():
    names = ["Ann", "Bob", "Eve", "Tim", "Lea", "Kim", "Joe", "Sue", "Max", "Amy"]
    choose = random.Random(0)
    pairs = []
    for number in range(1200):  # most names are seen once
        name = choose.choice(names) if number % 2 else f"N{number}"
        words = [choose.choice(WORDS) for _ in range(choose.randint(1, 2))]
        words.insert(choose.randint(0, len(words)), name)
        pairs.append(Pair(" ".join(words), " ".join(words)))
    model = taught(pairs, 5, min_count=2)
    tests = [Pair("ba Zoé tu"), Pair("Qúx si"), Pair("me no Łódź")]
    assert [found[0]["text"] for found in predicted(model, tests)] == [pair.source for pair in tests]
    model.codec.copies = False
    assert not any("<unk>" in found[0]["text"] for found in predicted(model, tests))


def test_words_that_are_copied_keep_their_case_and_place():
    codec = built([Pair("a, b. ba ba", "a, b. ba ba")], lowercase=True, min_count=1).codec
    assert codec.source.kind == "words"
    assert codec.source_words("Ba, (Zoé)") == ["Ba", "￭,", "(￭", "Zoé", "￭)"]
    ids = codec.encode(Pair("Ba, (Zoé)"), targets=False).arrays["source"]
    assert len(ids) == 6
    assert codec.decode([codec.target.id("ba"), codec.target.id("￭,"), 0], {2: "Zoé"}) == "ba, Zoé"


def test_what_is_copied_has_no_joiner_where_targets_have_none():
    pairs = [Pair("a, (b) c.", "a , ( b ) c .")] * 5
    codec = built(pairs, min_count=1).codec
    assert (codec.source.kind, codec.target.kind) == ("words", "whitespace")
    words = codec.source_words("a, (Zoé)")
    assert words == ["a", ",", "(", "Zoé", ")"]
    assert codec.decode([codec.target.id("a"), 0, 0], {1: words[4], 2: words[1]}) == "a ) ,"
    back = built([Pair(pair.target, pair.source) for pair in pairs], min_count=1).codec
    assert back.source_words("a ( ￭x") == ["a", "(", "￭x"]


# ---- text in, text out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["words", "byte-pairs", "characters"])
@pytest.mark.parametrize("joint", [False, True])
def test_texts_come_back_as_they_were(units, joint):
    pairs = [Pair("It's here,\tisn't it?", "C'est ici, non ?"), Pair("Yes  (now)", "Oui (à présent) !")]
    model = built(pairs * 3, units=units, joint=joint)
    for pair in pairs:
        source, target = model.codec.encode(pair).arrays.values()
        assert source[-1] == target[-1] == 1
        assert not (source == 0).any()
        assert model.codec.decode(target[:-1].tolist()) == pair.target
    assert isinstance(predicted(model, pairs)[0][0]["text"], str)
    assert model.codec.joint == joint


def test_sizes_are_settled():
    def settled(pairs=PAIRS, **settings):
        chosen = TranslatorSettings(units="words", **settings)
        return Translator.settle(chosen, pairs, TranslationCodec.build(pairs, chosen))

    found = settled()
    sizes = (found.embedding_size, found.decoder_size, found.decoder_layers)
    assert (*sizes, found.output, found.label_smoothing) == (256, 256, 2, "full", 0.1)
    assert (found.layers, found.connections, found.joint, found.tie) == (2, "plain", False, "output")
    assert settled(attention="none", layers=3).decoder_layers == 3
    assert settled(joint=True).tie == settled(tie="all").tie == "all"
    assert settled(joint=True, output="adaptive").tie == "output"
    assert settled(attention="dot").decoder_size == 512
    assert found.vocabulary_size == 10  # words seen twice
    many = [Pair("a", " ".join(f"w{i}" for i in range(30_000)))]
    assert settled(many).output == "adaptive"
    assert settled(many).label_smoothing == 0
    assert settled(many, label_smoothing=0.1).output == "full"
    assert not math.isnan(settled(many, label_smoothing=0.1).label_smoothing)


def test_one_vocabulary_is_for_what_is_written_in_the_same_letters():
    def settled(source, target, **settings):
        chosen = TranslatorSettings(**settings)
        pairs = [Pair(source, target)] * 9
        codec = TranslationCodec.build(pairs, chosen)
        found = Translator.settle(chosen, pairs, codec)
        assert found.joint == codec.joint
        return codec.joint, found.tie

    english, french = (
        "Where is the good old railway station, my very quick friend?",
        "Où est la vieille gare, mon ami ?",
    )
    russian = "Где старый вокзал, мой друг?"
    assert settled(english, french) == (True, "all")
    assert settled(english, russian) == settled(russian, french) == (False, "output")
    assert settled(english, french, joint=False) == settled(english, french, units="words") == (False, "output")
    assert settled(english, french, tie="output") == (True, "output")
    assert settled(english, russian, joint=True) == (True, "all")


def test_a_large_vocabulary_can_be_tied_and_adaptive():
    model = built(PAIRS, output="adaptive")
    assert isinstance(model.output, AdaptiveSoftmax)
    assert not any(name.startswith("embedding.") for name in model.tensors())


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tie": "all", "joint": False}, "give --joint"),
        ({"output": "adaptive", "label_smoothing": 0.1}, "full output layer"),
        ({"output": "adaptive", "tie": "all", "joint": True}, "--output full"),
        ({"input_feeding": True, "attention": "none"}, "choose an attention"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(UserError, match=message):
        TranslatorSettings(**settings)


def test_bad_data():
    settings = TranslatorSettings(units="words")
    with pytest.raises(UserError, match="no pair"):
        TranslationCodec.build([], settings)
    with pytest.raises(UserError, match="every target text is empty"):
        TranslationCodec.build([Pair("a", ""), Pair("b", " ")], settings)
    with pytest.raises(UserError, match="no target to learn from: 'a b'"):
        TranslationCodec.build([Pair("a b")], settings)
    with pytest.raises(UserError, match="no target"):
        built(PAIRS).codec.encode(Pair("a"))
    with pytest.raises(UserError, match="dot attention needs"):
        built(PAIRS, attention="dot", decoder_size=7)


def test_bad_options():
    model = built(PAIRS, attention="none")
    for message, options in {
        "no attention": {"attention": True},
        "n_best: expected 1 to 2": {"beam": 2, "n_best": 3},
        "beam: expected": {"beam": 0},
        "max_length: expected": {"max_length": 0},
        "length_penalty: expected": {"length_penalty": -1.0},
    }.items():
        with pytest.raises(UserError, match=message):
            predicted(model, PAIRS, **options)
    with pytest.raises(UserError, match="no attention"):
        model.align(batch_of(model, PAIRS))

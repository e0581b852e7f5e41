import math
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from recurra.config import UserError, from_mapping, to_mapping
from recurra.evaluation import evaluate, surprisals
from recurra.models.arpa import read_arpa
from recurra.models.kneser_ney import NgramLM, NgramSettings
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END, Vocabulary
from reference import kneser_ney as reference

DATA = Path(os.environ.get("RECURRA_DATA", "nowhere"))
GOLDEN = DATA / "kenlm-golden"
WIKITEXT = DATA / "wikitext-2"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no kenlm-golden in the folder RECURRA_DATA names")
needs_wikitext = pytest.mark.skipif(not WIKITEXT.is_dir(), reason="no wikitext-2 in the folder RECURRA_DATA names")

SMOOTHINGS = ["modified-kneser-ney", "kneser-ney"]
VOCABULARY = Vocabulary(["<unk>", "<eos>", "a", "b", "c", "d", "never"], [0] * 7)
ENDS = [*VOCABULARY.tokens[:1], "</s>", *VOCABULARY.tokens[2:]]
TEXT = """\
a b c a b d
b c a
a
d a b c a a b

c a b c a c d
b b c a b a
a b c <unk>
"""
LINES = [line.split() for line in TEXT.splitlines()]
SETTINGS = [
    NgramSettings(order=3, discount_fallback=True),
    NgramSettings(order=4, prune=(0, 0, 1), discount_fallback=True),
    NgramSettings(order=3, smoothing="kneser-ney", discount_fallback=True),
    NgramSettings(order=3, interpolate_unigrams=False, discount_fallback=True),
    NgramSettings(order=3, prune=(0, 100), discount_fallback=True),
    NgramSettings(order=2, discount_fallback=True),
    NgramSettings(order=1, discount_fallback=True),
]
each_setting = pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.smoothing} {s.order} {s.prune}")


def stream_of(lines, vocabulary=VOCABULARY):
    ids = [i for line in lines for i in (*map(vocabulary.id, line), LINE_END)]
    return TokenStream.from_tokens(np.array(ids, np.uint16))


def model_of(settings, lines=LINES):
    return NgramLM.estimate(settings, stream_of(lines), VOCABULARY)


def table_of(model):
    """Probabilities and back-off weights by n-gram, as the oracle has them."""
    probabilities, backoffs = {}, {}
    for k in range(1, model.order + 1):
        numbers = torch.arange(len(model.log_probs[k]))
        for n, ids in enumerate(model.ngrams(k, numbers).tolist()):
            ngram = tuple(ENDS[i] for i in ids)
            first = ("<s>" if ids[0] == LINE_END else ngram[0], *ngram[1:])
            probabilities[ngram if k == 1 else first] = math.exp(model.log_probs[k][n])
            if k < model.order:
                backoffs[first] = math.exp(model.backoffs[k][n])
    return probabilities, backoffs


def distribution(model, history):
    """Log-probabilities of what follows a history, read token by token."""
    state = model.start(1)
    for token in [LINE_END, *history]:
        log_probs, state = model.step(torch.tensor([token]), state)
    return log_probs[0]


words = st.sampled_from(["a", "b", "c", "d", "<unk>"])
texts = st.lists(st.lists(words, max_size=6), min_size=1, max_size=12)


@given(
    lines=texts,
    order=st.integers(1, 4),
    smoothing=st.sampled_from(SMOOTHINGS),
    rises=st.lists(st.integers(0, 2), max_size=3),
    interpolate_unigrams=st.booleans(),
    histories=st.lists(st.lists(words, max_size=5), min_size=1, max_size=4),
)
@hypothesis_settings(max_examples=150)
def test_oracle(lines, order, smoothing, rises, interpolate_unigrams, histories):
    order = min(order, max(map(len, lines)) + 2)
    prune = tuple(np.cumsum([0, *rises])[:order].tolist())
    settings = NgramSettings(
        order=order,
        smoothing=smoothing,
        prune=prune,
        interpolate_unigrams=interpolate_unigrams,
        discount_fallback=True,
    )
    model = model_of(settings, lines)
    probabilities, backoffs = reference.estimate(
        lines,
        ENDS,
        order=order,
        smoothing=smoothing,
        thresholds=prune + prune[-1:] * (order - len(prune)),
        interpolate_unigrams=interpolate_unigrams,
    )

    found_probabilities, found_backoffs = table_of(model)
    assert found_probabilities == pytest.approx(probabilities, rel=1e-5)
    expected = {ngram: backoffs.get(ngram, 1.0) for ngram in found_backoffs}
    assert found_backoffs == pytest.approx(expected, rel=1e-5)

    for history in histories:
        given_words = ("<s>", *history)[max(0, len(history) + 2 - order) :] if order > 1 else ()
        expected = [reference.query(probabilities, backoffs, word, given_words) for word in ENDS]
        found = distribution(model, map(VOCABULARY.id, history))
        np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-5)


def test_a_text_worked_out_by_hand():
    """Three lines, "a b", "a b", "a": adjusted counts of unigrams are 1 (a), 1 (b), 2 (</s>)."""
    vocabulary = Vocabulary(["<unk>", "<eos>", "a", "b"], [0, 3, 3, 2])
    stream = stream_of([["a", "b"], ["a", "b"], ["a"]], vocabulary)
    settings = NgramSettings(order=2, smoothing="kneser-ney", discount_fallback=True)
    model = NgramLM.estimate(settings, stream, vocabulary)
    # Unigrams: n1 = 2, n2 = 1, D = 1/2, gamma = 3/2 / 4. Bigrams: <s> a 3, a b 2, a </s> 1, b </s> 2: D = 1 / (1 + 4).
    gamma = 1.5 / 4
    a, b, end = (0.5 / 4 + gamma / 4, 0.5 / 4 + gamma / 4, 1.5 / 4 + gamma / 4)
    assert model.log_probs[1].exp().tolist() == pytest.approx([gamma / 4, end, a, b])
    after_begin = 0.2 / 3
    assert model.backoffs[1].exp().tolist() == pytest.approx([1, after_begin, 0.4 / 3, 0.1])
    assert math.exp(distribution(model, [])[2]) == pytest.approx(2.8 / 3 + after_begin * a)
    assert math.exp(distribution(model, [2])[1]) == pytest.approx(0.8 / 3 + 0.4 / 3 * end)
    assert math.exp(distribution(model, [2])[2]) == pytest.approx(0.4 / 3 * a)
    assert model.parameters_count == 4 + 4 + 4


@each_setting
def test_probabilities_of_any_history_sum_to_one(settings):
    model = model_of(settings)
    tokens = torch.randint(len(VOCABULARY), (30, 16), generator=torch.Generator().manual_seed(1))
    state = model.start(16)
    for read in tokens:
        log_probs, state = model.step(read, state)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(16))


@each_setting
@pytest.mark.parametrize("running", [True, False], ids=["running text", "targets of their own"])
def test_score_is_steps_and_a_batch_is_its_rows(settings, running):
    model = model_of(settings)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 6, (41, 8), generator=generator)
    inputs, targets = tokens[:-1], tokens[1:].clone()
    if not running:
        targets[::3] = torch.randint(0, 7, targets[::3].shape, generator=generator)
    whole, after = model.score(inputs, targets, model.start(8))

    state = model.start(8)
    for t, read in enumerate(inputs):
        log_probs, state = model.step(read, state)
        torch.testing.assert_close(log_probs.gather(1, targets[t, :, None])[:, 0], whole[t])
    assert torch.equal(state, after)
    assert state.shape == (8, settings.order - 1)

    half, middle = model.score(inputs[:17], targets[:17], model.start(8))
    rest, end = model.score(inputs[17:], targets[17:], middle)
    assert torch.equal(torch.cat([half, rest]), whole)
    assert torch.equal(end, after)
    nothing, same = model.score(inputs[:0], targets[:0], middle)
    assert nothing.shape == (0, 8)
    assert torch.equal(same, middle)

    rows = torch.tensor([5, 0, 0])
    some, _ = model.score(inputs[17:, rows], targets[17:, rows], model.select(middle, rows))
    assert torch.equal(some, rest[:, rows])


def test_a_line_end_is_the_beginning_of_a_line_and_nothing_before_it_matters():
    model = model_of(NgramSettings(order=4, discount_fallback=True))
    _, after_text = model.step(torch.tensor([LINE_END]), model.score(*torch.tensor([[[2]], [[3]]]), model.start(1))[1])
    _, at_start = model.step(torch.tensor([LINE_END]), model.start(1))
    assert torch.equal(after_text, at_start)
    assert after_text.tolist() == [[LINE_END, -1, -1]]

    stream = stream_of(LINES)
    by_line = surprisals(model, stream.tokens, reset="lines", line_starts=stream.line_starts, batch_size=3)
    np.testing.assert_allclose(by_line, surprisals(model, stream.tokens, reset="none", chunk_length=5), rtol=1e-6)


@each_setting
def test_saved_and_mapped_tensors_are_the_model(settings, tmp_path):
    model = model_of(settings)
    save_file(model.tensors(), tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    assert from_mapping(NgramSettings, to_mapping(settings), "settings") == settings
    again = NgramLM.from_tensors(settings, VOCABULARY, tensors)
    assert again.parameters_count == model.parameters_count
    inputs, targets = torch.randint(7, (2, 50, 3), generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.score(inputs, targets, again.start(3))[0], model.score(inputs, targets, model.start(3))[0])


def test_tensors_of_another_model_are_refused():
    tensors = model_of(SETTINGS[0]).tensors()
    with pytest.raises(UserError, match=r"order 4: backoffs\.3 is missing"):
        NgramLM.from_tensors(NgramSettings(order=4), VOCABULARY, tensors)
    with pytest.raises(UserError, match="7 words, with a vocabulary of 2"):
        NgramLM.from_tensors(SETTINGS[0], Vocabulary(["<unk>", "<eos>"], [0, 0]), tensors)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "log_probs.3",
            lambda table: table[:-1],
            r"keys\.3: expected torch\.int64 \[\d+\], found torch\.int64 \[\d+\]",
        ),
        ("keys.2", lambda table: table[1:], r"keys\.2: expected"),
        (
            "backoffs.1",
            lambda table: table[1:],
            r"backoffs\.1: expected torch\.float32 \[7\], found torch\.float32 \[6\]",
        ),
        (
            "log_probs.2",
            lambda table: table.double(),
            r"log_probs\.2: expected torch\.float32 .*, found torch\.float64",
        ),
        ("keys.3", lambda table: table.int(), r"keys\.3: expected torch\.int64 .*, found torch\.int32"),
        ("backoffs.2", lambda table: table[None], r"backoffs\.2: expected .*, found torch\.float32 \[1, \d+\]"),
        ("log_probs.1", lambda table: table.sum(), "order 3: 1 words, with a vocabulary of 7"),
        ("keys.3", lambda table: table + 10**6, "keys.3 has 3-grams that begin with no 2-gram"),
        ("keys.2", lambda table: table - 10**6, "keys.2 has 2-grams that begin with no 1-gram"),
        ("more", lambda _: torch.zeros(1), "more is missing or one too many"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(name, change, message):
    tensors = model_of(SETTINGS[0]).tensors()
    tensors[name] = change(tensors.get(name))
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        NgramLM.from_tensors(SETTINGS[0], VOCABULARY, tensors)


def test_pruned_ngrams_are_gone_and_what_they_had_is_backed_off_to():
    full, pruned = (model_of(NgramSettings(order=3, prune=p, discount_fallback=True)) for p in [(0,), (0, 0, 1)])
    assert torch.equal(full.keys[2], pruned.keys[2])
    counts = Counter(
        tuple(line[i : i + 3]) for line in (["<s>", *line, "</s>"] for line in LINES) for i in range(len(line) - 2)
    )
    kept, _ = table_of(pruned)
    assert {g for g in kept if len(g) == 3} == {g for g, count in counts.items() if count > 1}


def test_say_tells_what_was_counted():
    said = []
    settings = NgramSettings(order=2, prune=(0, 1), discount_fallback=True)
    NgramLM.estimate(settings, stream_of(LINES), VOCABULARY, say=said.append)
    assert re.match(r"2-grams: \d+ of \d+, discounts 0\.\d{4}, ", said[1])


@pytest.mark.parametrize(
    ("settings", "lines", "message"),
    [
        (NgramSettings(), [], "nothing to count"),
        (NgramSettings(order=6, discount_fallback=True), [["a", "b"], ["a"]], "has 4 tokens, so that 4 is the highest"),
        (NgramSettings(order=2), [["a", "b"]], r"discounts of 1-grams .* none has a count of 2; .*--discount-fallback"),
        (NgramSettings(order=2, smoothing="kneser-ney"), [["a"]], "discounts of 1-grams .* none has a count of 2"),
        (NgramSettings(prune=(1,)), LINES, "first is 0.* got 1$"),
        (NgramSettings(prune=(0, 2, 1)), LINES, "none is below the one before, got 0,2,1"),
        (NgramSettings(order=2, prune=(0, 0, 1)), LINES, "at most 2 thresholds.* got 0,0,1"),
    ],
)
def test_what_cannot_be_estimated_is_said(settings, lines, message):
    with pytest.raises(UserError, match=message):
        model_of(settings, lines)


@pytest.mark.parametrize(("ids", "found"), [([2, 7, 1], "1 to 7"), ([2, -1, 1], "-1 to 2")])
def test_ids_of_another_vocabulary_are_refused(ids, found):
    with pytest.raises(UserError, match=f"expected ids from 0 to 6, got {found}: .* another vocabulary"):
        NgramLM.estimate(SETTINGS[-1], TokenStream.from_tokens(np.array(ids)), VOCABULARY)


def test_discounts_out_of_range_are_said():
    """One word seen once, one twice, nine three times: D2 = 2 - 3 (1/3) 9 / 1 is below 0."""
    lines = [["a"], ["b"] * 2] + [[f"w{i}"] * 3 for i in range(9)]
    tokens = ["<unk>", "<eos>", *sorted({word for line in lines for word in line})]
    vocabulary = Vocabulary(tokens, [0] * len(tokens))
    with pytest.raises(
        UserError, match=r"discounts of 1-grams .* for a count of 2 comes out as -7; .*discount_fallback"
    ):
        NgramLM.estimate(NgramSettings(order=1), stream_of(lines, vocabulary), vocabulary)


def test_an_order_below_one_is_refused():
    with pytest.raises(UserError, match="at least 1"):
        from_mapping(NgramSettings, {"order": 0}, "settings")


def lines_of(path):
    return [line.split() for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def perplexities_of(model, stream):
    result = evaluate(model, stream.tokens, words=1, characters=1, reset="lines", line_starts=stream.line_starts)
    return result.perplexity, result.perplexity_without_unknown


@needs_golden
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("order3", NgramSettings(order=3)),
        ("order5", NgramSettings()),
        ("order4-prune", NgramSettings(order=4, prune=(0, 0, 1, 2))),
        ("order3-interpolate-unigrams-off", NgramSettings(order=3, interpolate_unigrams=False)),
    ],
)
def test_the_estimate_is_that_of_kenlm(name, settings):
    golden, vocabulary = read_arpa(GOLDEN / f"{name}.arpa.gz")
    model = NgramLM.estimate(settings, stream_of(lines_of(GOLDEN / "train.txt"), vocabulary), vocabulary)
    for table, values in golden.tensors().items():
        difference = model.tensors()[table] - values
        assert difference.abs().max() < (1e-4 * math.log(10) if values.dtype == torch.float32 else 1), table

    stream = stream_of(lines_of(GOLDEN / "test.txt"), vocabulary)
    summary = (GOLDEN / f"{name}.query-summary.txt").read_text()
    expected = [float(value) for value in re.findall(r"cluding OOVs:\s+(\S+)", summary)]
    assert perplexities_of(model, stream) == pytest.approx(expected, rel=1e-4)

    nats = surprisals(model, stream.tokens, reset="lines", line_starts=stream.line_starts)
    totals = -np.add.reduceat(nats, stream.line_starts) / math.log(10)
    sentences = (GOLDEN / f"{name}.query-sentences.txt").read_text()
    expected = [float(value) for value in re.findall(r"Total: (\S+)", sentences)]
    assert len(expected) == 300
    assert totals[:300].tolist() == pytest.approx(expected, rel=1e-4)


@needs_wikitext
def test_perplexity_of_wikitext_is_that_of_kenlm():
    """lmplz -o 5 has one word more, its own <unk> beside that of the text, which is worth less than 1e-4."""
    lines = lines_of(WIKITEXT / "train.txt")
    vocabulary = Vocabulary.from_counts(Counter(w for line in lines for w in line), line_ends=len(lines))
    model = NgramLM.estimate(NgramSettings(), stream_of(lines, vocabulary), vocabulary)
    perplexity, _ = perplexities_of(model, stream_of(lines_of(WIKITEXT / "test.txt"), vocabulary))
    assert perplexity == pytest.approx(220.1386, rel=1e-4)

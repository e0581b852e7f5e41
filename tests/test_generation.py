import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from recurra.config import UserError, from_mapping, to_mapping
from recurra.generation import (
    GenerationSettings,
    IncrementalDecoder,
    beam_search,
    generate,
    generate_stream,
    next_log_probs,
    next_tokens,
    restrict,
)
from recurra.text.documents import Text
from recurra.text.tokenizer import KINDS, TokenizerSettings, build_tokenizer
from reference.exact_lm import LINE_END, HistoryLM, ScriptLM, enumerate_texts

UNKNOWN = 0
LETTERS = "?\nabcdefghij"  # by id, as a character tokenizer would have it


def letters(ids):
    return "".join(LETTERS[token] for token in ids)


def as_bytes(ids):
    """Decode as byte pairs do: ids are bytes, and two more in front; what is not UTF-8 becomes the replacement."""
    return bytes(10 if token == LINE_END else token - 2 for token in ids).decode(errors="replace")


def as_words(ids):
    """Decode words, here numbers: spaces between them, none at line ends."""
    return (
        " ".join("\n" if token == LINE_END else str(token) for token in ids).replace(" \n", "\n").replace("\n ", "\n")
    )


def script_of(text):
    return [LINE_END if byte == 10 else byte + 2 for byte in text.encode()]


# ---- the next token ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[], [2], [3, 1, 2, 4, 4]])
def test_next_tokens_are_the_models_distribution(prompt):
    lm = HistoryLM.random(6)
    expected = lm.next(prompt)
    assert next_log_probs(lm, prompt).tolist() == expected
    tokens = next_tokens(lm, prompt, 4)
    assert [token for token, _ in tokens] == sorted(range(6), key=lambda token: -expected[token])[:4]
    assert [p for _, p in tokens] == pytest.approx([math.exp(expected[token]) for token, _ in tokens])
    assert sum(p for _, p in next_tokens(lm, prompt, 100)) == pytest.approx(1)


def test_next_tokens_take_the_lower_of_equals():
    lm = HistoryLM(torch.tensor([[0.2, 0.1, 0.2, 0.3, 0.2]]).log())
    assert [token for token, _ in next_tokens(lm, [], 3)] == [3, 0, 2]
    with pytest.raises(UserError, match="k: expected at least 1, got 0"):
        next_tokens(lm, [], 0)


# ---- sampling ---------------------------------------------------------------------------------------------------


def test_samples_follow_the_model():
    """Pearson's chi-square over all pairs of tokens, the second of which depends on the first."""
    lm, prompt, count = HistoryLM.random(6, spread=1.0), [3, 2], 6000
    settings = GenerationSettings(count=count, max_tokens=2, seed=1, allow_unknown=True)
    drawn = [tuple(text.ids) for text in generate(lm, prompt, settings, letters)]
    chi_square = 0.0
    for pair in itertools.product(range(6), repeat=2):
        expected = count * math.exp(lm.log_prob(pair, prompt))
        chi_square += (drawn.count(pair) - expected) ** 2 / expected
    assert chi_square < 66.6  # 35 degrees of freedom: exceeded once in 1000 seeds


def test_samples_follow_temperature_and_leave_unknown_out():
    lm, count = HistoryLM.random(5, spread=1.0), 4000
    weights = np.exp(np.array(lm.next([])) / 0.5)
    weights[UNKNOWN] = 0
    texts = generate(lm, [], GenerationSettings(count=count, max_tokens=1, temperature=0.5, seed=2), letters)
    counts = np.bincount([text.ids[0] for text in texts], minlength=5)
    assert counts[UNKNOWN] == 0
    expected = (count * weights / weights.sum())[1:]
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom: once in 1000


def test_what_has_probability_0_is_never_drawn():
    table = torch.tensor([[0.0, 0.0, 0.4, 0.0, 0.6, 0.0]]).log()
    texts = generate(HistoryLM(table), [], GenerationSettings(count=50, max_tokens=20, seed=3), letters)
    assert {token for text in texts for token in text.ids} == {2, 4}


def test_log_probability_is_the_models_own():
    lm = HistoryLM.random(6)
    settings = GenerationSettings(count=3, max_tokens=10, temperature=0.3, top_k=3, seed=4)
    for text in generate(lm, [2], settings, letters):
        assert len(text.ids) == 10
        assert text.log_prob == pytest.approx(lm.log_prob(text.ids, [2]))


def test_a_seed_gives_each_row_the_same_text_whatever_the_count():
    lm = HistoryLM.random(8)

    def texts(count, seed):
        settings = GenerationSettings(count=count, seed=seed, max_tokens=30, stop="ab")
        return generate(lm, [5], settings, letters)

    assert texts(7, 11)[:2] == texts(2, 11)
    assert texts(2, 11) != texts(2, 12)
    assert len({text.text for text in texts(7, 11)}) == 7
    assert texts(1, None) != texts(1, None)


def test_greedy_takes_the_likeliest():
    lm = HistoryLM.random(6)
    [text] = generate(lm, [4], GenerationSettings(greedy=True, max_tokens=15), letters)
    history = [4]
    for _ in range(15):
        history.append(max(range(1, 6), key=lm.next(history).__getitem__))
    assert text.ids == history[1:]
    assert text.log_prob == pytest.approx(lm.log_prob(text.ids, [4]))
    assert text.text == letters(text.ids)


def test_unknown_is_generated_on_request_only():
    lm = HistoryLM(torch.tensor([[0.9, 0.04, 0.06]]).log())
    for options in ({"seed": 1}, {"greedy": True}, {"beam": 2}):
        [without] = generate(lm, [], GenerationSettings(max_tokens=20, **options), letters)
        [with_unknown] = generate(lm, [], GenerationSettings(max_tokens=20, **options, allow_unknown=True), letters)
        assert UNKNOWN not in without.ids
        assert UNKNOWN in with_unknown.ids


def test_a_model_that_knows_no_word_is_an_error():
    lm = HistoryLM(torch.tensor([[1.0, 0.0, 0.0]]).log())
    for options in ({}, {"greedy": True}, {"beam": 2}):
        with pytest.raises(UserError, match="every token but <unk> probability 0"):
            generate(lm, [], GenerationSettings(**options), letters)


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 2), (1 - 2**-53, 4)])
def test_the_ends_of_the_unit_interval_draw_what_is_possible(monkeypatch, uniform, token):
    class Constant:
        def random(self):
            return uniform

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Constant())
    lm = HistoryLM(torch.tensor([[0.0, 0.0, 0.4, 0.0, 0.6, 0.0]]).log())
    assert generate(lm, [], GenerationSettings(max_tokens=3), letters)[0].ids == [token] * 3


# ---- top-k and top-p --------------------------------------------------------------------------------------------


def restricted(log_probs, temperature, top_k, top_p):
    """The oracle, one row: the probability that each token is sampled with."""
    weights = np.exp(np.array(log_probs) / temperature)
    order = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    kept = order[: top_k or None]
    nucleus, mass = [], 0.0
    for token in kept:
        if mass < top_p * weights[kept].sum():
            nucleus.append(token)
        mass += weights[token]
    result = np.zeros(len(weights))
    result[nucleus] = weights[nucleus] / weights[nucleus].sum()
    return result


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 9, 50])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 1.0])
def test_top_k_and_top_p_against_the_oracle(temperature, top_k, top_p):
    log_probs = HistoryLM.random(9, histories=20).table
    found = restrict(log_probs, temperature=temperature, top_k=top_k, top_p=top_p).softmax(-1)
    expected = [restricted(row, temperature, top_k, top_p) for row in log_probs.tolist()]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_equals_are_kept_from_the_left_and_no_more_than_k():
    log_probs = torch.tensor([[0.125, 0.25, 0.125, 0.25, 0.25], [0.2, 0.2, 0.2, 0.2, 0.2]]).double().log()
    kept = restrict(log_probs, top_k=2).isfinite()
    assert kept.tolist() == [[False, True, False, True, False], [True, True, False, False, False]]
    kept = restrict(log_probs[:1], top_p=0.5).isfinite()
    assert kept.tolist() == [[False, True, False, True, False]]
    kept = restrict(log_probs[:1], top_p=0.8).isfinite()
    assert kept.tolist() == [[True, True, False, True, True]]


def test_a_temperature_near_0_is_greedy():
    log_probs = HistoryLM.random(9, histories=20).table
    found = restrict(log_probs, temperature=1e-320).exp()
    assert found.argmax(-1).equal(log_probs.argmax(-1))
    assert (found.sum(-1) == 1).all()


# ---- beam search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end_token", [None, LINE_END])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_holds_everything_finds_the_optimum(end_token, length_penalty, seed):
    lm = HistoryLM.random(5, seed=seed)
    found = beam_search(lm, [2], beam=5**4, max_tokens=4, end_token=end_token, length_penalty=length_penalty)
    texts = list(enumerate_texts(lm, [2], 4, end_token=end_token, forbidden=[UNKNOWN]))
    best = sorted(texts, key=lambda text: -text[1] / len(text[0]) ** length_penalty)
    assert [ids for ids, _ in found] == [ids for ids, _ in best]
    assert [log_prob for _, log_prob in found] == pytest.approx([log_prob for _, log_prob in best])


def pruned_search(lm, prompt, beam, max_tokens, end_token, length_penalty=0.0):
    """The oracle for a small beam, without stopping early: beginnings and finished texts are kept apart."""
    live, ended = [[]], []
    for _ in range(max_tokens):
        longer = [[*ids, token] for ids in live for token in range(1, lm.vocabulary_size)]
        longer.sort(key=lambda ids: -lm.log_prob(ids, prompt))
        ended += [ids for ids in longer if ids[-1] == end_token]
        live = [ids for ids in longer if ids[-1] != end_token][:beam]
    return sorted(live + ended, key=lambda ids: -lm.log_prob(ids, prompt) / len(ids) ** length_penalty)[:beam]


@pytest.mark.parametrize("beam", [1, 2, 3, 7])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_small_beam_keeps_the_best_beginnings(beam, length_penalty, seed):
    lm = HistoryLM.random(6, seed=seed)
    found = beam_search(lm, [3, 2], beam=beam, max_tokens=6, end_token=LINE_END, length_penalty=length_penalty)
    assert [ids for ids, _ in found] == pruned_search(lm, [3, 2], beam, 6, LINE_END, length_penalty)
    for ids, log_prob in found:
        assert log_prob == pytest.approx(lm.log_prob(ids, [3, 2]))


def test_beam_search_ends_when_nothing_better_can_come():
    lm = HistoryLM(torch.tensor([[0.001, 0.9, 0.099]]).log())
    found = beam_search(lm, [], beam=2, max_tokens=1000, end_token=LINE_END)
    assert [ids for ids, _ in found] == [[1], [2, 1]]
    assert lm.steps < 5


def test_a_beam_of_1_is_greedy():
    for seed in range(5):
        lm = HistoryLM.random(6, seed=seed)
        greedy = generate(lm, [2], GenerationSettings(greedy=True, max_tokens=12), letters)
        assert generate(lm, [2], GenerationSettings(beam=1, max_tokens=12), letters) == greedy
    uniform = HistoryLM(torch.full((1, 6), 1 / 6).log())
    greedy = generate(uniform, [], GenerationSettings(greedy=True, max_tokens=5), letters)
    assert generate(uniform, [], GenerationSettings(beam=1, max_tokens=5), letters) == greedy


def test_the_best_few_of_a_beam():
    lm = HistoryLM.random(6)
    settings = GenerationSettings(beam=4, count=3, max_tokens=5, stop="\n")
    found = generate(lm, [2], settings, letters)
    assert [text.ids for text in found] == pruned_search(lm, [2], 4, 5, LINE_END)[:3]
    assert [text.text for text in found] == [letters(text.ids).split("\n")[0] for text in found]


def test_a_beam_passes_over_dead_ends():
    """After token 2 the model allows the unknown token only."""
    table = torch.tensor([[0.0, 0.0, 0.6, 0.4], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).log()

    class Bigrams(HistoryLM):
        def step(self, tokens, state):
            return self.table[torch.tensor([0, 0, 1, 2])[tokens]], state.clone()

    assert [ids for ids, _ in beam_search(Bigrams(table), [], beam=3, max_tokens=3)] == [[3, 3, 3]]


# ---- text, stop strings, streaming ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["b", "\n", "ab", "ccc", "a\nb"])
def test_a_text_ends_before_the_stop_string(stop):
    lm = HistoryLM.random(5)
    settings = {"count": 20, "max_tokens": 40, "seed": 6}
    whole = generate(lm, [2], GenerationSettings(**settings), letters)
    stopped = generate(lm, [2], GenerationSettings(**settings, stop=stop), letters)
    assert any(stop in text.text for text in whole)
    for text, full in zip(stopped, whole, strict=True):
        before, found, _ = full.text.partition(stop)
        assert text.text == before
        assert text.ids == full.ids[: len(before + found)]
        assert text.log_prob == pytest.approx(lm.log_prob(text.ids, [2]))


def test_a_stop_string_within_the_prompt_does_not_count():
    """The prompt ends with "ab", and what follows it begins with "c"."""
    lm = ScriptLM([4, 2, 3, 4], len(LETTERS))
    settings = GenerationSettings(greedy=True, max_tokens=8, stop="abc")
    [text] = generate(lm, [2, 3], settings, letters)
    assert text.text == "c"


@given(text=st.text(min_size=1, max_size=30), stop=st.text(alphabet="ab\n", max_size=3))
def test_any_text_is_streamed_whole_and_never_half_a_character(text, stop):
    script = script_of(text)
    settings = GenerationSettings(greedy=True, max_tokens=len(script), stop=stop)
    pieces = [piece.text for piece in generate_stream(ScriptLM(script, 258), [], settings, as_bytes)]
    expected = text.partition(stop)[0] if stop else text
    assert "".join(pieces) == expected
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_given_away_at_last():
    script = script_of("naïve")
    settings = GenerationSettings(greedy=True, max_tokens=3)
    pieces = [piece.text for piece in generate_stream(ScriptLM(script, 258), [], settings, as_bytes)]
    assert pieces == ["n", "a", "\ufffd"]


def test_what_was_held_back_can_be_had_between_two_tokens():
    decoder = IncrementalDecoder(as_bytes)
    first, *rest = (byte + 2 for byte in "ß!".encode())
    assert decoder.push(first) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.finish() == ""  # once
    assert "".join(map(decoder.push, rest)) == "!"  # and it stays what it was given away as


def test_text_that_may_become_the_stop_string_waits():
    script = script_of("xaaby-aa")
    settings = GenerationSettings(greedy=True, max_tokens=8, stop="aab!")
    pieces = [piece.text for piece in generate_stream(ScriptLM(script, 258), [], settings, as_bytes)]
    assert pieces == ["x", "", "", "", "aaby", "-", "", "aa"]


def test_words_are_joined_to_the_prompt():
    lm = ScriptLM([4, 5, LINE_END, 6, 7], 9)
    settings = GenerationSettings(greedy=True, max_tokens=5)

    pieces = [piece.text for piece in generate_stream(lm, [8, 1, 2, 3], settings, as_words)]
    assert pieces == [" 4", " 5", "\n", "6", " 7"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_streams_its_text(kind):
    prompt, text = "(Well), I don't", " know: naïve “quotes”, 3.5 % - 🎉!\n\nA new\nline"
    tokenizer = build_tokenizer(Text.from_string(prompt + text), TokenizerSettings(tokenizer=kind, min_count=1))
    ids, prompt_ids = tokenizer.encode(prompt + text).tolist(), tokenizer.encode(prompt).tolist()
    assert ids[: len(prompt_ids)] == prompt_ids
    script = ids[len(prompt_ids) :]
    settings = GenerationSettings(greedy=True, max_tokens=len(script))
    lm = ScriptLM(script, len(tokenizer.vocabulary))
    pieces = list(generate_stream(lm, prompt_ids, settings, tokenizer.decode))
    assert len(pieces) == len(script)
    assert "".join(piece.text for piece in pieces) == text


def test_only_the_line_being_written_is_decoded():
    """So that a long text takes time that grows with its length alone."""

    def line(ids):
        assert len(ids) <= 4
        assert LINE_END not in ids[:-1]
        return letters(ids)

    lm = ScriptLM([2, 3, 4, LINE_END], len(LETTERS))
    [text] = generate(lm, [5, 6, 7, 8, LINE_END], GenerationSettings(greedy=True, max_tokens=40), line)
    assert text.text == "abc\n" * 10


def test_rows_take_turns_and_pieces_come_at_once():
    lm = HistoryLM.random(6)
    stream = generate_stream(lm, [2], GenerationSettings(count=3, max_tokens=4, seed=1), letters)
    steps = []
    for piece in stream:
        steps.append((lm.steps, piece.row))
        assert torch.is_grad_enabled()
    first = steps[0][0]
    assert steps == [(first + step, row) for step in range(4) for row in range(3)]


class NoisyLM(nn.Module):
    """Says nonsense where it is not in evaluation mode."""

    vocabulary_size = 6

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
        self.dropout = nn.Dropout(0.9)

    def start(self, batch_size):
        return torch.zeros(batch_size)

    def step(self, tokens, state):
        assert not torch.is_grad_enabled()
        return self.dropout(self.scores).log_softmax(-1).expand(len(tokens), -1), state

    def select(self, state, rows):
        return state[rows]


def test_a_module_generates_without_dropout_and_is_left_as_it_was():
    lm = NoisyLM()
    for options in ({"greedy": True}, {"beam": 2}):
        [text] = generate(lm, [], GenerationSettings(max_tokens=10, **options), letters)
        assert text.ids == [5] * 10
    assert next_tokens(lm, [], 1)[0][0] == 5
    assert lm.training
    assert lm.dropout.training


# ---- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected at least 1, got 0"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected above 0, got 0; for the likeliest token choose greedy"),
        ({"temperature": -1.0}, "temperature: expected at least 0, got -1.0"),
        ({"top_k": -1}, "top_k: expected at least 0, got -1"),
        ({"top_p": 0.0}, "top_p: expected above 0, got 0; for the likeliest token choose greedy"),
        ({"top_p": 1.5}, "top_p: expected at most 1, got 1.5"),
        ({"beam": -2}, "beam: expected at least 0, got -2"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"greedy": True, "beam": 3}, "greedy and beam do not go together: choose one (a beam of 1 is greedy)"),
        ({"greedy": True, "count": 2}, "greedy gives one text, got count 2: sample, or choose beam for the best few"),
        ({"beam": 3, "count": 4}, "a beam of 3 finds at most 3 texts, got count 4"),
        ({"beam": 3, "stop": "."}, "beam search stops at a line end only, got stop '.': sample, or choose greedy"),
        ({"beam": 3, "top_p": 0.9}, "temperature, top_k and top_p are for sampling: leave them out, or beam"),
        (
            {"greedy": True, "temperature": 0.5},
            "temperature, top_k and top_p are for sampling: leave them out, or greedy",
        ),
        ({"length_penalty": 1.0}, "length_penalty is for beam search: leave it out, or choose a beam"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(UserError) as caught:
        GenerationSettings(**options)
    assert str(caught.value) == message


def test_settings_go_through_a_file_and_back():
    settings = GenerationSettings(count=2, top_k=5, top_p=0.9, seed=3, stop="\n\n")
    assert from_mapping(GenerationSettings, to_mapping(settings), "here") == settings

"""Beam search, against enumeration of all outputs and against a plain search with lists."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from recurra.beam import beam_search
from recurra.config import UserError

START, END = 0, 1
PENALTIES = [("none", 1.0), ("average", 1.0), ("average", 0.4), ("gnmt", 1.0), ("gnmt", 0.6)]


class Toy:
    """A model whose next token depends on the sentence, on how much has been written, and on the last two tokens."""

    def __init__(self, sentences: list[int], tokens: int = 4, *, longest: int = 12, sharpness: float = 1.5):
        self.tables = torch.stack(
            [
                torch.randn(
                    longest, tokens, tokens, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
                )
                for seed in sentences
            ]
        )
        self.tables = (sharpness * self.tables).log_softmax(-1)
        self.batch, self.tokens = len(sentences), tokens
        self.rows: list[list[int]] = []  # the sentence of each row of each step
        self.extra = False
        self.state = torch.stack([torch.arange(self.batch), *[torch.zeros(self.batch, dtype=torch.long)] * 2], 1)

    def step(self, tokens: Tensor, state: Tensor):
        sentence, written, last = state.unbind(1)
        assert tokens.dtype == torch.int64
        self.rows.append(sentence.tolist())
        log_probs = self.tables[sentence, written, last, tokens]
        new = torch.stack([sentence, written + 1, tokens], 1)
        # what is given besides: which token was read after which, and in which sentence
        return (log_probs, new, torch.stack([sentence, last, tokens], 1)) if self.extra else (log_probs, new)

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        assert rows.dtype == torch.int64
        return state[rows]

    def log_prob(self, sentence: int, output: tuple[int, ...]) -> float:
        history = (START, START, *output)
        return sum(float(self.tables[sentence, i, history[i], history[i + 1], output[i]]) for i in range(len(output)))

    def search(self, **options):
        options = {"start": START, "end": END, "max_lengths": 5, **options}
        return beam_search(self.step, self.select, self.state, batch=self.batch, **options)


def penalty(name: str, alpha: float, length: int) -> float:
    return {"none": 1.0, "average": length**alpha, "gnmt": ((5 + length) / 6) ** alpha}[name]


def all_outputs(tokens: int, longest: int):
    """Every sequence that ends with its only end token, and every one of the greatest length that does not end."""
    others = [token for token in range(tokens) if token != END]
    for length in range(longest):
        for beginning in itertools.product(others, repeat=length):
            yield (*beginning, END)
    yield from itertools.product(others, repeat=longest)


def ranked(model, sentence, outputs, name, alpha):
    """What has ended comes before what was cut."""
    scored = [(model.log_prob(sentence, output) / penalty(name, alpha, len(output)), output) for output in outputs]
    return sorted(scored, key=lambda pair: (pair[1][-1] != END, -pair[0]))


def plain_search(model, sentence, *, beam, longest, name, alpha, n_best):
    """The oracle for a small beam: lists, and no reason to stop but the greatest length."""
    live, found = [()], []
    for length in range(1, longest + 1):
        longer = [(*output, token) for output in live for token in range(model.tokens)]
        longer.sort(key=lambda output: -model.log_prob(sentence, output))
        found += [output for output in longer[:beam] if output[-1] == END]
        live = [output for output in longer if output[-1] != END][:beam]
        if length == longest:
            found += live
    return ranked(model, sentence, found, name, alpha)[:n_best]


def check(hypotheses, expected):
    assert [hypothesis.tokens for hypothesis in hypotheses] == [output for _, output in expected]
    assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx([score for score, _ in expected])


@pytest.mark.parametrize(("name", "alpha"), PENALTIES)
def test_a_beam_that_holds_everything_equals_enumeration(name, alpha):
    model = Toy([0, 1, 2])
    limits = [4, 2, 3]
    beam = 4**4
    found = model.search(max_lengths=limits, beam=beam, n_best=7, length_penalty=name, alpha=alpha)
    for sentence, limit in enumerate(limits):
        check(found[sentence], ranked(model, sentence, all_outputs(4, limit), name, alpha)[:7])
        for hypothesis in found[sentence]:
            assert hypothesis.log_prob == pytest.approx(model.log_prob(sentence, hypothesis.tokens))
            assert hypothesis.ended == (hypothesis.tokens[-1] == END)
            assert hypothesis.content == tuple(token for token in hypothesis.tokens if token != END)
            assert hypothesis.extra is None


@pytest.mark.parametrize("beam", [1, 2, 3, 5])
@pytest.mark.parametrize(("name", "alpha"), PENALTIES)
def test_a_small_beam_keeps_the_best_beginnings_and_stops_only_when_nothing_better_can_come(beam, name, alpha):
    model = Toy(list(range(6)))
    n_best = (beam + 1) // 2
    found = model.search(
        max_lengths=8, beam=beam, n_best=n_best, length_penalty=name, alpha=alpha, patience=math.inf
    )  # fmt: skip
    for sentence in range(6):
        expected = plain_search(model, sentence, beam=beam, longest=8, name=name, alpha=alpha, n_best=n_best)
        check(found[sentence], expected)


@pytest.mark.parametrize(("name", "alpha"), PENALTIES)
def test_a_beam_of_1_is_greedy(name, alpha):
    model = Toy(list(range(10)))
    for sentence, (hypothesis,) in enumerate(model.search(beam=1, max_lengths=9, length_penalty=name, alpha=alpha)):
        output: tuple[int, ...] = ()
        while len(output) < 9 and END not in output:
            output = max(((*output, token) for token in range(4)), key=lambda longer: model.log_prob(sentence, longer))
        assert hypothesis.tokens == output


@pytest.mark.parametrize("patience", [1.0, math.inf])
def test_nothing_depends_on_the_rest_of_the_batch(patience):
    options = {"beam": 3, "n_best": 2, "length_penalty": "average", "patience": patience}
    limits, prefixes = [8, 3, 11, 1, 6], [[], [2], [3, 2, 2], [], [2]]
    together = Toy(list(range(5))).search(max_lengths=limits, prefix=prefixes, **options)
    for seed in range(5):
        alone = Toy([seed]).search(max_lengths=limits[seed], prefix=[prefixes[seed]], **options)
        assert [(h.tokens, h.score) for h in together[seed]] == [(h.tokens, h.score) for h in alone[0]]


def test_sentences_that_are_done_leave_and_no_row_is_wasted():
    model = Toy(list(range(4)))
    model.search(max_lengths=[2, 9, 1, 5], beam=3, patience=math.inf)
    assert model.rows[0] == [0, 1, 2, 3]
    assert 2 not in model.rows[1]
    assert all(0 not in rows for rows in model.rows[2:])
    assert max(rows.count(1) for rows in model.rows) == 3


def certain(probabilities: list[float], longest: int = 100):
    """A model that gives the same distribution forever, and counts its steps."""
    log_probs, steps = torch.tensor(probabilities).log(), []

    def step(tokens, state):
        steps.append(len(tokens))
        return log_probs.expand(len(tokens), -1), state

    def search(**options):
        options = {"start": START, "end": END, "max_lengths": longest, **options}
        return beam_search(step, lambda state, rows: state, None, batch=1, **options)[0]

    return search, steps


@pytest.mark.parametrize("name", ["none", "gnmt"])
def test_the_search_stops_when_nothing_better_can_come(name):
    search, steps = certain([0.0, 0.9, 0.1])
    (best,) = search(beam=3, n_best=1, length_penalty=name, alpha=0.5, patience=math.inf)
    assert best.tokens == (END,)
    # after t steps the best beginning has log-probability t log 0.1, which no length up to 100 makes up for
    bound = 1 if name == "none" else next(
        t for t in range(1, 100) if t * math.log(0.1) / (105 / 6) ** 0.5 <= math.log(0.9)
    )  # fmt: skip
    assert len(steps) == bound


def test_patience_is_how_many_outputs_may_end_before_the_search_stops():
    for patience, expected in ((1.0, 2), (2.0, 4)):
        search, steps = certain([0.0, 0.4, 0.6])
        search(beam=2, length_penalty="average", patience=patience)
        assert len(steps) == expected  # one output ends in every step


def test_what_has_not_ended_is_cut_at_its_greatest_length():
    search, _ = certain([0.0, 0.01, 0.99], 6)
    (best,) = search(beam=1)
    assert best.tokens == best.content == (2,) * 6
    assert not best.ended


def test_what_was_cut_is_given_only_for_want_of_what_has_ended():
    search, _ = certain([0.0, 0.01, 0.99], 6)
    (best,) = search(beam=3, patience=math.inf)
    assert best.tokens == (END,)
    assert [hypothesis.tokens for hypothesis in search(beam=3, n_best=3, max_lengths=1)] == [(END,), (2,)]


@pytest.mark.parametrize("beam", [2, 4**4])
def test_min_length(beam):
    model = Toy([3, 4])
    for sentence, hypotheses in enumerate(model.search(beam=beam, n_best=2, max_lengths=4, min_length=3)):
        assert all(len(hypothesis.tokens) >= 3 for hypothesis in hypotheses)
        if beam > 2:
            allowed = [output for output in all_outputs(4, 4) if len(output) >= 3]
            check(hypotheses, ranked(model, sentence, allowed, "none", 1)[:2])


def test_prefix():
    model = Toy([5, 6])
    prefixes = [[2, 3], []]
    found = model.search(beam=4**4, n_best=5, max_lengths=4, prefix=prefixes, min_length=2, forbidden=[3, START])
    for sentence, prefix in enumerate(prefixes):
        allowed = [
            output
            for output in all_outputs(4, 4)
            if list(output[: len(prefix)]) == prefix
            and not {3, START} & set(output[len(prefix) :])
            and len(output) >= 2
        ]
        check(found[sentence], ranked(model, sentence, allowed, "none", 1)[:5])


def test_a_prefix_may_fill_the_output():
    (found,) = Toy([5]).search(beam=3, max_lengths=2, prefix=[[3, 2]])
    assert [hypothesis.tokens for hypothesis in found] == [(3, 2)]


def test_what_step_gives_besides_is_collected_along_each_hypothesis():
    model = Toy([0, 1])
    model.extra = True
    found = model.search(beam=4, n_best=4, max_lengths=6)
    plain = Toy([0, 1]).search(beam=4, n_best=4, max_lengths=6)
    for sentence, hypotheses in enumerate(found):
        assert [h.tokens for h in hypotheses] == [h.tokens for h in plain[sentence]]
        for hypothesis in hypotheses:
            history = (START, START, *hypothesis.tokens)
            assert hypothesis.extra.tolist() == [
                [sentence, history[i], history[i + 1]] for i in range(len(hypothesis.tokens))
            ]


def test_a_start_for_each_sentence():
    for start, found in zip([2, 3], Toy([0, 0]).search(start=[2, 3], beam=3), strict=True):
        (alone,) = Toy([0]).search(start=start, beam=3)
        assert [h.tokens for h in found] == [h.tokens for h in alone]


def test_among_equals_the_better_beginning_and_the_lower_token_come_first():
    search, _ = certain([0.125] * 8, 2)
    outputs = [hypothesis.tokens for hypothesis in search(beam=3, n_best=3, patience=math.inf)]
    # step 1: 0, end and 2 are the first three; step 2: the first to go on from are 0 and 2
    assert outputs == [(END,), (0, END), (0, 0)]  # the last was cut
    search, _ = certain([1 / 300] * 300, 2)  # more equals than fit any shortcut of sorting
    outputs = [hypothesis.tokens for hypothesis in search(beam=20, n_best=20, patience=math.inf)]
    assert outputs == [(END,), (0, END), *((0, token) for token in range(19) if token != END)]
    search, _ = certain([0.0] + [1 / 999] * 999, 1)
    assert [h.tokens for h in search(beam=2, n_best=2, forbidden=[2, 4])] == [(1,), (3,)]


def test_forbidden_tokens_leave_room_for_others():
    search, _ = certain([0.4, 0.15, 0.4, 0.05])
    assert [hypothesis.tokens for hypothesis in search(beam=1, forbidden=[0, 2, 2])] == [(END,)]
    assert [hypothesis.tokens for hypothesis in search(beam=1, forbidden=[0, 2], min_length=2)] == [(3, END)]


def test_impossible_outputs_are_not_found():
    search, _ = certain([0.0, 0.0, 1.0], 3)
    assert [hypothesis.tokens for hypothesis in search(beam=4, n_best=4)] == [(2, 2, 2)]
    search, _ = certain([0.0, 0.5, 0.5], 3)
    assert search(beam=2, prefix=[[0]]) == []


def test_no_sentences():
    def never(*_):
        raise AssertionError("there is nothing to ask for")

    assert beam_search(never, never, None, batch=0, start=START, end=END, max_lengths=[]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam: expected at least 1, got 0"),
        ({"beam": 2, "n_best": 3}, "n_best: expected 1 to 2"),
        ({"n_best": 0}, "n_best: expected 1 to 5"),
        ({"length_penalty": "mean"}, "length_penalty: expected one of none, average, gnmt, got 'mean'"),
        ({"alpha": -1.0}, "alpha: expected at least 0"),
        ({"alpha": math.nan}, "alpha: expected at least 0"),
        ({"patience": 0.0}, "patience: expected above 0"),
        ({"max_lengths": 0}, "max_lengths: expected at least 1"),
        ({"max_lengths": 2, "prefix": [[2, 2, 2]]}, "sentence 1: its prefix has 3 tokens, its output at most 2"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        Toy([0]).search(**options)


def test_what_does_not_belong_together():
    for options in ({"max_lengths": [3, 3]}, {"start": [0, 0]}, {"prefix": [[], []]}, {"prefix": [[END]]}):
        with pytest.raises(ValueError, match=r"expected 1, one for each sentence|has the end token"):
            Toy([0]).search(**options)
    search, _ = certain([0.5, math.nan, 0.5])
    with pytest.raises(ValueError, match="not a number"):
        search(beam=2)
    with pytest.raises(ValueError, match=r"expected log-probabilities \[1, V\]"):
        beam_search(
            lambda tokens, state: (torch.zeros(4), state), lambda state, rows: state, None,
            batch=1, start=0, end=1, max_lengths=2,
        )  # fmt: skip

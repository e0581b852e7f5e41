"""What holds for every language model that is trained by gradient, whatever it is made of."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from recurra.models.fixed_window import FixedWindowLM, FixedWindowSettings
from recurra.models.max_entropy import MaxEntLM, MaxEntSettings
from recurra.models.neural import NeuralLM, NeuralState, OutputSettings, build_output
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn.embedding import Embedding
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END, SPECIAL, Vocabulary
from recurra.training import Trainer, TrainingSettings, _rebuild, _tensors

COUNTS = [3, 40, 50, 40, 30, 20, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
VOCABULARY = Vocabulary([*SPECIAL, *"abcdefghijklm", "nn"], COUNTS)
FEATURES = 5

CORPUS = np.random.default_rng(0).integers(0, len(COUNTS), 600).astype(np.uint16)
CORPUS[5::9] = LINE_END


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecayingSettings(OutputSettings):
    reset: str = "none"


class DecayingLM(NeuralLM):
    """Sees the sum of all word vectors so far, each counting half as much as the one after it.

    As small as a model can be: it knows nothing of n-grams, resets or lengths.
    """

    def __init__(self, settings, vocabulary):
        super().__init__(settings, vocabulary)
        self.embedding = Embedding(len(vocabulary), FEATURES)
        self.output = build_output(settings, FEATURES, vocabulary.counts)

    def initial_state(self, batch_size):
        return (self.embedding.weight.new_zeros(batch_size, FEATURES),)

    def vectors(self, inputs, state, *, lengths=None):
        (total,) = state
        found = []
        for vector in self.embedding(inputs):
            total = total / 2 + vector
            found.append(total)
        return torch.stack(found), (total,)


def ngrams(order):
    return {"output": "classes", "classes": 4, "maxent_order": order, "maxent_bits": 16, "maxent_cutoffs": (1,)}


def variants(model, settings, **changes):
    name = model.__name__.removesuffix("LM")
    return {f"{name}: {key}": (model, dataclasses.replace(settings, **change)) for key, change in changes.items()}


VARIANTS = {
    **variants(DecayingLM, DecayingSettings(output="full"), **{"plain": {}, "n-grams": ngrams(4)}),
    **variants(
        RecurrentLM,
        RecurrentLMSettings(
            hidden_size=12, layers=2, embedding_size=10, output="full", tied=True, input_dropout=0.0, dropout=0.0,
            output_dropout=0.0,
        ),
        **{
            "lstm, tied, full": {},
            "gru before": {"cell": "gru", "gru_reset": "before"},
            "sigmoid rnn": {"cell": "rnn", "nonlinearity": "sigmoid"},
            "adaptive, tied": {"output": "adaptive", "cutoffs": (4, 9)},
            "adaptive, untied": {"output": "adaptive", "cutoffs": (4, 9), "tied": False},
            "projected": {"projection_size": 6, "output_norm": False},
            "residual, normalised": {"connections": "residual", "layer_norm": True},
            "a size a layer": {"hidden_size": (14, 12), "tied": False},
            "classes, n-grams": ngrams(3),
            "dropout": {
                "word_dropout": 0.1, "input_dropout": 0.1, "dropout": 0.1, "output_dropout": 0.1,
                "recurrent_dropout": 0.1, "weight_dropout": 0.1, "zoneout": 0.1,
            },
        },
    ),
    **variants(
        FixedWindowLM,
        FixedWindowSettings(window=4, embedding_size=5, hidden_size=7, output="full"),
        **{
            "plain": {},
            "direct": {"direct": True},
            "adaptive, direct, relu": {
                "output": "adaptive", "cutoffs": (4, 8), "direct": True, "nonlinearity": "relu",
            },
            "one word, sigmoid": {"window": 1, "nonlinearity": "sigmoid"},
            "long window": {"window": 9},
            "classes, n-grams": ngrams(2),
            "dropout": {"direct": True, "word_dropout": 0.2, "input_dropout": 0.2, "dropout": 0.2},
        },
    ),
    **variants(
        MaxEntLM,
        MaxEntSettings(order=3, bits=16, cutoffs=(1,)),
        **{
            "plain": {},
            "bigrams": {"order": 2},
            "long, crowded": {"order": 6, "bits": 8},
            "long": {"order": 6, "bits": 17},
            "one class": {"classes": 1},
            "dropout": {"dropout": 0.3},
        },
    ),
}  # fmt: skip
# See nothing before the last word; where all rows are taken by 2-grams, longer ones have none.
OF_ONE_WORD = {"FixedWindow: one word, sigmoid", "MaxEnt: bigrams", "MaxEnt: long, crowded"}
WITH_NGRAMS = [name for name in VARIANTS if "MaxEnt" in name or "n-grams" in name]


def fresh(name, **changes):
    torch.manual_seed(0)
    model, settings = VARIANTS[name]
    return model(dataclasses.replace(settings, **changes), VOCABULARY)


@torch.no_grad()
def build(name, **changes):
    """No parameter is where it starts, and the n-grams of the corpus have weights."""
    lm = fresh(name, **changes).double().eval()
    for parameter in lm.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    if lm.hashed is not None:
        lm.assign_ngrams(CORPUS)
        torch.nn.init.normal_(lm.hashed.table)
    return lm


@pytest.fixture(scope="module", params=VARIANTS)
def lm(request):
    """Shared: not to be changed."""
    return build(request.param)


def text(time, batch):
    """Passages of the corpus: all their n-grams were seen, and at least one row has a line end in its middle."""
    tokens = torch.from_numpy(np.stack([CORPUS[50 * row :][: time + 1] for row in range(batch)], 1).astype(np.int64))
    return tokens[:-1], tokens[1:]


def rows_alone(lm, inputs, targets, parts):
    """Scores of a batch, made of those of passages ``(start, end, row)`` each of which is read by itself."""
    found = torch.full(inputs.shape, torch.nan, dtype=torch.float64)
    for start, end, row in parts:
        part = slice(start, end), slice(row, row + 1)
        found[part], _ = lm.score(inputs[part], targets[part], lm.start(1))
    return found


@pytest.mark.parametrize("grad", [True, False])
def test_steps_scores_and_loss_are_one_distribution(lm, grad):
    inputs, targets = text(5, 3)
    with torch.set_grad_enabled(grad):
        scored, end = lm.score(inputs, targets, lm.start(3))
        state = lm.start(3)
        for t in range(5):
            log_probs, state = lm.step(inputs[t], state)
            torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, dtype=torch.float64))
            torch.testing.assert_close(log_probs.gather(-1, targets[t, :, None])[:, 0], scored[t])
        loss, after = lm(Batch(inputs, targets))
    torch.testing.assert_close(loss.nats, -scored.sum())
    assert loss.tokens == 15
    torch.testing.assert_close(state, end)
    torch.testing.assert_close(after, end)


def test_pieces_give_what_the_whole_gives(lm):
    inputs, targets = text(8, 2)
    whole, end = lm(Batch(inputs, targets))
    for cut in (1, 3, 7):
        first, state = lm(Batch(inputs[:cut], targets[:cut]))
        second, state = lm(Batch(inputs[cut:], targets[cut:]), lm.detach(state))
        torch.testing.assert_close((first + second).nats, whole.nats)
        torch.testing.assert_close(state, end)


@torch.no_grad()
def test_a_batch_is_its_rows(lm):
    inputs, targets = text(6, 3)
    scored, _ = lm.score(inputs, targets, lm.start(3))
    torch.testing.assert_close(scored, rows_alone(lm, inputs, targets, [(0, 6, row) for row in range(3)]))


@torch.no_grad()
def test_a_reset_row_goes_on_as_from_the_start(lm):
    inputs, targets = text(9, 3)
    resets = torch.zeros(9, 3, dtype=torch.bool)
    resets[4, 1] = resets[6, 0] = resets[7, 0] = resets[8, 1] = resets[0, 2] = True
    parts = [(0, 6, 0), (6, 7, 0), (7, 9, 0), (0, 4, 1), (4, 8, 1), (8, 9, 1), (0, 9, 2)]
    expected = rows_alone(lm, inputs, targets, parts)
    reading, end = lm.read(inputs, lm.start(3), resets=resets)
    torch.testing.assert_close(lm.reading_log_probs(reading, targets), expected)
    for sizes in ([2, 3, 2, 2], [5, 4]):
        state, pieces = lm.start(3), []
        for part in zip(inputs.split(sizes), targets.split(sizes), resets.split(sizes), strict=True):
            piece, state = lm.read(part[0], state, resets=part[2])
            pieces.append(lm.reading_log_probs(piece, part[1]))
        torch.testing.assert_close(torch.cat(pieces), expected)
        torch.testing.assert_close(state, end)
    with torch.enable_grad():
        loss, _ = lm(Batch(inputs, targets, None, resets))
    torch.testing.assert_close(loss.nats, -expected.sum())


@torch.no_grad()
def test_a_reset_at_the_first_input_forgets_the_state(lm):
    inputs, targets = text(7, 2)
    _, state = lm.score(inputs[:3], targets[:3], lm.start(2))
    inputs, targets = inputs[3:], targets[3:]
    resets = torch.zeros(4, 2, dtype=torch.bool)
    resets[0, 1] = True
    going_on, _ = lm.score(inputs[:, :1], targets[:, :1], lm.select(state, torch.tensor([0])))
    anew, _ = lm.score(inputs[:, 1:], targets[:, 1:], lm.start(1))
    loss, _ = lm(Batch(inputs, targets, None, resets), state)
    torch.testing.assert_close(loss.nats, -going_on.sum() - anew.sum())


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_a_model_of_lines_forgets_at_a_line_end(name):
    lm = build(name, reset="lines")
    inputs, targets = text(4, 2)
    _, state = lm.score(inputs, targets, lm.start(2))
    tokens = torch.tensor([LINE_END, int(targets[-1, 1])])
    found, _ = lm.step(tokens, state)
    anew, _ = lm.step(tokens, lm.start(2))
    torch.testing.assert_close(found[0], anew[0])
    assert ((found[1] - anew[1]).abs().max() > 1e-6) == (name not in OF_ONE_WORD)


def test_lengths_leave_out_what_lies_beyond(lm):
    inputs, targets = text(6, 3)
    lengths = torch.tensor([6, 4, 1])
    scored, _ = lm.score(inputs, targets, lm.start(3))
    expected = -sum(scored[:n, row].sum() for row, n in enumerate(lengths.tolist()))
    beyond = torch.arange(6)[:, None] >= lengths
    for padding in (LINE_END, 7):
        padded = Batch(inputs.masked_fill(beyond, padding), targets.masked_fill(beyond, padding), lengths)
        found, _ = lm(padded)
        torch.testing.assert_close(found.nats, expected)
        assert found.tokens == 11


@torch.no_grad()
def test_select_reorders_rows(lm):
    inputs, targets = text(6, 3)
    _, state = lm.score(inputs[:3], targets[:3], lm.start(3))
    rows = torch.tensor([2, 0, 0, 1])
    selected = lm.select(state, rows)
    expected, _ = lm.score(inputs[3:], targets[3:], state)
    found, _ = lm.score(inputs[3:, rows], targets[3:, rows], selected)
    torch.testing.assert_close(found, expected[:, rows])


@torch.no_grad()
def test_a_state_is_a_nest_of_tensors_that_can_be_taken_apart(lm):
    inputs, targets = text(6, 3)
    _, state = lm.score(inputs[:3], targets[:3], lm.start(3))
    tensors = _tensors(state)
    assert all(tensor.shape[-2] == 3 for tensor in tensors)
    again = _rebuild(lm.start(3), iter(tensors), torch.clone)
    torch.testing.assert_close(again, state)
    torch.testing.assert_close(lm.score(inputs[3:], targets[3:], again), lm.score(inputs[3:], targets[3:], state))


@torch.no_grad()
def test_words_before_are_remembered_for_n_grams_alone(lm):
    inputs = torch.arange(2, 16).view(7, 2)
    reading, state = lm.read(inputs, lm.start(2))
    assert isinstance(state, NeuralState)
    if lm.hashed is None:
        assert reading.histories is None
        assert state.words == ()
    else:
        reach = lm.hashed.features
        assert reading.histories.shape == (7, 2, reach)
        assert state.words.tolist() == inputs[-reach:].flip(0).t().tolist()  # the latest first


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.endswith("dropout")])
def test_training_draws_dropout_and_evaluation_does_not(name):
    lm, batch = build(name), Batch(*text(7, 3))
    assert lm(batch)[0].nats == lm(batch)[0].nats
    lm.train()
    assert lm(batch)[0].nats != lm(batch)[0].nats


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_saved_and_made_anew_it_says_the_same(name):
    lm = build(name).float()
    tensors = {key: tensor.clone() for key, tensor in lm.tensors().items()}
    again = type(lm).from_tensors(lm.settings, VOCABULARY, tensors).eval()
    inputs, targets = text(6, 2)
    expected, _ = lm.score(inputs, targets, lm.start(2))
    torch.testing.assert_close(again.score(inputs, targets, again.start(2))[0], expected, rtol=0, atol=0)
    assert again.tensors().keys() == tensors.keys()


def test_parameters_are_counted_and_owners_of_n_grams_are_not(lm):
    tensors = lm.tensors()
    owners = tensors.pop("output.hashed.prints", None)
    assert (owners is None) == (lm.hashed is None)
    assert lm.parameters_count == sum(tensor.numel() for tensor in tensors.values())


@pytest.mark.parametrize("name", WITH_NGRAMS)
@torch.no_grad()
def test_n_grams_act_each_order_of_them(name):
    lm = build(name)
    inputs, targets = text(9, 3)
    found, _ = lm.score(inputs, targets, lm.start(3))
    if "crowded" not in name:
        histories, _ = lm.hashed.histories(inputs, lm.hashed.start(3))
        for k in range(lm.hashed.features):
            shorter = histories.clone()
            shorter[..., k:] = 0
            hidden, _ = lm.vectors(inputs, lm.initial_state(3))
            assert (lm.output.log_probs(hidden, targets, shorter) - found).abs().max() > 0.01
    lm.hashed.table.zero_()
    without, _ = lm.score(inputs, targets, lm.start(3))
    assert (without - found).abs().max() > 0.01


@pytest.mark.parametrize("name", VARIANTS)
def test_assigning_n_grams_says_how_many_have_a_row(name):
    lm = fresh(name)
    found = lm.assign_ngrams(CORPUS)
    if name not in WITH_NGRAMS:
        assert found is None
        return
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"rows", "rows_used", "pairs", "wanted", "placed", "crowded_out"}
    for pairs, wanted, placed in zip(found["pairs"], found["wanted"], found["placed"], strict=True):
        assert pairs == wanted >= placed  # once is often enough
    assert len(found["placed"]) == lm.hashed.order - 1
    assert found["rows"] == len(lm.hashed.table)
    assert found["rows_used"] == sum(found["placed"]) > 0
    assert found["crowded_out"] == pytest.approx(1 - sum(found["placed"]) / sum(found["wanted"]))
    assert (found["crowded_out"] > 0.8) == ("crowded" in name)


def test_n_grams_that_are_too_rare_are_not_wanted():
    often, all_seen = (fresh("Decaying: n-grams", maxent_cutoffs=cutoffs) for cutoffs in ((1, 2), (1,)))
    found, every = often.assign_ngrams(CORPUS), all_seen.assign_ngrams(CORPUS)
    assert found["wanted"][0] == found["pairs"][0] == every["wanted"][0]
    assert 0 < found["wanted"][1] < found["pairs"][1]
    assert found["rows_used"] == sum(found["placed"]) < every["rows_used"]


@torch.no_grad()
def test_a_saved_model_keeps_its_n_grams():
    lm = build("Decaying: n-grams")
    again = fresh("Decaying: n-grams").double().eval()
    inputs, targets = text(6, 2)
    tensors = {key: tensor.clone() for key, tensor in lm.tensors().items()}
    tensors["output.hashed.prints"].zero_()
    again.load_tensors(tensors)
    lost, _ = again.score(inputs, targets, again.start(2))
    again.load_tensors(lm.tensors())
    kept, _ = again.score(inputs, targets, again.start(2))
    expected, _ = lm.score(inputs, targets, lm.start(2))
    torch.testing.assert_close(kept, expected, rtol=0, atol=0)
    assert (lost - expected).abs().max() > 0.01
    assert torch.equal(again.hashed.prints, lm.hashed.prints)


@pytest.mark.parametrize("assigned", [True, False])
def test_n_grams_learn_only_where_they_were_assigned(assigned):
    lm = fresh("Decaying: n-grams")
    if assigned:
        lm.assign_ngrams(CORPUS)
    owners = lm.hashed.prints.clone()
    Trainer(lm, TrainingSettings(max_steps=2), lambda _: [Batch(*text(9, 3))] * 2).run()
    moved = lm.hashed.table.any(1)
    assert bool(moved.any()) == assigned
    assert not moved[owners == 0].any()
    assert torch.equal(lm.hashed.prints, owners)


def test_n_grams_are_as_the_settings_say_and_end_at_line_ends():
    changes = {"maxent_cutoffs": (1, 4), "maxent_dropout": 0.25, "maxent_rate": 0.5}
    hashed = fresh("Decaying: n-grams", **changes).hashed
    assert (hashed.order, hashed.bits, hashed.line_end) == (4, 16, LINE_END)
    assert (hashed.cutoffs, hashed.dropout, hashed.rate) == tuple(changes.values())

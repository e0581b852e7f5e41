"""Dynamic evaluation: the updates of the paper, however a text is cut into chunks; and the model stays as it was."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.evaluation import surprisals
from recurra.models.dynamic_evaluation import DynamicEvaluation, gradient_statistics
from recurra.models.max_entropy import MaxEntLM, MaxEntSettings
from recurra.models.mixture import Mixture
from recurra.models.neural import map_state
from recurra.models.neural_cache import NeuralCache
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn.rows import set_row_sparse
from recurra.text.batches import Batch, ContiguousStreams, TokenStream
from recurra.text.vocabulary import LINE_END, Vocabulary
from reference.exact_lm import HistoryLM

VOCABULARY = Vocabulary(["<unk>", "<eos>", *"abcdefghij"], [3, 20, 30, 20, 10, 9, 8, 7, 6, 5, 4, 3])
PLAIN = RecurrentLMSettings(
    hidden_size=8,
    layers=1,
    embedding_size=6,
    output="full",
    tied=True,
    input_dropout=0.3,
    dropout=0.3,
    output_dropout=0.3,
)
VARIANTS = {
    "tied": PLAIN,
    "untied gru, 2 layers": dataclasses.replace(PLAIN, cell="gru", layers=2, tied=False),
    "adaptive": dataclasses.replace(PLAIN, output="adaptive", cutoffs=(4, 8), tied=False),
    "adaptive, tied": dataclasses.replace(PLAIN, output="adaptive", cutoffs=(4, 8)),
    "classes": dataclasses.replace(PLAIN, output="classes", classes=3, tied=False),
    "characters": dataclasses.replace(PLAIN, inputs="char-cnn", filters=(4, 4), tied=False),
}
HASHED = dataclasses.replace(VARIANTS["classes"], maxent_order=2, maxent_bits=8)
RATE, DECAY, SEGMENT, EPSILON = 0.1, 0.05, 5, 0.5


def build(settings=PLAIN):
    torch.manual_seed(0)
    return RecurrentLM(settings, VOCABULARY).double()


def a_text(length, seed=0):
    return np.random.default_rng(seed).integers(len(VOCABULARY), size=length)


def as_read(text):
    targets = torch.from_numpy(text)[:, None]
    return torch.cat([torch.full_like(targets[:1], LINE_END), targets[:-1]]), targets


def training_batches():
    return ContiguousStreams(TokenStream.from_tokens(a_text(120, seed=7)), 4, 6)


def dynamic(lm, *, rms=True, **changes):
    statistics = gradient_statistics(lm, training_batches()) if rms else None
    options = {"learning_rate": RATE, "decay": DECAY, "segment": SEGMENT, "statistics": statistics, "epsilon": EPSILON}
    return DynamicEvaluation(lm, **options | changes)


def expected(lm, text, *, rms):
    """The oracle, by the equations: surprisals of a text, and the weights after it."""
    adapted = copy.deepcopy(lm).eval()
    trained = {name: weight.detach().clone() for name, weight in lm.named_parameters()}
    roots = {name: square.sqrt() for name, square in gradient_statistics(lm, training_batches()).items()}
    mean = torch.cat([root.flatten() for root in roots.values()]).mean()
    inputs, targets = as_read(text)
    state, nats = adapted.start(1), []
    for begin in range(0, len(text), SEGMENT):
        read, following = inputs[begin : begin + SEGMENT], targets[begin : begin + SEGMENT]
        with torch.no_grad():
            nats.append(-adapted.score(read, following, state)[0][:, 0])
        loss, state = adapted(Batch(read, following), state)
        state = adapted.detach(state)
        if len(read) < SEGMENT:
            break
        adapted.zero_grad()
        loss.mean.backward()
        for name, weight in adapted.named_parameters():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            if rms:
                pull = torch.clamp(DECAY * roots[name] / mean, max=1)
                step = (1 + EPSILON) / (roots[name] / mean + EPSILON) * gradient
                change = -RATE * step + pull * (trained[name] - weight.data)
            else:
                change = -RATE * gradient + DECAY * (trained[name] - weight.data)
            weight.data = weight.data + change
    return torch.cat(nats).numpy(), dict(adapted.named_parameters())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rms", [True, False])
@pytest.mark.parametrize("chunk_length", [1, 7, 100])
def test_weights_take_the_steps_of_the_paper_however_a_text_is_cut(variant, rms, chunk_length):
    lm = build(VARIANTS[variant])
    text = a_text(43)
    wanted, _ = expected(lm, text, rms=rms)
    found = surprisals(dynamic(lm, rms=rms), text, chunk_length=chunk_length)
    np.testing.assert_allclose(found, wanted)
    assert np.abs(found - surprisals(lm, text)).max() > 0.05


@pytest.mark.parametrize("rms", [True, False])
def test_a_state_holds_the_adapted_weights(rms):
    lm = build()
    inputs, targets = as_read(a_text(20))
    adapting = dynamic(lm, rms=rms)
    _, state = adapting.score(inputs, targets, adapting.start(1))
    _, wanted = expected(lm, a_text(20), rms=rms)
    for name, weight in state.model.named_parameters():
        torch.testing.assert_close(weight, wanted[name])


def test_steps_and_scores_go_on_from_each_other():
    adapting = dynamic(build())
    inputs, targets = as_read(a_text(41))
    whole, _ = adapting.score(inputs, targets, adapting.start(1))
    for cuts in (range(42), [0, 1, 2, 9, 10, 11, 25, 26, 27, 28, 29, 30, 31, 41]):
        state, parts = adapting.start(1), []
        for begin, end in itertools.pairwise(cuts):
            if end - begin == 1:
                log_probs, state = adapting.step(inputs[begin], state)
                torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
                parts.append(log_probs.gather(1, targets[begin, :, None]))
            else:
                log_probs, state = adapting.score(inputs[begin:end], targets[begin:end], state)
                parts.append(log_probs)
        torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("read", [10, 13])  # at the end of a segment, and within one
def test_a_selected_state_goes_on_by_itself(read):
    adapting = dynamic(build())
    inputs, targets = as_read(a_text(40))
    _, state = adapting.score(inputs[:read], targets[:read], adapting.start(1))
    kept = adapting.select(state, torch.tensor([0]))
    first, _ = adapting.score(inputs[read:], targets[read:], state)
    second, _ = adapting.score(inputs[read:], targets[read:], kept)
    assert torch.equal(first, second)


def test_a_state_that_is_spent_is_not_read_again():
    """Some models write into the state they are given."""
    lm = build()
    inputs, targets = as_read(a_text(23))
    wanted, _ = dynamic(lm).score(inputs, targets, dynamic(lm).start(1))
    adapting = dynamic(lm)
    state = adapting.start(1)
    score = state.model.score

    def spending(read, following, inner):
        given = copy.deepcopy(inner)
        map_state(lambda tensor: tensor.data.fill_(math.nan), inner)
        return score(read, following, given)

    state.model.score = spending
    first, state = adapting.score(inputs[:7], targets[:7], state)
    second, _ = adapting.score(inputs[7:], targets[7:], state)
    torch.testing.assert_close(torch.cat([first, second]), wanted)


def test_the_model_stays_as_it_was_after_errors_too():
    lm = build().train()
    lm.embedding.weight.requires_grad_(False)
    before = copy.deepcopy(lm.state_dict())
    adapting = dynamic(lm)
    surprisals(adapting, a_text(30))
    inputs, targets = as_read(a_text(30))
    _, state = adapting.score(inputs[:7], targets[:7], adapting.start(1))
    with pytest.raises(RuntimeError, match="out of bounds"):
        adapting.score(inputs[7:], targets[7:] + 1000, state)
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())
    assert all(weight.grad is None for weight in lm.parameters())
    assert all(part.training for part in lm.modules())
    assert [name for name, weight in lm.named_parameters() if not weight.requires_grad] == ["embedding.weight"]


def test_without_steps_it_is_the_model():
    lm = build()
    np.testing.assert_allclose(surprisals(dynamic(lm, learning_rate=0.0), a_text(30)), surprisals(lm, a_text(30)))


@pytest.mark.parametrize("rms", [True, False])
def test_a_text_that_repeats_itself_is_learnt(rms):
    lm = build(dataclasses.replace(PLAIN, tied=False))
    text = np.tile(a_text(10), 20)
    adapting = dynamic(lm, rms=rms, learning_rate=0.5, decay=0.0, epsilon=5.0)
    assert surprisals(adapting, text)[-10:].mean() < surprisals(lm, text)[-10:].mean() - 1


def test_gradients_made_of_rows_do_as_well():
    settings = dataclasses.replace(PLAIN, tied=False)
    dense, sparse = build(settings), build(settings)
    set_row_sparse(sparse.embedding.weight, True)
    found, wanted = (gradient_statistics(lm, training_batches()) for lm in (sparse, dense))
    for name, squares in wanted.items():
        torch.testing.assert_close(found[name], squares)
    np.testing.assert_allclose(surprisals(dynamic(sparse), a_text(30)), surprisals(dynamic(dense), a_text(30)))


def test_statistics_are_mean_squares_of_gradients_of_mean_losses():
    lm = build().train()
    found = gradient_statistics(lm, training_batches())
    plain = copy.deepcopy(lm).eval()
    sums = {name: torch.zeros_like(weight) for name, weight in plain.named_parameters()}
    state = None
    for batch in training_batches():
        loss, state = plain(batch, state)
        state = plain.detach(state)
        plain.zero_grad()
        (loss.nats / 24).backward()
        for name, weight in plain.named_parameters():
            sums[name] += weight.grad**2
    assert found.keys() == sums.keys()
    for name, total in sums.items():
        torch.testing.assert_close(found[name], total.detach() / 5)
    assert all(weight.grad is None for weight in lm.parameters())


def test_only_one_row_is_read():
    adapting = dynamic(build())
    with pytest.raises(UserError, match="asked for 3 rows side by side: read the text as one row"):
        adapting.start(3)
    with pytest.raises(UserError, match="asked for 2 side by side: use a beam and a batch of 1"):
        adapting.select(adapting.start(1), torch.tensor([0, 0]))


def test_divergence_is_said():
    with pytest.raises(UserError, match=r"has diverged, with a loss of (nan|inf) .* below 1e\+200"):
        surprisals(dynamic(build(), learning_rate=1e200, rms=False), a_text(50))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": -1.0}, "expected at least 0, got -1.0"),
        ({"learning_rate": math.nan}, "expected at least 0, got nan"),
        ({"decay": 1.5}, "from 0 to 1, got 1.5"),
        ({"segment": 0}, "1 token or more, got 0"),
        ({"epsilon": 0.0}, "above 0, got 0.0"),
        ({"model": HistoryLM.random(3)}, "itself trained by gradient, got HistoryLM"),
        ({"model": Mixture([build()], [1.0])}, "got Mixture: give one alone"),
        ({"model": NeuralCache(build(), size=3, theta=0.1, weight=0.5)}, "got NeuralCache: give one alone"),
        ({"model": build(HASHED)}, "the 256 of this model's hashed n-grams .* --maxent-order 0"),
        ({"model": MaxEntLM(MaxEntSettings(bits=9, classes=3), VOCABULARY)}, "the 512 of this model's hashed"),
        ({"model": build(dataclasses.replace(PLAIN, reset="lines"))}, "forgets it at every line end"),
        ({"statistics": {"embedding.weight": torch.ones(2)}}, "statistics of another model: bridge.bias differs"),
        (
            {"statistics": {name: torch.zeros_like(weight) for name, weight in build().named_parameters()}},
            "with a mean root of 0.0",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        DynamicEvaluation(**{"model": build(), "learning_rate": RATE, "decay": DECAY} | change)


def test_no_batches_give_no_statistics():
    with pytest.raises(UserError, match="one batch or more, got none"):
        gradient_statistics(build(), [])


def test_statistics_are_of_models_that_can_be_adapted():
    for lm in (HistoryLM.random(3), build(HASHED)):
        with pytest.raises(UserError, match="dynamic evaluation"):
            gradient_statistics(lm, training_batches())


def test_a_tied_model_has_one_matrix_of_words():
    lm = build(VARIANTS["tied"])
    assert lm.output.weight is lm.embedding.weight
    untied = build(VARIANTS["untied gru, 2 layers"])
    assert untied.output.weight is not untied.embedding.weight

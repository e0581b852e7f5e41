"""Gradients through time: everything against T backward passes of autograd, or equations written out here."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recurra import gradients, nn
from recurra.cli import main
from recurra.config import UserError
from recurra.gradients import Bound, GradientMap, Unrolled
from recurra.language_model import LanguageModel
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.optimization import clip_gradients
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

STEPS, INPUT_SIZE, CLASSES = 12, 3, 7
STACKS = {
    "rnn tanh": partial(nn.RNN, INPUT_SIZE, 4),
    "rnn relu": partial(nn.RNN, INPUT_SIZE, 4, 2, "relu"),
    "rnn sigmoid, 3 layers": partial(nn.RNN, INPUT_SIZE, 4, 3, "sigmoid"),
    "lstm": partial(nn.LSTM, INPUT_SIZE, 4),
    "lstm, 2 layers": partial(nn.LSTM, INPUT_SIZE, 4, 2),
    "lstm, 3 layers": partial(nn.LSTM, INPUT_SIZE, (5, 4, 2)),
    "lstm projected, 2 layers": partial(nn.LSTM, INPUT_SIZE, 5, 2, proj_size=3),
    "lstm layer norm": partial(nn.LSTM, INPUT_SIZE, 4, 2, layer_norm=True),
    "lstm zoneout": partial(nn.LSTM, INPUT_SIZE, 4, 2, zoneout=(0.1, 0.4)),
    "gru": partial(nn.GRU, INPUT_SIZE, 4),
    "gru, 3 layers": partial(nn.GRU, INPUT_SIZE, 4, 3),
    "gru reset before, 2 layers": partial(nn.GRU, INPUT_SIZE, 4, 2, reset="before"),
    "gru residual": partial(nn.GRU, INPUT_SIZE, 4, 3, connections="residual"),
    "gru dense": partial(nn.GRU, INPUT_SIZE, 4, 3, connections="dense"),
    "gru highway, dropout": partial(nn.GRU, INPUT_SIZE, 4, 3, connections="highway", between_dropout=0.5),
}
WEIGHTS = ["rnn tanh", "rnn relu", "lstm", "lstm, 3 layers", "lstm projected, 2 layers", "gru dense"]
WEIGHTS += ["gru, 3 layers", "gru reset before, 2 layers"]


def made(name, seed=0, steps=STEPS):
    """A stack, its inputs and the losses of its outputs."""
    torch.manual_seed(seed)
    stack = STACKS[name]().double().eval()
    inputs = torch.randn(steps, INPUT_SIZE, dtype=torch.float64)
    scores = torch.nn.Linear(stack.output_size, CLASSES).double()
    targets = torch.randint(CLASSES, (steps,))
    return stack, inputs, lambda outputs: F.cross_entropy(scores(outputs), targets, reduction="none")


def by_backward_passes(stack, inputs, loss, part):
    """Norms [L, T, T] of the gradients with respect to a part of the state, a backward pass for each t."""
    outputs, _, trace = stack(inputs[:, None], trace=True)
    losses = loss(outputs[:, 0])
    norms = np.zeros((stack.num_layers, len(inputs), len(inputs)))
    for layer in range(stack.num_layers):
        for t in range(len(inputs)):
            found = torch.autograd.grad(
                losses[t], trace.layers[layer][0][part], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            norms[layer, t] = [float(gradient.norm()) for gradient in found]
    return norms


@pytest.mark.parametrize("name", STACKS)
def test_all_pairs_are_those_of_backward_passes(name):
    stack, inputs, loss = made(name)
    unrolled = Unrolled(stack, inputs, loss)
    found = gradients.gradient_map(unrolled)
    np.testing.assert_allclose(found.hidden, by_backward_passes(stack, inputs, loss, "hidden"), rtol=1e-9, atol=1e-15)
    assert (found.hidden[:, *np.triu_indices(STEPS, 1)] == 0).all()
    if stack.state_type is nn.LSTMState:
        np.testing.assert_allclose(found.cell, by_backward_passes(stack, inputs, loss, "cell"), rtol=1e-9, atol=1e-15)
    else:
        assert found.cell is None
    outputs, _ = stack(inputs[:, None])
    torch.testing.assert_close(unrolled.losses, loss(outputs[:, 0]).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("stride", [2, 3, 5, 12])
def test_a_stride_takes_some_of_the_rows(stride):
    unrolled = Unrolled(*made("lstm, 2 layers"))
    every, some = gradients.gradient_map(unrolled), gradients.gradient_map(unrolled, stride=stride)
    assert some.steps.tolist() == list(range(stride - 1, STEPS, stride))
    np.testing.assert_allclose(some.hidden, every.hidden[:, some.steps], rtol=1e-12)
    np.testing.assert_allclose(some.cell, every.cell[:, some.steps], rtol=1e-12)


def test_nothing_comes_back_over_a_start():
    stack, inputs, loss = made("lstm, 2 layers")
    cut = 5
    whole = gradients.gradient_map(Unrolled(stack, inputs, loss, starts=(cut,)))

    def padded(part):
        return torch.cat((part, part.new_zeros(STEPS - len(part), part.shape[1])))

    first = by_backward_passes(stack, inputs[:cut], lambda outputs: loss(padded(outputs))[:cut], "hidden")
    second = by_backward_passes(stack, inputs[cut:], lambda outputs: loss(padded(outputs).roll(cut, 0))[cut:], "hidden")
    assert whole.starts == (0, cut)
    np.testing.assert_allclose(whole.hidden[:, :cut, :cut], first, rtol=1e-9)
    np.testing.assert_allclose(whole.hidden[:, cut:, cut:], second, rtol=1e-9)
    assert (whole.hidden[:, cut:, :cut] == 0).all()


def test_one_step_of_text():
    found = gradients.gradient_map(Unrolled(*made("gru", steps=1)))
    assert found.hidden.shape == (1, 1, 1)
    curve = gradients.decay(found)
    assert curve.relative.tolist() == [1]
    assert math.isnan(curve.half_life)


@pytest.mark.parametrize("target", [None, 0, 7, STEPS - 1])
@pytest.mark.parametrize("name", WEIGHTS)
def test_contributions_of_steps_sum_to_the_gradient_of_the_weights(name, target):
    stack, inputs, loss = made(name)
    outputs, _ = stack(inputs[:, None])
    losses = loss(outputs[:, 0])
    weights = [stack.weights(layer).weight_hh for layer in range(stack.num_layers)]
    expected = torch.autograd.grad(losses.sum() if target is None else losses[target], weights)
    found = gradients.weight_contributions(Unrolled(stack, inputs, loss), target=target)
    for each, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(each.total, gradient, rtol=1e-10, atol=1e-14)
        if target == 0:  # h(-1) is 0: W_h had nothing to act on
            assert each.shares.tolist() == [0] * STEPS
        else:
            assert each.shares.sum() == pytest.approx(1, abs=1e-10)
        assert (each.norms[(STEPS if target is None else target + 1) :] == 0).all()


def test_the_contribution_of_each_step_is_that_of_a_copy_of_the_weights_used_there_alone():
    stack, inputs, loss = made("rnn tanh")
    own = stack.weights(0)
    copies = [own.weight_hh.detach().clone().requires_grad_() for _ in range(STEPS)]
    hidden, outputs = torch.zeros(4, dtype=torch.float64), []
    for x, copy in zip(inputs, copies, strict=True):
        hidden = torch.tanh(own.weight_ih @ x + own.bias_ih + copy @ hidden + own.bias_hh)
        outputs.append(hidden)
    expected = torch.autograd.grad(loss(torch.stack(outputs)).sum(), copies)
    (found,) = gradients.weight_contributions(Unrolled(stack, inputs, loss))
    np.testing.assert_allclose(found.norms, [float(part.norm()) for part in expected], rtol=1e-10)
    total = sum(expected)
    shares = [float((part * total).sum() / total.square().sum()) for part in expected]
    np.testing.assert_allclose(found.shares, shares, rtol=1e-9)


# ---- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rnn relu", "lstm", "lstm projected, 2 layers", "gru", "gru reset before, 2 layers"])
@pytest.mark.parametrize("step", [0, 6])
def test_the_jacobian_of_a_step_is_that_of_the_layer(name, step):
    stack, inputs, loss = made(name)
    layer = stack.num_layers - 1
    _, _, trace = stack(inputs[:, None], trace=True)
    found = gradients.state_jacobian(Unrolled(stack, inputs, loss), step, layer)
    width = stack.hidden_widths[-1]

    def parts(t):
        values = trace.layers[layer][0]
        return [values[part][t][0].detach() for part in ("hidden", "cell") if part in values]

    def after(state):
        """The layer's state after the step, given the one before; the layers below are as they were."""
        cut = [state] if len(state) == width else state.split((width, stack.hidden_sizes[-1]))
        own = stack.weights(layer)
        reads = inputs[step] if layer == 0 else trace.layers[layer - 1][0]["hidden"][step][0].detach()
        driven = own.weight_ih @ reads + own.bias_ih
        new, _ = stack.bind(own, None)(driven[None], stack.state_type(*(part[None] for part in cut)))
        return torch.cat([part[0] for part in new])

    before = [part * 0 for part in parts(0)] if step == 0 else parts(step - 1)
    expected = torch.autograd.functional.jacobian(after, torch.cat(before))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_the_lstms_split_is_that_of_the_equations():
    stack, inputs, loss = made("lstm")
    step = 7
    _, _, trace = stack(inputs[:, None], trace=True)
    value = {name: [each[0].detach().numpy() for each in steps] for name, steps in trace.layers[0][0].items()}
    w = stack.weights(0).weight_hh.detach().numpy()
    w_input, w_forget, w_candidate, _ = np.split(w, 4)
    before = value["cell"][step - 1]
    f, i, g = (value[name][step] for name in ("forget", "input", "candidate"))
    by_hidden = (
        (before * f * (1 - f))[:, None] * w_forget
        + (g * i * (1 - i))[:, None] * w_input
        + (i * (1 - g**2))[:, None] * w_candidate
    )
    rest = by_hidden * (value["output"][step - 1] * (1 - np.tanh(before) ** 2))
    found = gradients.split(Unrolled(stack, inputs, loss), step, 0)
    np.testing.assert_allclose(found.gate, f, rtol=1e-12)
    np.testing.assert_allclose(found.rest, rest, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.total, np.diag(f) + rest, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["gru", "gru reset before, 2 layers"])
def test_the_grus_split_sums_to_the_jacobian(name):
    unrolled = Unrolled(*made(name))
    _, _, trace = unrolled.stack(unrolled.inputs[:, None], trace=True)
    found = gradients.split(unrolled, 4, 0)
    torch.testing.assert_close(found.gate, trace.layers[0][0]["update"][4][0].detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.total, gradients.state_jacobian(unrolled, 4, 0))
    assert float(found.rest.norm()) > 0


def test_what_cannot_be_split_is_refused():
    with pytest.raises(UserError, match="no gate"):
        gradients.split(Unrolled(*made("rnn tanh")), 3, 0)
    with pytest.raises(UserError, match="zoneout"):
        gradients.split(Unrolled(*made("lstm zoneout")), 3, 0)
    with pytest.raises(UserError, match="no step before"):
        gradients.split(Unrolled(*made("lstm")), 0, 0)
    with pytest.raises(UserError, match="no step before"):
        gradients.split(Unrolled(*made("lstm"), starts=(3,)), 3, 0)


# ---- bounds ---------------------------------------------------------------------------------------------------------


def rnn_with(matrix, nonlinearity):
    stack = nn.RNN(2, 2, nonlinearity=nonlinearity).double().eval()
    with torch.no_grad():
        stack.weight_hh_l0.copy_(torch.tensor(matrix))
    return stack


@pytest.mark.parametrize(
    ("matrix", "nonlinearity", "largest", "radius", "must_vanish"),
    [
        ([[0.0, 0.9], [-0.9, 0.0]], "tanh", 0.9, 0.9, True),  # a turned and shrunk plane
        ([[0.5, 3.0], [0.0, 0.5]], "tanh", 3.0811, 0.5, False),  # its radius is small, its singular value is not
        ([[0.0, 3.9], [-3.9, 0.0]], "sigmoid", 3.9, 3.9, True),  # below 1 / gamma = 4
        ([[0.0, 4.1], [-4.1, 0.0]], "sigmoid", 4.1, 4.1, False),
        ([[1.1, 0.0], [0.0, 0.2]], "relu", 1.1, 1.1, False),
    ],
)
def test_the_bound_of_pascanu_on_constructed_matrices(matrix, nonlinearity, largest, radius, must_vanish):
    (bound,) = gradients.recurrent_bounds(rnn_with(matrix, nonlinearity), 0)
    assert bound.largest_singular == pytest.approx(largest, abs=1e-4)
    assert bound.spectral_radius == pytest.approx(radius, abs=1e-7)
    assert bound.gamma == (0.25 if nonlinearity == "sigmoid" else 1)
    assert bound.must_vanish == must_vanish
    assert bound.may_explode != must_vanish
    assert gradients.verdict([bound], []) == ("vanish" if must_vanish else "neither can be said")


def test_the_verdict_is_true_of_gradients():
    """W_h that turns and doubles, with all units of a relu at work: each step makes the gradient twice as long."""
    stack = rnn_with([[2.0, 0.0], [0.0, 2.0]], "relu")
    with torch.no_grad():
        stack.weight_ih_l0.fill_(1.0)
    inputs = torch.ones(6, 2, dtype=torch.float64)
    unrolled = Unrolled(stack, inputs, lambda outputs: outputs.sum(1))
    values = [torch.linalg.svdvals(gradients.state_jacobian(unrolled, step, 0)) for step in range(6)]
    assert gradients.verdict(gradients.recurrent_bounds(stack, 0), values) == "explode"
    curve = gradients.decay(gradients.gradient_map(unrolled))
    np.testing.assert_allclose(curve.relative, 2.0 ** np.arange(6), rtol=1e-12)
    assert math.isinf(curve.half_life)


def test_a_verdict_needs_every_jacobian():
    gated = [Bound("forget", 0.3, 0.2, None)]  # no bound: small weights say nothing where the state passes beside them
    assert gradients.verdict(gated, []) == "neither can be said"
    assert gradients.verdict(gated, [[0.9, 0.1], [0.8, 0.3]]) == "vanish"
    assert gradients.verdict(gated, [[0.9, 0.1], [1.1, 0.3]]) == "neither can be said"
    assert gradients.verdict(gated, [[1.9, 1.1], [1.3, 1.2]]) == "explode"


def test_gates_have_their_own_rows_of_the_weights():
    stack = nn.LSTM(2, 3)
    with torch.no_grad():
        for number, block in enumerate(stack.weight_hh_l0.chunk(4), start=1):
            block.copy_(number * torch.eye(3))
    bounds = gradients.recurrent_bounds(stack, 0)
    found = {bound.gate: bound.largest_singular for bound in bounds}
    assert found == pytest.approx({"input": 1, "forget": 2, "candidate": 3, "output": 4})
    assert all(bound.gamma is None for bound in bounds)
    assert gradients.recurrent_bounds(nn.LSTM(2, 3, proj_size=2), 0)[0].spectral_radius is None
    assert gradients.recurrent_bounds(nn.RNN(2, 3, layer_norm=True), 0)[0].gamma is None


# ---- against distance -----------------------------------------------------------------------------------------------


def test_the_half_life_of_a_made_up_exponential():
    k = np.arange(1, 60)
    assert gradients.half_life(k, 3 * 0.5 ** (k / 7)) == pytest.approx(7)
    spoilt = 0.5 ** (k / 7)
    spoilt[::5] *= 1000
    assert gradients.half_life(k, spoilt) == pytest.approx(7, rel=0.02)
    spoilt[3], spoilt[4] = 0, np.nan
    assert gradients.half_life(k, spoilt) == pytest.approx(7, rel=0.02)
    assert math.isinf(gradients.half_life(k, np.ones(59)))
    assert math.isnan(gradients.half_life([1], [0.5]))
    k = np.arange(5000)
    assert gradients.half_life(k, 0.5 ** (k / 100)) == pytest.approx(100)


def test_decay_is_the_mean_over_losses_within_a_run():
    steps, starts = np.arange(8), (0, 5)
    norms = np.zeros((1, 8, 8))
    for t in steps:
        for i in range(0 if t < 5 else 5, t + 1):
            norms[0, t, i] = (1 + t) * 0.5 ** ((t - i) / 2)  # each t has a size of its own
    curve = gradients.decay(GradientMap(steps, norms, None, starts))
    assert curve.counts.tolist() == [8, 6, 4, 2, 1]
    np.testing.assert_allclose(curve.relative, 0.5 ** (np.arange(5) / 2))
    assert curve.half_life == pytest.approx(2)
    assert curve.fitted == 2


def test_clipping_is_what_training_does():
    weight = torch.nn.Parameter(torch.zeros(3))
    lines, left = [{"step": 1, "valid": 3.0}], []
    for step, size in enumerate((0.1, 0.9, 5.0), start=1):
        weight.grad = torch.full((3,), size)
        lines.append({"step": step, "gradient_norm": float(clip_gradients([weight], norm=1.0, value=None))})
        left.append(float(weight.grad.norm()))
    found = gradients.clipping(lines, clip_norm=1.0)
    assert found.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.after, left, rtol=1e-5)
    assert found.acted.tolist() == [False, True, True]
    assert not gradients.clipping(lines, clip_norm=0).acted.any()
    with pytest.raises(UserError, match="clipped by value"):
        gradients.clipping(lines, clip_norm=1.0, clip_value=0.5)
    with pytest.raises(UserError, match="no gradient norms"):
        gradients.clipping(lines[:1], clip_norm=1.0)


# ---- models ---------------------------------------------------------------------------------------------------------

TEXT = "the cat sat on the mat\nthe dog sat on the log\nthe cow sat\n" * 3
SETTINGS = {"hidden_size": 6, "embedding_size": 5, "layers": 2, "tied": False}


def model_of(tokenizer="words", **settings):
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer=tokenizer))
    chosen = RecurrentLMSettings(**{**SETTINGS, "output": "full", **settings})
    return LanguageModel(RecurrentLM(chosen, tokens.vocabulary).double().eval(), tokens)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cell": "gru", "reset": "lines"},
        {"output": "adaptive", "cutoffs": (4,)},
        {"output": "classes", "classes": 3, "maxent_order": 3, "maxent_bits": 8, "maxent_cutoffs": (1,)},
        {"output": "sampled", "samples": 3},
        {"projection_size": 4, "connections": "residual"},
    ],
    ids=str,
)
def test_losses_of_a_model_are_its_surprisals(settings):
    lm = model_of(**settings)
    tokens = lm.tokenizer.encode(TEXT)
    if lm.model.hashed is not None:
        lm.model.assign_ngrams(tokens)
        torch.nn.init.normal_(lm.model.output.hashed.table)
    starts = [0, *(np.flatnonzero(tokens[:-1] == 1) + 1)] if lm.model.settings.reset == "lines" else []
    unrolled = gradients.unroll_model(lm.model, tokens, starts=starts)
    expected = [nats for _, nats in lm.surprisal(TEXT)]
    np.testing.assert_allclose(unrolled.losses, expected, rtol=1e-6)
    found = gradients.gradient_map(unrolled, stride=4)
    assert (found.hidden[:, np.arange(len(found.steps)), found.steps] > 0).all()


def test_pairs_of_a_model_are_those_of_backward_passes():
    lm = model_of(cell="gru", output_norm=True)
    model, tokens = lm.model, torch.from_numpy(lm.tokenizer.encode(TEXT)[:STEPS].astype(np.int64))
    read = torch.cat((torch.ones(1, dtype=torch.long), tokens[:-1]))
    outputs, _, trace = model.recurrent(model.embedding(read)[:, None], trace=True)
    losses = -model.output.log_probs(model.output_norm(model.bridge(outputs)))[range(STEPS), 0, tokens]
    found = gradients.gradient_map(gradients.unroll_model(model, tokens.numpy()))
    for layer in range(2):
        for t in range(STEPS):
            hidden = trace.layers[layer][0]["hidden"]
            expected = torch.autograd.grad(
                losses[t], hidden, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            np.testing.assert_allclose(
                found.hidden[layer, t], [float(each.norm()) for each in expected], rtol=1e-8, atol=1e-15
            )


def test_mistakes_are_told():
    unrolled = Unrolled(*made("lstm, 2 layers"))
    assert [gradients.find_layer(unrolled, number) for number in (None, 1, 2)] == [1, 0, 1]
    for number in (0, 3):
        with pytest.raises(UserError, match=f"layer {number}: the model has 2"):
            gradients.find_layer(unrolled, number)
    with pytest.raises(UserError, match="stride 13 is longer"):
        gradients.gradient_map(unrolled, stride=13)
    with pytest.raises(UserError, match="step 12: the text has 12"):
        gradients.weight_contributions(unrolled, target=12)
    with pytest.raises(UserError, match="no gradients through time"):
        gradients.unroll_model(torch.nn.Linear(2, 2), [2, 3])
    with pytest.raises(UserError, match="empty"):
        gradients.unroll_model(model_of().model, [])
    with pytest.raises(UserError, match="expected rnn, lstm or gru"):
        gradients.fresh("elman")
    stack, inputs, loss = made("gru")
    with pytest.raises(ValueError, match="eval"):
        Unrolled(stack.train(), inputs, loss)
    with pytest.raises(ValueError, match="one direction"):
        Unrolled(nn.GRU(3, 4, bidirectional=True).double().eval(), inputs, loss)


def test_a_map_that_is_too_large_says_how_large_and_what_helps():
    gradients.check_size(2, 1000, 1, 16e6)
    with pytest.raises(UserError, match=r"take 3\.2 GB of memory, there are 1: give --stride 8 ") as told:
        gradients.check_size(2, 10_000, 1, 1e9, parts=2)
    stride = int(str(told.value).split("--stride ")[1].split()[0])
    gradients.check_size(2, 10_000, stride, 1e9, parts=2)


def test_fresh_layers_are_the_same_for_the_same_seed_and_disturb_nothing():
    state = torch.get_rng_state()
    first, again, other = (gradients.fresh("gru", hidden_size=4, length=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.losses, again.losses)
    assert not torch.equal(first.losses, other.losses)
    scaled = gradients.fresh("rnn", hidden_size=4, length=5, recurrent_scale=3.0)
    plain = gradients.fresh("rnn", hidden_size=4, length=5)
    torch.testing.assert_close(scaled.stack.weight_hh_l0, 3 * plain.stack.weight_hh_l0)


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    lm = model_of()
    LanguageModel(lm.model.float(), lm.tokenizer, settings={"training": {"clip_norm": 0.5, "clip_value": 0.0}}).save(
        tmp_path / "m"
    )
    lines = [{"step": 10 * n, "gradient_norm": n / 4} for n in range(1, 5)]
    (tmp_path / "m" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def refused(capsys, *arguments):
    status = main(["gradients", *map(str, arguments)])
    output, errors = capsys.readouterr()
    assert (status, output, errors.count("\n")) == (2, "", 1)
    return errors


def test_the_command_prints_what_was_found(folder, capsys):
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), "--length", "20"]) == 0
    output = capsys.readouterr().out
    assert "LSTM, 2 layers of 6 units, 20 tokens" in output
    assert "layer 2" in output
    assert "half-life" in output
    assert "diag(forget) + rest" in output
    assert "verdict: " in output
    assert "clipping acted at 2 of them, 50.0 %" in output


def test_json_has_the_numbers(folder, capsys):
    flags = ["--length", "15", "--layer", "1", "--stride", "2", "--json"]
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    lm = LanguageModel.load(folder / "m")
    unrolled = gradients.unroll_model(lm.model.double(), lm.tokenizer.encode(TEXT)[:15])
    expected = gradients.gradient_map(unrolled, stride=2)
    np.testing.assert_allclose(found["pairs"]["hidden"], expected.hidden[0])
    np.testing.assert_allclose(found["losses"], unrolled.losses)
    assert found["pairs"]["t"] == [1, 3, 5, 7, 9, 11, 13]
    assert found["layer"] == 1
    assert found["decay"]["relative"][0] == 1
    assert found["clipping"]["before"] == [0.25, 0.5, 0.75, 1.0]
    assert found["clipping"]["clip_norm"] == 0.5
    assert sum(found["weight_gradient"]["shares"]) == pytest.approx(1)
    assert len(found["jacobians"]) == 8


@pytest.mark.parametrize("picture", ["map", "decay", "weights", "clipping"])
def test_pictures(folder, capsys, picture):
    pytest.importorskip("matplotlib")
    path = folder / ("picture.svg" if picture == "map" else "picture.png")
    flags = ["--length", "12", "--jacobians", "0", "--picture", picture, "-o", str(path)]
    assert main(["gradients", str(folder / "m"), str(folder / "text.txt"), *flags]) == 0
    assert path.read_bytes().startswith(b"<?xml" if picture == "map" else b"\x89PNG")


def test_fresh_layers_side_by_side(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    flags = ["--cell", "rnn,lstm,gru", "--hidden-size", "8", "--length", "20", "-o", str(tmp_path / "decay.png")]
    assert main(["gradients", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["cell"] for each in found] == ["rnn", "lstm", "gru"]
    assert (tmp_path / "decay.png").exists()
    assert found[0]["verdict"] in ("vanish", "neither can be said")


def test_the_command_tells_mistakes(folder, capsys, monkeypatch):
    model, text = folder / "m", folder / "text.txt"
    assert "expected the folder" in refused(capsys)
    assert "not both" in refused(capsys, model, "--cell", "rnn")
    assert "--seed: means nothing to a trained model" in refused(capsys, model, text, "--seed", "1")
    assert "layer 3: the model has 2" in refused(capsys, model, text, "--layer", "3")
    assert "not there any more: give a TEXT" in refused(capsys, model)
    assert "give -o FILE" in refused(capsys, model, text, "--picture", "map")
    assert "shows one model" in refused(capsys, model, text, "--compare", model, "--picture", "map", "-o", "x.png")
    arpa = folder / "m.arpa"
    arpa.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\n-0.05\t</s>\n\n\\end\\\n")
    assert "no gradients through time" in refused(capsys, arpa, text)
    monkeypatch.setattr("recurra.planning.available_memory", lambda: 1e3)
    assert "GB of memory" in refused(capsys, model, text)
    (model / "log.jsonl").write_text("{}\nnonsense\n")
    monkeypatch.undo()
    assert "log.jsonl, line 2" in refused(capsys, model, text)

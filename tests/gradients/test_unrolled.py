"""What is unrolled: models, fresh layers, and what cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradients.stacks import TEXT, made, model_of
from recurra import gradients, nn
from recurra.config import UserError
from recurra.gradients import Unrolled


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


def test_mistakes_are_told():
    unrolled = Unrolled(*made("lstm, 2 layers"))
    assert [gradients.find_layer(unrolled, number) for number in (None, 1, 2)] == [1, 0, 1]
    for number in (0, 3):
        with pytest.raises(UserError, match=f"layer {number}: the model has 2"):
            gradients.find_layer(unrolled, number)
    for stride in (13, 500):
        with pytest.raises(UserError, match=f"stride {stride} is longer"):
            gradients.gradient_map(unrolled, stride=stride)
    with pytest.raises(UserError, match="step 12: the text has 12"):
        gradients.weight_contributions(unrolled, target=12)
    with pytest.raises(UserError, match="no gradients through time"):
        gradients.unroll_model(torch.nn.Linear(2, 2), [2, 3])
    with pytest.raises(UserError, match="empty"):
        gradients.unroll_model(model_of().model, [])
    with pytest.raises(UserError, match="expected rnn, lstm or gru"):
        gradients.fresh("elman")
    for option, message in (
        ({"recurrent_scale": math.nan}, "recurrent_scale: expected a finite number, got nan"),
        ({"recurrent_scale": -math.inf}, "recurrent_scale: expected a finite number, got -inf"),
        ({"seed": 10**23}, "seed: expected 0 to 9007199254740992, got 1000"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"forget_bias": 1.0}, "forget_bias: only an lstm has a forget gate"),
    ):
        with pytest.raises(UserError, match=message):
            gradients.fresh("rnn", hidden_size=2, length=2, **option)
    with pytest.raises(UserError, match="forget_bias: expected a finite number"):
        gradients.fresh("lstm", hidden_size=2, length=2, forget_bias=math.inf)
    stack, inputs, loss = made("gru")
    with pytest.raises(ValueError, match="eval"):
        Unrolled(stack.train(), inputs, loss)
    with pytest.raises(ValueError, match="one direction"):
        Unrolled(nn.GRU(3, 4, bidirectional=True).double().eval(), inputs, loss)


def test_fresh_layers_are_the_same_for_the_same_seed_and_disturb_nothing():
    state = torch.get_rng_state()
    first, again, other = (gradients.fresh("gru", hidden_size=4, length=5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.losses, again.losses)
    assert not torch.equal(first.losses, other.losses)
    scaled = gradients.fresh("rnn", hidden_size=4, length=5, recurrent_scale=3.0)
    plain = gradients.fresh("rnn", hidden_size=4, length=5)
    torch.testing.assert_close(scaled.stack.weight_hh_l0, 3 * plain.stack.weight_hh_l0)
    open_gates = gradients.fresh("lstm", hidden_size=4, layers=2, length=5, forget_bias=3.0).stack
    for layer in (0, 1):
        own = open_gates.weights(layer)
        assert (own.bias_ih + own.bias_hh)[4:8].tolist() == [3] * 4
    single = gradients.fresh("gru", hidden_size=4, length=5, dtype=torch.float32)
    assert single.losses.dtype == torch.float32
    torch.testing.assert_close(single.losses.double(), first.losses, rtol=1e-5, atol=0)


def test_states_and_losses_that_are_not_finite_are_told():
    with pytest.raises(UserError, match=r"the state is not finite from step \d+ on; shorten the text \(--length\)"):
        gradients.fresh("rnn", hidden_size=8, nonlinearity="relu", recurrent_scale=400.0, length=400)
    stack, inputs, loss = made("gru")
    with pytest.raises(UserError, match="the state is not finite from step 3 on"):
        Unrolled(stack, inputs.index_fill(0, torch.tensor([3]), math.nan), loss)
    with pytest.raises(UserError, match="the loss is not finite at step 5"):
        Unrolled(stack, inputs, lambda outputs: loss(outputs) / (torch.arange(12) - 5).abs())


def test_steps_with_a_step_before_them():
    unrolled = Unrolled(*made("gru"), starts=(0, 4))
    assert unrolled.continued == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]

"""What is unrolled: models, fresh layers, and what cannot be."""

from __future__ import annotations

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

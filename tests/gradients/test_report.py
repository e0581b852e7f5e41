"""All that is found of a layer over a text: numbers, and the text made of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from gradients.stacks import STACKS, STEPS, made
from gradients.test_pairs import overflowing
from recurra import gradients
from recurra.config import UserError
from recurra.files import finite
from recurra.gradients import Clipping, Unrolled


@pytest.mark.parametrize("name", STACKS)
def test_a_report_has_what_its_parts_find(name):
    unrolled = Unrolled(*made(name))
    found = gradients.measure(unrolled, name="a name", jacobians=3)
    layer = unrolled.stack.num_layers - 1
    assert found.layer == layer
    assert found.is_highest
    expected = gradients.gradient_map(unrolled)
    np.testing.assert_array_equal(found.map.hidden, expected.hidden)
    np.testing.assert_array_equal(found.decay("hidden").relative, gradients.decay(expected, layer).relative)
    gated = "lstm" in name and "zoneout" not in name  # with zoneout, h(t) is made of another c than goes on
    assert set(found.decays) == ({"hidden", "cell"} if gated else {"hidden"})
    assert [each.step for each in found.jacobians] == [1, 6, 11]
    for each in found.jacobians:
        jacobian = gradients.state_jacobian(unrolled, each.step, layer)
        np.testing.assert_allclose(each.singular_values, torch.linalg.svdvals(jacobian), rtol=1e-9, atol=1e-15)
        if "rnn" in name or "zoneout" in name:
            assert each.gate is None
        else:
            parts = gradients.split(unrolled, each.step, layer)
            np.testing.assert_allclose(each.remembered, torch.linalg.svdvals(parts.total), rtol=1e-9, atol=1e-14)
            np.testing.assert_allclose(each.gate, parts.gate)
            assert each.rest == pytest.approx(float(torch.linalg.matrix_norm(parts.rest, 2)))
    assert found.verdict.jacobians == 3
    assert found.verdict.steps == STEPS - 1
    assert found.growth == gradients.growth(unrolled, layer)
    mapping = json.loads(json.dumps(finite(found.to_mapping())))
    assert mapping["name"] == "a name"
    assert mapping["layer"] == layer + 1
    assert mapping["cell"] == name.split()[0].strip(",")
    np.testing.assert_allclose(mapping["pairs"]["hidden"], expected.hidden[layer])
    assert mapping["verdict"] == {"of": f"layer {layer + 1}'s own recurrence", **found.verdict._asdict()}
    assert mapping["growth"]["log2_per_token"] == found.growth.rate
    assert found.without_map().to_mapping() == found.to_mapping() | {"pairs": None}
    assert found.text().startswith("a name: ")


def test_of_an_lstm_there_are_both_half_lives():
    found = gradients.measure(gradients.fresh("lstm", hidden_size=8, length=60, forget_bias=2.0))
    hidden, cell = found.decay("hidden"), found.decay("cell")
    assert cell.relative[1] > 4 * hidden.relative[1]
    for letter, curve in (("h", hidden), ("c", cell)):
        assert f"  {gradients.in_words(curve)} (of {letter}; k from 1 to 30)" in found.text()
    mapping = found.to_mapping()["decay"]
    assert mapping["cell"]["rate"] == pytest.approx(-1 / mapping["cell"]["half_life"])
    assert "∂(h, c)(t)/∂(h, c)(t−1), at 8 of 59 steps" in found.text()
    assert found.to_mapping()["jacobians"][0]["of"] == "(h, c)"
    assert found.to_mapping()["jacobians"][0]["split"]["of"] == "c"


def test_steps_at_which_the_state_starts_anew_have_no_jacobian():
    unrolled = Unrolled(*made("lstm"), starts=(3, 4, 8))
    found = gradients.measure(unrolled, jacobians=99)
    assert [each.step for each in found.jacobians] == [1, 2, 5, 6, 7, 9, 10, 11]
    assert found.verdict.steps == 8
    alone = gradients.measure(Unrolled(*made("lstm"), starts=range(STEPS)))
    assert alone.jacobians == []
    assert math.isnan(alone.growth.rate)
    assert "verdict: neither can be said" in alone.text()


def test_a_verdict_says_what_it_rests_on():
    sigmoid = gradients.fresh("rnn", hidden_size=8, length=20, nonlinearity="sigmoid")
    assert "  verdict: vanish, whatever the text" in gradients.measure(sigmoid).text()
    small = gradients.fresh("gru", hidden_size=8, length=20)
    assert "verdict: neither can be said; every vector shrinks at all 8 sampled" in gradients.measure(small).text()
    every = gradients.measure(small, jacobians=19)
    assert "verdict: vanish on this text, by the Jacobians of all 19 steps" in every.text()
    assert every.verdict.grounds == "every step"


def test_what_is_too_large_for_floats_is_told():
    found = gradients.measure(overflowing())
    text = found.text()
    assert "larger than floats can be from k = 192 on" in text
    assert "doubles every 0.188 tokens" in text
    assert "nan" not in text
    mapping = finite(found.to_mapping())
    assert mapping["decay"]["hidden"]["overflow"] == 192
    assert mapping["decay"]["hidden"]["half_life"] is None
    assert mapping["decay"]["hidden"]["rate"] == pytest.approx(math.log2(40))


def test_weights_by_step():
    unrolled = Unrolled(*made("gru"))
    found = gradients.measure(unrolled, target=7)
    norms = gradients.weight_contributions(unrolled, target=7).norms
    last = next(n for n in range(1, 9) if norms[-n:].sum() >= 0.9 * norms.sum())
    assert f"  the last {last} steps have 90 % of the sum of norms" in found.text()
    assert found.to_mapping()["weight_gradient"]["steps"] == list(range(8))
    with pytest.raises(UserError, match="step 12: the text has 12"):
        gradients.measure(unrolled, target=12)
    whole = gradients.measure(unrolled)
    assert f"of step {whole.contributions.norms.argmax()}" in whole.text()


def test_training_is_told_beside():
    unrolled = Unrolled(*made("gru"))
    clipping = Clipping(2.0, None, np.array([10, 20]), np.array([1.0, 8.0]))
    text = gradients.measure(unrolled, clipping=clipping, chunk_length=35).text()
    assert "  in training, gradients went back fewer than 35 tokens" in text
    assert "  clipping by norm acted at 1 of them, 50.0 %" in text
    assert "  there it made gradients 4 times shorter (median), 4 at most" in text
    by_value = Clipping(2.0, 0.5, np.array([10, 20]), np.array([1.0, 8.0]))
    text = gradients.measure(unrolled, clipping=by_value).text()
    assert "  clipping by norm acted at 1 of them at most, 50.0 %" in text
    assert "4 times shorter at most" in text
    assert "Gradients in training: it is broken" in gradients.measure(unrolled, log_error="it is broken").text()


def test_progress_is_told_in_words():
    told = []
    gradients.measure(Unrolled(*made("gru")), jacobians=2, progress=told.append)
    assert {"gradient of W_h", f"pairs, 3 of {STEPS} steps", "Jacobian 2 of 2"} <= set(told)

"""Equations with numbers, against the cells; gradients through time, against autograd and the chain rule by hand."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
import torch

import recurra
from recurra.config import UserError
from recurra.explaining import (
    Line,
    Situation,
    clip_both_ways,
    gradient_by_autograd,
    reading,
    small_layer,
    step_lines,
    text_gradient,
)
from recurra.gradients import Unrolled, weight_contributions
from recurra.models.kneser_ney import NgramLM
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn import GRU, LSTM, RNN, cells
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer
from recurra.text.vocabulary import LINE_END

TEXT = "the cat sat on the mat\nthe dog sat on the log\n"
STACKS = {
    "rnn": ("rnn", lambda: RNN(3, 4)),
    "rnn relu": ("rnn", lambda: RNN(3, 4, nonlinearity="relu")),
    "rnn sigmoid, 2 layers": ("rnn", lambda: RNN(3, 4, 2, "sigmoid")),
    "rnn layer norm, no bias": ("rnn", lambda: RNN(3, 4, bias=False, layer_norm=True)),
    "lstm": ("lstm", lambda: LSTM(3, 4)),
    "lstm layer norm, sizes": ("lstm", lambda: LSTM(3, (5, 4), layer_norm=True, forget_bias=1.0)),
    "lstm residual": ("lstm", lambda: LSTM(3, 4, 3, connections="residual")),
    "lstm projected, dense": ("lstm", lambda: LSTM(3, 5, 3, proj_size=3, connections="dense")),
    "gru": ("gru", lambda: GRU(3, 4)),
    "gru no bias, highway": ("gru", lambda: GRU(3, 4, 3, bias=False, connections="highway")),
    "gru layer norm": ("gru", lambda: GRU(3, 4, 2, layer_norm=True)),
    "gru before": ("gru", lambda: GRU(3, 4, 2, reset="before")),
    "gru before, layer norm": ("gru", lambda: GRU(3, 4, reset="before", layer_norm=True)),
}


def situation(name, steps=4):
    cell, build = STACKS[name]
    torch.manual_seed(0)
    stack = build().double().eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # gains too
    inputs = torch.randn(steps, 3, dtype=torch.float64)
    return Situation(Unrolled(stack, inputs, lambda outputs: (outputs**2).sum(1)), cell, ["x"] * steps, "")


def language_model(cell="lstm", **options):
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer="words", min_count=1))
    sizes = {"hidden_size": 6, "layers": 2, "embedding_size": 5, "output": "full", "tied": True, **options}
    return recurra.LanguageModel(RecurrentLM(RecurrentLMSettings(cell=cell, **sizes), tokens.vocabulary).eval(), tokens)


def documented(function):
    """The equations in a docstring of cells.py: left-hand side, right-hand side."""
    lines = inspect.getdoc(function).splitlines()
    found = [re.fullmatch(r"    (\S+)\s+= (.+)", line) for line in lines]
    return [match.groups() for match in found if match]


class TestStep:
    @pytest.mark.parametrize(
        ("name", "function"),
        [("rnn", cells.rnn_step), ("lstm", cells.lstm_step), ("gru", cells.gru_step)],
    )
    def test_equations_are_those_of_the_cells(self, name, function):
        lines = step_lines(situation(name)).lines
        assert [(line.name, line.equation) for line in lines] == documented(function)

    def test_a_gru_that_resets_before_has_another_candidate(self):
        lines = {line.name: line.equation for line in step_lines(situation("gru before")).lines}
        expected = dict(documented(cells.gru_step)) | dict(documented(cells.gru_reset_before_step))
        assert lines == expected

    @pytest.mark.parametrize("name", STACKS)
    @torch.no_grad()
    def test_values_are_those_of_the_cells(self, name):
        here = situation(name)
        _, _, trace = here.stack(here.unrolled.inputs[:, None], None, trace=True)
        for layer in range(1, here.stack.num_layers + 1):
            weights = here.stack.weights(layer - 1)
            for unit in range(here.stack.hidden_widths[layer - 1]):
                step = step_lines(here, layer=layer, unit=unit)
                driven = cells.drive(step.reads, weights, here.stack.gate_groups)
                state, gates = here.stack.bind(weights, None)(driven, step.before)
                expected = {f"{gate}(t)": value for gate, value in gates.items()}
                expected |= {f"{part[0]}(t)": value for part, value in state._asdict().items()}
                assert {line.name for line in step.lines} == expected.keys()
                for line in step.lines:
                    assert line.value == pytest.approx(float(expected[line.name][0, unit]), abs=1e-12)
                    # and they are what the whole stack computes at its last step
                    whole = trace.layers[layer - 1][0]
                    names = {"h(t)": "hidden", "c(t)": "cell"}
                    found = whole[names.get(line.name, line.name.removesuffix("(t)"))][-1]
                    assert line.value == pytest.approx(float(found[0, unit]), abs=1e-12)

    @pytest.mark.parametrize("name", STACKS)
    def test_numbers_in_an_equation_give_its_value(self, name):
        here = situation(name)
        sigma = {"relu": lambda x: max(x, 0.0), "tanh": math.tanh}.get(
            getattr(here.stack, "nonlinearity", ""), lambda x: 1 / (1 + math.exp(-x))
        )
        for line in step_lines(here, layer=here.stack.num_layers, unit=2).lines:
            numbers = line.with_numbers(12)
            assert eval(numbers, {"sigma": sigma, "tanh": math.tanh}) == pytest.approx(line.value, abs=1e-9)

    def test_the_first_step_comes_after_zeros(self):
        step = step_lines(situation("lstm", steps=1), unit=1)
        assert not step.before.hidden.any()
        assert not step.before.cell.any()
        forget = step.lines[0]
        assert forget.terms["W_h h(t-1)"] == 0

    def test_symbols_are_not_taken_apart(self):
        terms = {"b": 1.0, "b_hh": 2.0, "h(t-1)": 3.0, "W_h h(t-1)": 4.0}
        assert Line("", "b + b_hh * W_h h(t-1) - h(t-1)", terms, 0).with_numbers(0) == "1 + 2 * 4 - 3"

    def test_a_model_reads_its_text(self):
        lm = language_model()
        here = reading(lm, "the cat sat")
        assert here.reads == ["<eos>", "the", "cat", "sat"]
        assert here.unrolled.inputs.dtype == torch.float64
        assert lm.model.embedding.weight.dtype == torch.float32  # the model is left alone
        word = lm.model.embedding.weight[lm.tokenizer.id("sat")].double()
        torch.testing.assert_close(step_lines(here, layer=1).reads[0], word.detach())

    def test_of_independent_lines_only_the_last_is_read(self):
        lm = language_model(reset="lines")
        assert reading(lm, "the cat\nthe dog").reads == ["<eos>", "the", "dog"]
        assert reading(lm, "the cat\n").reads == ["<eos>"]
        assert reading(language_model(), "the cat\nthe dog").reads == ["<eos>", "the", "cat", "<eos>", "the", "dog"]

    def test_fresh_layers_follow_their_seed(self):
        state = torch.get_rng_state()
        first, same, other = (small_layer("gru", seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert step_lines(first).lines == step_lines(same).lines
        assert step_lines(first).lines != step_lines(other).lines
        assert first.reads == ["e(0)", "e(1)", "e(2)", "e(3)", "e(4)"]
        for seed in (2**60, -1):
            with pytest.raises(UserError, match="seed: expected 0 to"):
                small_layer("gru", seed=seed)

    def test_the_last_layer_is_shown_if_none_is_named(self):
        here = situation("lstm residual")
        assert step_lines(here, unit=1).lines == step_lines(here, layer=3, unit=1).lines
        assert step_lines(here, unit=1).lines != step_lines(here, layer=1, unit=1).lines

    def test_ranges_are_told(self):
        with pytest.raises(UserError, match="unit: expected 0 to 3, got 4"):
            step_lines(situation("lstm"), unit=4)
        with pytest.raises(UserError, match="unit: expected 0 to 2, got 3"):
            step_lines(situation("lstm projected, dense"), unit=3)
        with pytest.raises(UserError, match="layer: expected 1 to 1, got 2"):
            step_lines(situation("lstm"), layer=2)
        lm = language_model()
        object.__setattr__(lm, "model", object.__new__(NgramLM))
        with pytest.raises(UserError, match="expected a recurrent language model"):
            reading(lm, TEXT)
        with pytest.raises(UserError, match="expected a recurrent language model"):
            text_gradient(lm, TEXT)


class TestContributions:
    def test_by_the_chain_rule_by_hand(self):
        here = small_layer("rnn", seed=3, steps=5)
        found = weight_contributions(here.unrolled, target=4, steps=4, keep=True)
        assert found.steps.tolist() == [1, 2, 3, 4]
        weights = {name: value.detach().numpy() for name, value in here.stack.named_parameters()}
        hidden = [np.zeros(4)]  # before step 0
        for word in here.unrolled.inputs.numpy():
            sums = weights["weight_hh_l0"] @ hidden[-1] + weights["weight_ih_l0"] @ word
            hidden.append(np.tanh(sums + weights["bias_ih_l0"] + weights["bias_hh_l0"]))
        backward = here.unrolled.seeds[-1].numpy()
        assert float(here.unrolled.losses[-1]) == pytest.approx(0.5 * (backward**2).sum())  # h(4) minus the target
        for step in (4, 3, 2, 1):
            delta = backward * (1 - hidden[step + 1] ** 2)
            np.testing.assert_allclose(found.parts[step - 1], np.outer(delta, hidden[step]), atol=1e-14)
            backward = weights["weight_hh_l0"].T @ delta

    @pytest.mark.parametrize("name", STACKS)
    @pytest.mark.parametrize("steps", [3, 9])
    def test_the_sum_is_what_autograd_gives(self, name, steps):
        here = situation(name, steps=4)
        for layer in range(1, here.stack.num_layers + 1):
            found = weight_contributions(here.unrolled, layer - 1, target=3, steps=steps, keep=True)
            assert len(found.parts) == min(steps, 4)
            together = gradient_by_autograd(here, layer=layer, steps=steps)
            torch.testing.assert_close(found.total, together, rtol=1e-9, atol=1e-12)
            assert bool(found.parts[0].any()) == (steps < 4)  # before the first step of all, h is 0
            assert found.parts[-1].any()

    @pytest.mark.parametrize("name", ["lstm projected, dense", "gru no bias, highway"])
    def test_autograd_is_that_of_the_whole_stack(self, name):
        here = situation(name, steps=4)
        outputs, _ = here.stack(here.unrolled.inputs[:, None])
        expected = torch.autograd.grad((outputs[-1] ** 2).sum(), [here.stack.weights(n).weight_hh for n in range(3)])
        for layer, gradient in enumerate(expected, 1):
            torch.testing.assert_close(gradient_by_autograd(here, layer=layer), gradient, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"cell": "gru", "tied": False, "output_size": 3},
            {"output": "adaptive", "cutoffs": (4,), "tied": False},
            {"output": "classes", "tied": False, "maxent_order": 2, "maxent_bits": 8},
            {"reset": "lines"},
        ],
    )
    def test_a_model_s_loss_is_the_surprisal_of_the_last_token(self, options):
        lm = language_model(**options)
        if lm.model.hashed is not None:
            lm.model.assign_ngrams(lm.tokenizer.encode(TEXT * 3))
            with torch.no_grad():
                lm.model.hashed.table.normal_()
        text = "the cat sat\nthe dog"
        here = reading(lm, text, target=True)
        token, expected = lm.surprisal(text)[-2]  # the last is the line end that evaluation adds
        assert token == "dog"
        assert here.reads[-1] == "the"
        assert float(here.unrolled.losses[-1]) == pytest.approx(expected, rel=1e-4)
        assert "'dog'" in here.what

    def test_there_must_be_something_to_predict(self):
        with pytest.raises(UserError, match="at least one token"):
            reading(language_model(), "", target=True)
        here = reading(language_model(), "the", target=True)
        assert here.reads == ["<eos>"]
        assert not gradient_by_autograd(here).any()


class TestClipping:
    def test_by_hand(self):
        found = clip_both_ways([3.0, -4.0], norm=1.0, value=2.0)
        assert (found.before.norm, found.before.largest, found.before.cosine) == (5, 4, pytest.approx(1))
        assert found.factor == pytest.approx(1 / (5 + 1e-6), rel=1e-12)
        assert found.by_norm.gradient.tolist() == pytest.approx([0.6, -0.8], rel=1e-6)
        assert found.by_norm.norm == pytest.approx(5 * found.factor, rel=1e-12)
        assert found.by_norm.cosine == pytest.approx(1, abs=1e-12)
        assert found.by_value.gradient.tolist() == [2, -2]
        assert found.by_value.cosine == pytest.approx(14 / (5 * math.sqrt(8)))

    def test_short_gradients_stay_as_they_are(self):
        found = clip_both_ways([0.3, -0.4], norm=1.0, value=0.5)
        assert found.factor == 1
        assert found.by_norm.gradient.tolist() == found.by_value.gradient.tolist() == [0.3, -0.4]
        assert clip_both_ways([0.0], norm=1.0, value=1.0).by_norm.cosine == 1

    @pytest.mark.parametrize(
        ("gradient", "norm", "value", "message"),
        [
            ([], 1, 1, "gradient: expected at least one number"),
            ([math.nan], 1, 1, "all of them finite"),
            ([1.0], 0, 1, "norm: expected a number above 0, got 0"),
            ([1.0], 1, -2, "value: expected a number above 0, got -2"),
            ([1.0], math.nan, 1, "norm: expected a number above 0, got nan"),
        ],
    )
    def test_mistakes(self, gradient, norm, value, message):
        with pytest.raises(UserError, match=message):
            clip_both_ways(gradient, norm=norm, value=value)

    def test_a_text_s_gradient_is_the_slope_of_its_surprisal(self):
        lm = language_model()
        gradient = text_gradient(lm, TEXT)
        model = lm.model.double()
        assert len(gradient) == sum(parameter.numel() for parameter in model.parameters())
        ids = torch.tensor([LINE_END, *lm.tokenizer.encode(TEXT)])[:, None]

        def mean_surprisal():
            with torch.no_grad():
                return -float(model.score(ids[:-1], ids[1:], model.start(1))[0].mean())

        torch.manual_seed(0)
        direction = torch.randn_like(gradient)
        found = []
        for sign in (1, -2):
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(model.parameters()) + sign * 1e-5 * direction, model.parameters()
            )
            found.append(mean_surprisal())
        assert (found[0] - found[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)
        with pytest.raises(UserError, match="text is empty"):
            text_gradient(lm, "")

    @pytest.mark.parametrize("reset", ["lines", "documents", "none"])
    def test_a_text_s_gradient_begins_anew_where_training_did(self, reset):
        """It is the slope of what evaluation finds."""
        lm = language_model(reset=reset)
        gradient = text_gradient(lm, TEXT)
        lm.model.double()
        start = torch.nn.utils.parameters_to_vector(lm.model.parameters()).detach()
        torch.manual_seed(0)
        direction, found = torch.randn_like(gradient), []
        for sign in (1, -1):
            torch.nn.utils.vector_to_parameters(start + sign * 1e-5 * direction, lm.model.parameters())
            found.append(np.mean([nats for _, nats in lm.surprisal(TEXT)]))
        assert (found[0] - found[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-6)
        carried = text_gradient(language_model(), TEXT)
        assert torch.allclose(gradient, carried, rtol=1e-3) == (reset != "lines")

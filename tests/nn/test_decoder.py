"""The decoder: a stack, where nothing is looked up and nothing dropped; the same at once as step by step."""

from __future__ import annotations

import pytest
import torch

from recurra import nn as rnn
from recurra.nn.cells import LSTMState
from recurra.nn.decoder import Decoder, Masks
from recurra.nn.dropout import locked_mask

TIME, ROWS, INPUT, WIDTH, FOUND = 6, 3, 5, 4, 2
STACKS = {"rnn": rnn.RNN, "lstm": rnn.LSTM, "gru": rnn.GRU}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def begun(cell, layers):
    parts = [torch.randn(layers, ROWS, WIDTH, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1)]
    return LSTMState(*parts) if cell == "lstm" else parts[0]


@pytest.mark.parametrize("cell", STACKS)
@pytest.mark.parametrize("connections", ["plain", "residual", "dense"])
def test_it_is_a_stack(cell, connections):
    decoder = Decoder(cell, INPUT, WIDTH, 3, connections=connections).double()
    stack = STACKS[cell](INPUT, WIDTH, 3, connections=connections).double()
    with torch.no_grad():
        for k, layer in enumerate(decoder.layers):
            for name, own in layer.named_parameters():
                getattr(stack, name.replace("_l0", f"_l{k}")).copy_(own)
    words, before = torch.randn(TIME, ROWS, INPUT, dtype=torch.float64), begun(cell, 3)
    output, after = decoder(words, before)
    expected, final = stack(words, before)
    if connections == "dense":  # a stack gives all that the next layer would read
        expected = expected[..., -WIDTH:]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.stack(tuple(after)), torch.stack(tuple(final)))


@pytest.mark.parametrize("connections", ["plain", "residual", "dense", "highway"])
def test_step_by_step_is_the_same_as_at_once_with_what_is_dropped(connections):
    decoder = Decoder("lstm", INPUT, WIDTH, 3, context_size=FOUND, connections=connections).double()
    like = torch.ones(ROWS, WIDTH, dtype=torch.float64)
    masks = Masks(
        words=None,
        between=[locked_mask(like.new_ones(ROWS, features), 0.5) for features in decoder.below[1:]],
        recurrent=[locked_mask(like, 0.5) for _ in decoder.layers],
        vectors=None,
    )
    words, state = torch.randn(TIME, ROWS, INPUT, dtype=torch.float64), begun("lstm", 3)

    def look(states):
        return states[..., :FOUND].cumsum(-1)

    whole, final = decoder(words, state, masks, look=look)
    for step in range(TIME):
        output, state = decoder(words[step : step + 1], state, masks, look=look)
        torch.testing.assert_close(output[0], whole[step])
    torch.testing.assert_close(torch.stack(tuple(state)), torch.stack(tuple(final)))
    assert not torch.allclose(whole, decoder(words, begun("lstm", 3), look=look)[0])


def test_what_there_is_not():
    with pytest.raises(ValueError, match="cell"):
        Decoder("lst", INPUT, WIDTH, 1)
    with pytest.raises(ValueError, match="connections"):
        Decoder("lstm", INPUT, WIDTH, 1, connections="dence")

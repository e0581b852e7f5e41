"""The encoder: what its settings make of it, two passes, and one word at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recurra import nn as rnn
from recurra.config import UserError, from_mapping, to_mapping
from recurra.nn.encoder import Encoder, EncoderSettings, settle_encoder

TIME, INPUT = 5, 3
LENGTHS = [3, 0, 5, 1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(**settings):
    return Encoder(EncoderSettings(**{"hidden_size": 4, "bidirectional": False, **settings}), INPUT).double().eval()


def padded(padding=torch.nan):
    vectors = torch.randn(TIME, len(LENGTHS), INPUT, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        vectors[length:, row] = padding
    return vectors


def leaves(state):
    return [state] if isinstance(state, torch.Tensor) else [leaf for part in state for leaf in leaves(part)]


KINDS = {
    "lstm": {},
    "gru both ways": {"cell": "gru", "bidirectional": True},
    "rnn of many layers": {"cell": "rnn", "layers": 5},
    "a size a layer": {"layers": 2, "hidden_size": (4, 6)},
    "self-attention, layer norm": {"self_attention": 2, "bidirectional": True, "layer_norm": True},
    "two passes": {"passes": 2, "layers": 2},
    "two passes, dense, self-attention": {"passes": 2, "layers": 2, "connections": "dense", "self_attention": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_sequences_cut_to_their_lengths(kind):
    encoder, vectors = built(**KINDS[kind]), padded()
    states, final = encoder(vectors, LENGTHS)
    assert states.shape == (TIME, len(LENGTHS), encoder.output_size)
    for row, length in enumerate(LENGTHS):
        alone, end = encoder(vectors[:length, row, None])
        torch.testing.assert_close(states[:length, row, None], alone)
        assert not states[length:, row].any()
        for one, other in zip(leaves(final), leaves(end), strict=True):
            torch.testing.assert_close(one[..., row : row + 1, :], other)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_reaches_no_gradient_even_in_training(kind):
    dropout = {"input_dropout": 0.2, "dropout": 0.2, "output_dropout": 0.2, "recurrent_dropout": 0.2}
    encoder, given, found = built(**KINDS[kind], **dropout).train(), padded(), []
    for vectors in (given, given.nan_to_num(3.0)):
        torch.manual_seed(1)
        vectors = vectors.clone().requires_grad_()
        states, final = encoder(vectors, LENGTHS)
        loss = states.sin().sum() + sum(part.sin().sum() for part in leaves(final))
        found.append(torch.autograd.grad(loss, [vectors, *encoder.parameters()]))
    for row, length in enumerate(LENGTHS):
        assert found[0][0][:length, row].any() or not length
        assert not found[0][0][length:, row].any()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_two_passes_are_one_over_each_sequence_doubled():
    encoder, vectors = built(passes=2, layers=2), padded()
    states, final = encoder(vectors, LENGTHS)
    for row, length in enumerate(LENGTHS):
        doubled = vectors[:length, row, None].repeat(2, 1, 1)
        wanted, end = encoder.recurrent(doubled)
        torch.testing.assert_close(states[:length, row, None], wanted[length:])
        for one, other in zip(final, end, strict=True):
            torch.testing.assert_close(one[:, row, None], other)
    once = Encoder(dataclasses.replace(encoder.settings, passes=1), INPUT).double()
    once.load_state_dict(encoder.state_dict())
    assert not torch.allclose(once(vectors, LENGTHS)[0], states)


@pytest.mark.parametrize("kind", ["lstm", "rnn of many layers", "a size a layer"])
def test_a_word_at_a_time_is_all_at_once(kind):
    encoder = built(**KINDS[kind])
    assert encoder.streams
    vectors = torch.randn(TIME, 2, INPUT, dtype=torch.float64)
    wanted, final = encoder(vectors)
    state, found = encoder.start(2), []
    for word in vectors:
        states, state = encoder.step(word, state)
        found.append(states)
    torch.testing.assert_close(torch.stack(found), wanted)
    for one, other in zip(leaves(state), leaves(final), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bidirectional": True}, "it is bidirectional"),
        ({"passes": 2}, "it reads its input twice"),
        ({"self_attention": 2}, "its self-attention looks at all words at once"),
    ],
)
def test_what_cannot_stream_says_why(settings, reason):
    encoder = built(**settings)
    assert not encoder.streams
    for call in (encoder.check_streams, lambda: encoder.start(1), lambda: encoder.step(torch.zeros(1, INPUT), None)):
        with pytest.raises(UserError, match=f"this model cannot answer as input arrives: {reason}.*; train with"):
            call()
    built().check_streams()


def test_connections_are_chosen_by_depth_and_saved():
    chosen = {layers: built(layers=layers).settings.connections for layers in (1, 3, 4, 6)}
    assert chosen == {1: "plain", 3: "plain", 4: "residual", 6: "residual"}
    assert built(layers=4, hidden_size=(4, 4, 4, 5)).settings.connections == "plain"
    assert built(layers=4, hidden_size=(4, 4, 4, 4)).settings.connections == "residual"
    assert built(layers=4, connections="highway").recurrent.connections == "highway"
    settings = from_mapping(EncoderSettings, {"layers": 4, "connections": "auto"}, "file")
    assert settings.connections is None
    saved = settle_encoder(settings)
    assert saved == dataclasses.replace(settings, connections="residual") == Encoder(settings, INPUT).settings
    assert settle_encoder(saved) is saved
    assert settle_encoder(EncoderSettings(layers=4, hidden_size=(7,))).connections == "residual"
    assert from_mapping(EncoderSettings, to_mapping(saved), "file") == saved


def test_settings_reach_the_stack():
    encoder = built(
        cell="lstm", hidden_size=(6,), layers=2, bidirectional=True, layer_norm=True, input_dropout=0.1, dropout=0.2,
        output_dropout=0.3, recurrent_dropout=0.4, self_attention=3,
    )  # fmt: skip
    stack = encoder.recurrent
    assert isinstance(stack, rnn.LSTM)
    assert (stack.hidden_sizes, stack.num_layers, stack.bidirectional, stack.layer_norm) == ((6, 6), 2, True, True)
    assert (stack.between_dropout, stack.recurrent_dropout, stack.forget_bias) == (0.2, 0.4, 1.0)
    assert (encoder.input_dropout.p, encoder.output_dropout.p) == (0.1, 0.3)
    assert (encoder.self_attention.heads, encoder.output_size, encoder.directions) == (3, 12, 2)
    for cell, kind in (("rnn", rnn.RNN), ("gru", rnn.GRU)):
        assert type(built(cell=cell).recurrent) is kind
    assert built().self_attention is None


@pytest.mark.parametrize("name", ["input_dropout", "dropout", "output_dropout", "recurrent_dropout"])
def test_every_dropout_acts_in_training_only(name):
    encoder = built(layers=2, **{name: 0.5})
    vectors = torch.randn(TIME, 2, INPUT, dtype=torch.float64)
    assert torch.equal(encoder(vectors)[0], encoder(vectors)[0])
    encoder.train()
    assert not torch.equal(encoder(vectors)[0], encoder(vectors)[0])


def test_settings_that_do_not_go_together():
    with pytest.raises(UserError, match="passes 2 is for an encoder of one direction"):
        EncoderSettings(passes=2, bidirectional=True)
    with pytest.raises(UserError, match="hidden_size lists 2 sizes for 3 layers"):
        EncoderSettings(hidden_size=(4, 5), layers=3)
    with pytest.raises(UserError, match="connections='residual' adds what a layer reads"):
        built(hidden_size=(4, 5), layers=2, connections="residual")
    with pytest.raises(UserError, match="3 heads do not divide 4 features"):
        built(self_attention=3)


def test_batches_of_nothing():
    encoder = built(bidirectional=True, self_attention=2)
    assert encoder(torch.zeros(0, 2, INPUT).double())[0].shape == (0, 2, 8)
    assert not encoder(torch.full((3, 2, INPUT), torch.nan).double(), [0, 0])[0].any()

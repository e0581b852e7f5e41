"""What is dropped, how often, and that it stays dropped."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from recurra import nn as rnn
from recurra.nn.dropout import locked_mask, zoneout

LENGTH, BATCH, WIDTH = 5, 6, 50
P = 0.4
SCALE = 1 / (1 - P)
# Of 300 draws, the share dropped is within 4.5 standard deviations of P.
TOLERANCE = 4.5 * (P * (1 - P) / (BATCH * WIDTH)) ** 0.5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def identity(layers=1, recurrent=0.0, **options):
    """A ReLU RNN whose layers pass their input on, plus ``recurrent`` times their state: what is dropped shows."""
    layer = rnn.RNN(WIDTH, WIDTH, layers, "relu", bias=False, **options)
    with torch.no_grad():
        for name, weight in layer.named_parameters():
            weight.copy_(torch.eye(WIDTH) * (recurrent if "hh" in name else 1.0))
    return layer


def assert_mask(values, scale=SCALE):
    """Values are 0 at the expected rate, and ``scale`` otherwise."""
    dropped = values == 0
    torch.testing.assert_close(values, torch.where(dropped, 0.0, scale))
    assert abs(dropped.float().mean() - P) < TOLERANCE


def test_locked_mask():
    assert_mask(locked_mask(torch.empty(BATCH, WIDTH), P))
    assert not locked_mask(torch.empty(3, 3), 1.0).any()


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_draws_once_per_sequence(batch_first):
    layer = rnn.LockedDropout(P, batch_first)
    shape = (BATCH, LENGTH, WIDTH) if batch_first else (LENGTH, BATCH, WIDTH)
    output = layer(torch.ones(shape))
    output = output.transpose(0, 1) if batch_first else output
    assert_mask(output[0])
    assert torch.equal(output, output[:1].expand_as(output))
    assert not torch.equal(output[0, 0], output[0, 1])
    layer.eval()
    assert layer(torch.ones(shape)).eq(1).all()


def test_locked_dropout_names_mistakes():
    with pytest.raises(ValueError, match="p should be a number in range"):
        rnn.LockedDropout(1.5)
    with pytest.raises(ValueError, match="expected input with 3 dimensions, got shape"):
        rnn.LockedDropout()(torch.ones(2, 3))


@pytest.mark.parametrize("implementation", ["readable", "torch"])
@pytest.mark.parametrize(("option", "layers"), [("input_dropout", 1), ("between_dropout", 2)])
def test_locked_dropout_of_what_layers_read(option, layers, implementation):
    layer = identity(layers, **{option: P}, implementation=implementation)
    ones = torch.ones(LENGTH, BATCH, WIDTH)
    output, _ = layer(ones)
    assert_mask(output[0])
    assert torch.equal(output, output[:1].expand_as(output))
    assert not torch.equal(layer(ones)[0], output)  # another call, another mask

    lengths = torch.tensor([3, 5, 0, 1, 5, 2])
    output, _ = layer(ones, lengths=lengths)
    assert_mask(output[0][lengths > 0])
    for row, length in enumerate(lengths):
        assert torch.equal(output[:length, row], output[:1, row].expand(length, -1))

    output, _ = layer(pack_padded_sequence(ones, lengths.clamp(min=1), enforce_sorted=False))
    starts = [0, *output.batch_sizes.cumsum(0)[:-1]]
    for start, running in zip(starts, output.batch_sizes, strict=True):
        assert torch.equal(output.data[start : start + running], output.data[:running])


def test_plain_dropout_is_torchs():
    layer, peer = rnn.LSTM(3, 4, 3, dropout=P), torch.nn.LSTM(3, 4, 3, dropout=P)
    peer.load_state_dict(layer.state_dict())
    input = torch.randn(LENGTH, BATCH, 3)
    torch.manual_seed(1)
    output, _ = layer(input)
    torch.manual_seed(1)
    torch.testing.assert_close(output, peer(input)[0])
    assert not torch.equal(layer(input)[0], output)


@pytest.mark.parametrize("lengths", [None, [3, 5, 2, 1, 5, 4]])
def test_recurrent_dropout_is_locked(lengths):
    layer = identity(recurrent=1.0, recurrent_dropout=P)
    output, _ = layer(torch.zeros(LENGTH, BATCH, WIDTH), torch.ones(1, BATCH, WIDTH), lengths=lengths)
    assert_mask(output[0])
    for row in range(BATCH):
        for step in range(lengths[row] if lengths else LENGTH):  # each step multiplies the state by the same mask
            torch.testing.assert_close(output[step, row], output[0, row] ** (step + 1))
    assert not torch.equal(output[0, 0], output[0, 1])


def test_recurrent_dropout_of_a_gru_leaves_what_the_update_gate_keeps():
    layer = rnn.GRU(WIDTH, WIDTH, recurrent_dropout=P)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    output, _ = layer(torch.zeros(1, BATCH, WIDTH), torch.ones(1, BATCH, WIDTH))
    torch.testing.assert_close(output, torch.full_like(output, 0.5))


@pytest.mark.parametrize("implementation", ["readable", "torch"])
def test_weight_dropout_is_of_the_recurrent_weights_and_for_the_call(implementation):
    layer = rnn.RNN(2, WIDTH, 1, "relu", bias=False, weight_dropout=P, implementation=implementation)
    assert list(layer.state_dict()) == ["weight_ih_l0", "weight_hh_l0"]
    with torch.no_grad():
        layer.weight_ih_l0.zero_()
        layer.weight_hh_l0.fill_(1.0)
    # The state of sequence n picks column n of the weights.
    output, _ = layer(torch.zeros(2, WIDTH, 2), torch.eye(WIDTH)[None])
    used = output[0].T
    dropped = used == 0
    torch.testing.assert_close(used, torch.where(dropped, 0.0, SCALE))
    assert abs(dropped.float().mean() - P) < TOLERANCE
    torch.testing.assert_close(output[1].T, used @ used)  # the second step used the same
    output[0].sum().backward()
    torch.testing.assert_close(layer.weight_hh_l0.grad, used)  # 1 / (1 - p) where it was not dropped
    assert layer.weight_hh_l0.eq(1).all()
    assert not torch.equal(layer(torch.zeros(1, WIDTH, 2), torch.eye(WIDTH)[None])[0][0].T, used)


def test_zoneout_keeps_or_replaces_and_expects_outside_training():
    old, new = torch.zeros(BATCH, WIDTH), torch.ones(BATCH, WIDTH)
    assert_mask(zoneout(old, new, P, training=True), 1.0)
    torch.testing.assert_close(zoneout(old, new, P, training=False), torch.full_like(old, 1 - P))


def test_zoneout_of_an_lstm_draws_anew_for_each_part_and_step():
    layer = rnn.LSTM(1, WIDTH, zoneout=P)
    begin = rnn.LSTMState(torch.randn(1, BATCH, WIDTH), torch.randn(1, BATCH, WIDTH))
    _, _, trace = layer(torch.randn(2, BATCH, 1), begin, trace=True)
    kept = []
    for name, first in begin._asdict().items():
        steps = trace.stacked(name)
        kept += [steps[0] == first[0], steps[1] == steps[0]]
    for which in kept:
        assert abs(which.float().mean() - P) < TOLERANCE
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(kept, 2))


def test_zoneout_is_of_the_parts_it_names():
    layer = rnn.LSTM(1, WIDTH, zoneout=(1.0, 0.0))
    begin = rnn.LSTMState(torch.randn(1, BATCH, WIDTH), torch.randn(1, BATCH, WIDTH))
    _, end = layer(torch.randn(LENGTH, BATCH, 1), begin)
    assert torch.equal(end.hidden, begin.hidden)
    assert not torch.isclose(end.cell, begin.cell).any()


@pytest.mark.parametrize("kind", [rnn.RNN, rnn.LSTM, rnn.GRU])
def test_both_implementations_drop_the_same(kind):
    outputs = []
    for implementation in ("readable", "torch"):
        torch.manual_seed(0)
        layer = kind(
            3, 4, 3, dropout=0.2, input_dropout=0.2, between_dropout=0.2, weight_dropout=0.2, bidirectional=True,
            implementation=implementation,
        ).double()  # fmt: skip
        outputs.append(layer(torch.ones(LENGTH, BATCH, 3).double(), lengths=[5, 1, 0, 4, 4, 2])[0])
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)

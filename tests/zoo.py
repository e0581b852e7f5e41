"""Every layer, once: what a check over all of them runs through.

An entry builds a fresh module; the checks give it a dtype and a mode. Recurrent layers read ``INPUT_SIZE`` features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from recurra import nn as rnn

INPUT_SIZE = 3

RECURRENT: dict[str, Callable[[], rnn.Recurrent]] = {
    "rnn": partial(rnn.RNN, INPUT_SIZE, 4),
    "rnn relu": partial(rnn.RNN, INPUT_SIZE, 4, nonlinearity="relu"),
    "rnn sigmoid, 2 layers": partial(rnn.RNN, INPUT_SIZE, 4, 2, "sigmoid"),
    "rnn layer norm, no bias": partial(rnn.RNN, INPUT_SIZE, 4, bias=False, layer_norm=True),
    "lstm": partial(rnn.LSTM, INPUT_SIZE, 4),
    "lstm readable": partial(rnn.LSTM, INPUT_SIZE, 4, 2, implementation="readable"),
    "lstm projected, 2 layers": partial(rnn.LSTM, INPUT_SIZE, 5, 2, proj_size=3),
    "lstm layer norm, forget bias": partial(rnn.LSTM, INPUT_SIZE, 4, 2, layer_norm=True, forget_bias=1.0),
    "lstm zoneout": partial(rnn.LSTM, INPUT_SIZE, 4, 2, zoneout=(0.1, 0.4)),
    "lstm residual": partial(rnn.LSTM, INPUT_SIZE, 4, 3, connections="residual"),
    "lstm a size a layer": partial(rnn.LSTM, INPUT_SIZE, (5, 4, 2)),
    "lstm both ways": partial(rnn.LSTM, INPUT_SIZE, 4, 2, bidirectional=True),
    "lstm both ways, a size a layer, projected, dense": partial(
        rnn.LSTM, INPUT_SIZE, (5, 4), bidirectional=True, proj_size=3, connections="dense"
    ),
    "gru": partial(rnn.GRU, INPUT_SIZE, 4),
    "gru reset before": partial(rnn.GRU, INPUT_SIZE, 4, 2, reset="before"),
    "gru reset before, layer norm": partial(rnn.GRU, INPUT_SIZE, 4, reset="before", layer_norm=True),
    "gru layer norm": partial(rnn.GRU, INPUT_SIZE, 4, layer_norm=True),
    "gru dense": partial(rnn.GRU, INPUT_SIZE, 4, 3, connections="dense"),
    "gru highway": partial(rnn.GRU, INPUT_SIZE, 4, 3, connections="highway"),
    "gru both ways, highway, zoneout": partial(
        rnn.GRU, INPUT_SIZE, 4, 2, bidirectional=True, connections="highway", zoneout=0.2
    ),
    "gru every dropout": partial(
        rnn.GRU, INPUT_SIZE, 4, 2,
        dropout=0.3, input_dropout=0.3, between_dropout=0.3, recurrent_dropout=0.3, weight_dropout=0.3,
    ),
}  # fmt: skip
ONE_WAY = {name: build for name, build in RECURRENT.items() if not build().bidirectional}

"""Layers: recurrent ones, drop-in for torch.nn's and with more to choose; dropout for sequences."""

from .cells import GRUCell, LSTMCell, LSTMState, RNNCell
from .dropout import LockedDropout
from .layers import GRU, LSTM, RNN
from .recurrent import Recurrent, implementation
from .unrolled import Trace

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "LSTMState",
    "LockedDropout",
    "RNNCell",
    "Recurrent",
    "Trace",
    "implementation",
]

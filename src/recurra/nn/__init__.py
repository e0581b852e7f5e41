"""Layers: recurrent ones, drop-in for torch.nn's and with more to choose; output layers; word vectors; dropout."""

from .cells import GRUCell, LSTMCell, LSTMState, RNNCell
from .characters import CharacterCNN, CharacterLSTM, Highway
from .classes import ClassSoftmax
from .dropout import LockedDropout
from .embedding import AdaptiveEmbedding, Embedding
from .hashed import HashedNgrams
from .layers import GRU, LSTM, RNN
from .recurrent import Recurrent, implementation
from .sampled import NCE, BlackOut, SampledSoftmax
from .softmax import AdaptiveSoftmax, FullSoftmax
from .unrolled import Trace

__all__ = [
    "GRU",
    "LSTM",
    "NCE",
    "RNN",
    "AdaptiveEmbedding",
    "AdaptiveSoftmax",
    "BlackOut",
    "CharacterCNN",
    "CharacterLSTM",
    "ClassSoftmax",
    "Embedding",
    "FullSoftmax",
    "GRUCell",
    "HashedNgrams",
    "Highway",
    "LSTMCell",
    "LSTMState",
    "LockedDropout",
    "RNNCell",
    "Recurrent",
    "SampledSoftmax",
    "Trace",
    "implementation",
]

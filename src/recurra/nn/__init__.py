"""Layers: recurrent ones, drop-in for torch.nn's and with more to choose; output layers; word vectors; dropout.

And what tasks are made of: an encoder, attention, pooling, a conditional random field, connectionist temporal
classification.
"""

from .attention import Attention, Memory, SelfAttention
from .cells import GRUCell, LSTMCell, LSTMState, RNNCell
from .characters import CharacterCNN, CharacterLSTM, Highway
from .classes import ClassSoftmax
from .crf import Allowed, LinearChainCRF, bio_constraints
from .ctc import ctc_loss, prefix_beam_search
from .dropout import LockedDropout
from .embedding import AdaptiveEmbedding, Embedding
from .encoder import Encoder, EncoderSettings
from .hashed import HashedNgrams
from .layers import GRU, LSTM, RNN
from .pooling import Pooling
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
    "Allowed",
    "Attention",
    "BlackOut",
    "CharacterCNN",
    "CharacterLSTM",
    "ClassSoftmax",
    "Embedding",
    "Encoder",
    "EncoderSettings",
    "FullSoftmax",
    "GRUCell",
    "HashedNgrams",
    "Highway",
    "LSTMCell",
    "LSTMState",
    "LinearChainCRF",
    "LockedDropout",
    "Memory",
    "Pooling",
    "RNNCell",
    "Recurrent",
    "SampledSoftmax",
    "SelfAttention",
    "Trace",
    "bio_constraints",
    "ctc_loss",
    "implementation",
    "prefix_beam_search",
]

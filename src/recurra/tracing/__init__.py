"""What every unit of a recurrent language model does over a text: as arrays, as a picture; which property it tracks.

Layers are counted from 1, since the first reads the words; units are columns of an array, counted from 0. Row t of an
array, counted from 0, is what the model has just *after* reading token t: h(t), c(t), and the gates that made them. The
surprisal of token t is what the model expected of it just *before*, from row t - 1.

In :mod:`recurra.gradients` step t is the one that predicts token t, so that its h(t) has read the text up to token
t - 1: row t here is h(t + 1) there.
"""

from recurra.tracing.arrays import ARRAY_SUFFIXES, check_arrays, write_arrays
from recurra.tracing.pictures import draw
from recurra.tracing.reading import GATES, Traced, check_size, trace
from recurra.tracing.tracking import Association, Tracking, read_labels, track

__all__ = [
    "ARRAY_SUFFIXES",
    "GATES",
    "Association",
    "Traced",
    "Tracking",
    "check_arrays",
    "check_size",
    "draw",
    "read_labels",
    "trace",
    "track",
    "write_arrays",
]

"""What every unit of a recurrent language model does over a text: as arrays, as a picture; which property it tracks.

Layers are counted from 1, since the first reads the words; units are columns of an array, counted from 0. Row t of an
array is what the model has after reading token t; the surprisal of token t is what it expected of it just before.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.evaluation import row_starts, surprisals
from recurra.files import written_whole
from recurra.language_model import LanguageModel
from recurra.models.protocol import device_of, evaluating
from recurra.models.recurrent_lm import RecurrentLM
from recurra.plotting import figure_of, save
from recurra.text.batches import TokenStream
from recurra.text.corpora import open_text
from recurra.text.tokenizer import JOINER
from recurra.text.vocabulary import LINE_END, SPECIAL

__all__ = [
    "GATES",
    "HDF5_SUFFIXES",
    "PICTURE_SUFFIXES",
    "Association",
    "Traced",
    "Tracking",
    "draw",
    "read_labels",
    "trace",
    "track",
    "write_arrays",
]

Values = NDArray[np.float32]
Numbers = NDArray[np.float64]

GATES = ("forget", "input", "output", "candidate", "hidden", "cell", "reset", "update")
OPENED = ("forget", "input", "output", "reset", "update")  # between 0 and 1, the others on both sides of 0
CHUNK = 256  # steps read at a time
SHIFTS = 200  # of the labels, to see what chance finds
PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
HDF5_SUFFIXES = (".h5", ".hdf5")
DRAWN_JOINER = "‿"  # which more fonts have
COLUMNS = 96  # characters of a line of the picture
MOST_LINES, MOST_ROWS = 40, 64  # lines of text and units of a picture


@dataclass(frozen=True)
class Traced:
    """What a model computed over a text of T tokens.

    Attributes:
        ids: the tokens, int64 [T].
        tokens: as the vocabulary has them.
        bits: surprisal -log2 p of each token given those before it, [T].
        layers: of each layer, from a name (``hidden``; ``cell`` in an LSTM; the gates) to float32 [T, units].
        cell: ``lstm``, ``gru`` or ``rnn``.
    """

    ids: NDArray[np.int64]
    tokens: list[str]
    bits: Numbers
    layers: list[dict[str, Values]]
    cell: str

    @property
    def usual(self) -> str:
        """What is looked at where nothing was chosen: the cell, where there is one."""
        return "cell" if "cell" in self.layers[0] else "hidden"

    def values(self, gate: str | None = None, layer: int | None = None) -> Values:
        """The values of one gate, of h or of c, ``[T, units]``.

        Args:
            gate: one of :data:`GATES` that the kind of cell has; None for c, or h where there is none.
            layer: counted from 1; None for the last.

        Raises:
            UserError: there is no such layer or gate.
        """
        number = len(self.layers) if layer is None else layer
        if not 1 <= number <= len(self.layers):
            raise UserError(f"layer: expected 1 to {len(self.layers)}, got {number}")
        found, name = self.layers[number - 1], gate or self.usual
        if name not in found:
            raise UserError(f"gate: expected one of {', '.join(found)}, which the {self.cell} has; got {name!r}")
        return found[name]

    def chosen(self, gate: str | None, layer: int | None, units: Sequence[int] | None, count: int) -> list[int]:
        """The units asked for, or without any the ``count`` whose values move most (largest standard deviation).

        Raises:
            UserError: there is no such layer, gate or unit.
        """
        values = self.values(gate, layer)
        size = values.shape[1]
        if units is None:
            return [int(unit) for unit in np.argsort(-values.std(0, dtype=np.float64), kind="stable")[:count]]
        for unit in units:
            if not 0 <= unit < size:
                raise UserError(f"units: expected 0 to {size - 1}, got {unit}")
        return list(units)


def trace(lm: LanguageModel, text: str | TokenStream, *, reset: str | None = None) -> Traced:
    """Read a text and keep every gate, hidden and cell value of every token and layer.

    The model has read a line end before the first token, and begins anew where evaluation lets it.

    Args:
        lm: a recurrent language model.
        text: a text as it stands, to which no line end is added; or one already turned into tokens.
        reset: where the state starts anew (``none``, ``documents``, ``lines``); as in training if not given.

    Raises:
        UserError: another kind of model, no tokens, or an unknown ``reset``.
    """
    model = lm.model
    if not isinstance(model, RecurrentLM):
        raise UserError(f"tracing is for recurrent language models (lm), this one is of kind {lm.kind!r}")
    digest = lm.tokenizer.vocabulary.digest()
    stream = text if isinstance(text, TokenStream) else TokenStream.from_tokens(lm.tokenizer.encode(text))
    if isinstance(text, TokenStream) and text.vocabulary != digest:
        raise UserError(
            "these tokens belong to another vocabulary than the model's: encode the text with its tokenizer"
        )
    if not len(stream):
        raise UserError("the text is empty: expected at least one token to trace")
    ids = np.asarray(stream.tokens, np.int64)
    reset = reset or model.settings.reset
    rows: dict[str, Any] = {
        "reset": reset,
        "document_starts": stream.document_starts,
        "line_starts": stream.line_starts,
    }
    starts = {int(start) for start in row_starts(**rows)}
    nats = surprisals(model, ids, **rows)
    if reset == "lines":  # a line end is read as the beginning of the next line, even where none follows
        starts |= {int(place) + 1 for place in np.flatnonzero(ids == LINE_END)}
    layers = _states(model, np.concatenate(([LINE_END], ids)), starts)
    tokens = [lm.tokenizer.token(int(id)) for id in ids]
    return Traced(ids, tokens, nats / math.log(2), layers, model.settings.cell)


@torch.no_grad()
def _states(model: RecurrentLM, inputs: NDArray[np.int64], starts: set[int]) -> list[dict[str, Values]]:
    """Everything the stack computes over inputs, but for the first of them; before ``starts`` it begins anew."""
    pieces: list[list[dict[str, Values]]] = []
    state: Any = None
    cuts = sorted({*(start for start in starts if start < len(inputs)), *range(0, len(inputs), CHUNK), len(inputs)})
    with evaluating(model):
        for begin, end in itertools.pairwise(cuts):
            state = None if begin in starts else state
            words = torch.from_numpy(inputs[begin:end, None]).to(device_of(model))
            _, state, found = model.recurrent(model.embedding(words), state, trace=True)
            pieces.append(
                [
                    {name: torch.cat(steps).float().cpu().numpy() for name, steps in directions[0].items()}
                    for directions in found.layers
                ]
            )
    layers = zip(*pieces, strict=True)
    return [{name: np.concatenate([part[name] for part in parts])[1:] for name in parts[0]} for parts in layers]


# ---- arrays ---------------------------------------------------------------------------------------------------------


def write_arrays(traced: Traced, path: str | Path) -> list[Path]:
    r"""Write the arrays in the format that the path's suffix names, whole or not at all.

    ``.npz``: ``words`` ids [T], ``tokens`` [T], ``bits`` [T], and ``hidden1``, ``forget1``, ... [T, units], numbered by
    layer. ``.h5`` or ``.hdf5``: what LSTMVis reads (Strobelt et al. 2018, arXiv:1606.07461): ``states1``, ... [T,
    units], which are c in an LSTM and h elsewhere; an LSTM's h as ``output1``, ...; gates, ``words`` and ``bits`` as
    above, but the output gate as ``output_gate1``; and beside it a file ``.dict`` with a line ``token id`` for each
    token of the text. White space within a token, which would end it there, is written ``␣`` or ``\u0009``.

    Returns:
        The files written.

    Raises:
        UserError: another suffix, or h5py is missing.
    """
    path = Path(path)
    arrays: dict[str, Any] = {"words": traced.ids, "bits": traced.bits}
    if path.suffix == ".npz":
        arrays["tokens"] = np.array(traced.tokens)
        for number, layer in enumerate(traced.layers, 1):
            arrays |= {f"{name}{number}": values for name, values in layer.items()}
        with written_whole(path, "wb") as file:
            np.savez_compressed(file, **arrays)
        return [path]
    if path.suffix not in HDF5_SUFFIXES:
        known = ", ".join((".npz", *HDF5_SUFFIXES, *PICTURE_SUFFIXES))
        raise UserError(f"{path}: unknown format; end the name in one of {known}")
    for number, layer in enumerate(traced.layers, 1):
        names = (
            {"hidden": "output", "cell": "states", "output": "output_gate"} if "cell" in layer else {"hidden": "states"}
        )
        arrays |= {f"{names.get(name, name)}{number}": values for name, values in layer.items()}
    content = io.BytesIO()
    with _h5py().File(content, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    with written_whole(path, "wb") as file:
        file.write(content.getvalue())
    words = path.with_suffix(".dict")
    with written_whole(words) as file:
        for id, token in sorted(dict(zip(traced.ids.tolist(), traced.tokens, strict=True)).items()):
            file.write(f"{_unbroken(token)} {id}\n")
    return [path, words]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need h5py: pip install 'recurra[hdf5]'") from None
    return h5py


def _unbroken(token: str) -> str:
    """A token without white space; different ones stay different."""

    def written(letter: str) -> str:
        if letter == " ":
            return "␣"
        if letter == "\\":
            return "\\\\"
        return f"\\u{ord(letter):04x}" if letter.isspace() or letter == "␣" else letter

    return "".join(map(written, token))


# ---- what units track -----------------------------------------------------------------------------------------------


class Association(NamedTuple):
    """How much a unit has to do with the labels."""

    layer: int
    gate: str
    unit: int
    score: float


@dataclass(frozen=True)
class Tracking:
    """The units that track a property best.

    Attributes:
        measure: ``correlation`` (Pearson's r) where labels are numbers; ``point-biserial`` where there are two
            categories: r with the second of them as 1 and the first as 0; ``eta squared``, the part of a unit's
            variance that lies between categories, where there are more.
        categories: in order; none where labels are numbers.
        best: of each layer and gate the best units, the best first; by the size of the score.
        chance: of each layer and gate, the score that the best unit has in 95 of 100 cases at most where labels are
            shifted along the text (around its end), so that they say nothing: anything near it means nothing either.
            NaN for a text of fewer than 20 tokens.
    """

    measure: str
    categories: tuple[str, ...]
    best: list[Association]
    chance: dict[tuple[int, str], float]

    def units(self, layer: int, gate: str) -> list[int]:
        """The best units of a layer and gate."""
        return [each.unit for each in self.best if (each.layer, each.gate) == (layer, gate)]


def read_labels(source: str) -> list[str]:
    """Labels of tokens, between white space of any kind, from whatever a text is read from.

    Raises:
        UserError: it is not there, or empty.
    """
    return [label for line in open_text([source]).lines() for label in line.split()]


def track(traced: Traced, labels: Sequence[str | float], *, count: int = 5) -> Tracking:
    """Find the units whose values go with labels, in every layer and gate.

    Where all labels are numbers they count as such, else as names of categories. A unit that never moves tracks
    nothing: its score is 0.

    Args:
        traced: of a text of T tokens.
        labels: T of them.
        count: units to name, of each layer and gate.

    Raises:
        UserError: labels of another length than the text, all the same, or not finite.
    """
    if len(labels) != len(traced.ids):
        raise UserError(
            f"labels: expected one for each of the text's {len(traced.ids)} tokens, line ends included,"
            f" got {len(labels)}"
        )
    if len(set(labels)) < 2:
        raise UserError(f"labels: all {len(labels)} are {labels[0]!r}: there is nothing to track")
    categories: tuple[str, ...] = ()
    try:
        numbers = np.array([float(label) for label in labels])
    except ValueError:
        categories = tuple(sorted({str(label) for label in labels}))
        numbers = np.array([categories.index(str(label)) for label in labels], np.float64)
    if not np.isfinite(numbers).all():
        wrong = labels[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise UserError(f"labels: expected finite numbers or names of categories, got {wrong!r}")
    measure = "eta squared" if len(categories) > 2 else "point-biserial" if categories else "correlation"
    target = np.eye(len(categories))[numbers.astype(int)].T if len(categories) > 2 else numbers[None]
    total = len(labels)
    shifts = sorted({round(total * k / (SHIFTS + 1)) for k in range(1, SHIFTS + 1)} - {0, total})
    best: list[Association] = []
    chance = {}
    for number, layer in enumerate(traced.layers, 1):
        for gate, values in layer.items():
            scaled = _scaled(values)
            scores = _scores(scaled, target)
            order = np.argsort(-np.abs(scores), kind="stable")[:count]
            best += [Association(number, gate, int(unit), float(scores[unit])) for unit in order]
            highest = [float(np.abs(_scores(scaled, np.roll(target, shift, 1))).max()) for shift in shifts]
            chance[number, gate] = float(np.quantile(highest, 0.95)) if total >= 20 else math.nan
    return Tracking(measure, categories, best, chance)


def _scaled(values: NDArray[Any]) -> Numbers:
    """Columns with mean 0 and mean square 1; zeros where nothing moves."""
    centred = values.astype(np.float64)
    centred -= centred.mean(0)
    deviation = np.sqrt((centred**2).mean(0))
    # The mean of equal numbers may be off by their last digit.
    still = deviation <= 1e-12 * np.abs(values).max(0, initial=0)
    result: Numbers = np.where(still, 0.0, centred / np.where(still, 1.0, deviation))
    return result


def _scores(scaled: Numbers, target: Numbers) -> Numbers:
    """How columns of ``[T, units]`` go with a row of numbers ``[1, T]``, or with categories ``[K, T]`` of 0 and 1."""
    result: Numbers
    if len(target) == 1:
        result = (_scaled(target.T).T @ scaled)[0] / len(scaled)
    else:  # the variance of each column is 1
        result = ((target @ scaled) ** 2 / target.sum(1)[:, None]).sum(0) / len(scaled)
    return result


# ---- a picture ------------------------------------------------------------------------------------------------------


def draw(
    traced: Traced, path: str | Path, *, units: Sequence[int], gate: str | None = None, layer: int | None = None
) -> None:
    """Draw a text, the surprisal of each token below it in bits, and below that a row of a heat map for each unit.

    Args:
        traced: what to draw.
        path: the picture; its suffix names the format.
        units: of that layer, from the top.
        gate: as in :meth:`Traced.values`.
        layer: likewise.

    Raises:
        UserError: no such layer, gate or unit; too much to draw; another suffix; matplotlib is missing.
    """
    values, name = traced.values(gate, layer), gate or traced.usual
    units = traced.chosen(gate, layer, units, 0)
    if not 1 <= len(units) <= MOST_ROWS:
        raise UserError(f"units: expected 1 to {MOST_ROWS} to draw, got {len(units)}")
    shown = ["↵" if token == SPECIAL[LINE_END] else token.replace(JOINER, DRAWN_JOINER) for token in traced.tokens]
    gap = int(any(len(token) > 1 for token in shown))  # between words; characters stand close
    widths = [max(1, len(token)) + gap for token in shown]
    lines = _wrapped(widths)
    if len(lines) > MOST_LINES:
        raise UserError(
            f"the text is too long to draw: {len(lines)} lines of {COLUMNS} characters, expected at most {MOST_LINES};"
            " give a shorter one"
        )
    columns, rows = max(sum(widths[line]) for line in lines), len(units) + 2
    figure = figure_of(1.9 + 0.085 * columns, 0.7 + 0.17 * (rows + 1) * len(lines))
    axes = figure.add_subplot()
    limit = float(np.abs(values[:, units]).max()) or 1.0
    colours: dict[str, Any] = (
        {"cmap": "Blues", "vmin": 0.0, "vmax": 1.0}
        if name in OPENED
        else {"cmap": "YlGnBu", "vmin": -limit, "vmax": limit}  # darker is higher, in grey too
    )
    most = max(float(traced.bits[np.isfinite(traced.bits)].max(initial=0.0)), 1e-9)
    ticks, marks = [], []
    for number, line in enumerate(lines):
        top = number * (rows + 1)
        edges = np.concatenate(([0], np.cumsum(widths[line])))
        drawn = axes.pcolormesh(edges, top + 2 + np.arange(len(units) + 1), values[line][:, units].T, **colours)
        heights = np.minimum(traced.bits[line], most) / most  # one of probability 0 is as high as any
        axes.bar(edges[:-1], -0.9 * heights, np.diff(edges) - 0.15 * gap, top + 1.95, align="edge", color="0.8")
        for place, token, bits in zip(edges, shown[line], traced.bits[line], strict=False):
            axes.text(place, top + 0.5, token, va="center", fontsize=8, family="monospace", parse_math=False)
            if len(token) + gap > 2:
                axes.text(place, top + 1.5, f"{bits:.1f}", va="center", fontsize=6)
        ticks += [top + 1.5, *(top + 2.5 + row for row in range(len(units)))]
        marks += ["bits", *map(str, units)]
    axes.set(xlim=(0, columns), ylim=(len(lines) * (rows + 1), 0), xticks=[])
    axes.set_yticks(ticks, marks, fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    number = len(traced.layers) if layer is None else layer
    what = f"{name} gate" if name in OPENED else f"{name} values"
    title = f"{what} of layer {number}, a row for each unit; grey bars: surprisal, up to {most:.1f} bits"
    axes.set_title(title, fontsize="small", loc="left")
    shrink = min(1.0, 1.2 / figure.get_figheight())
    scale = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.01, aspect=12, shrink=shrink)
    scale.ax.tick_params(labelsize=7)
    with warnings.catch_warnings():  # of letters that the font has not; boxes stand in their place
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        save(figure, Path(path))


def _wrapped(widths: Sequence[int]) -> list[slice]:
    """Cut tokens into lines of at most ``COLUMNS``, or of one token."""
    lines, begin, filled = [], 0, 0
    for place, width in enumerate(widths):
        if filled and filled + width > COLUMNS:
            lines.append(slice(begin, place))
            begin, filled = place, 0
        filled += width
    return [*lines, slice(begin, len(widths))]

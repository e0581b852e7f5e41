"""Traces as arrays in files: NumPy's, HDF5, and folders that LSTMVis opens.

An array has the same name in all of them: ``words`` (ids) [T], ``tokens`` [T], ``bits`` [T]; and ``hidden1``,
``forget1``, ... [T, units], numbered by layer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recurra.config import UserError
from recurra.files import written_whole
from recurra.tracing.reading import OPENED, Traced, Values

__all__ = ["ARRAY_SUFFIXES", "check_arrays", "write_arrays"]

HDF5_SUFFIXES = (".h5", ".hdf5")
LSTMVIS_SUFFIX = ".lstmvis"
ARRAY_SUFFIXES = (".npz", *HDF5_SUFFIXES, LSTMVIS_SUFFIX)

STATES_FILE, WORDS_FILE, CONFIGURATION = "states.hdf5", "words.dict", "lstm.yml"  # of a folder for LSTMVis
# What stands before the layer's number where LSTMVis looks when it is not told where to.
LSTMVIS_STATES = "states"


def check_arrays(path: str | Path) -> None:
    """Tell before the work what could not be written after it.

    Raises:
        UserError: another form than those of :data:`ARRAY_SUFFIXES`; h5py is missing; a file where a folder is to be.
    """
    path = Path(path)
    if path.suffix not in ARRAY_SUFFIXES:
        raise UserError(f"{path}: unknown format; end the name in one of {', '.join(ARRAY_SUFFIXES)}")
    if path.suffix != ".npz":
        _h5py()
    if path.suffix == LSTMVIS_SUFFIX and path.exists() and not path.is_dir():
        raise UserError(f"{path}: expected a folder for LSTMVis, found a file; choose another name")


def write_arrays(traced: Traced, path: str | Path) -> list[Path]:
    """Write the arrays in the form that the path ends in, each file whole or not at all.

    ``.npz``, ``.h5`` and ``.hdf5`` are one file of all arrays. ``.lstmvis`` is a folder for LSTMVis (Strobelt et al.
    2018, arXiv:1606.07461), which finds it by its ``lstm.yml``: that names all arrays in ``states.hdf5``, where c of an
    LSTM, or h of another cell, has a second name ``states1``, ...; and ``words.dict``, with a line ``token id`` for
    each token of the text. There c is to be shown through tanh, as is whatever exceeds 1, and all else as it is.

    Returns:
        The files written.

    Raises:
        UserError: as :func:`check_arrays`.
    """
    path = Path(path)
    check_arrays(path)
    if path.suffix == LSTMVIS_SUFFIX:
        return _write_folder(traced, path)
    if path.suffix == ".npz":
        with written_whole(path, "wb") as file:
            np.savez(file, tokens=np.array(traced.tokens), **_numbers(traced))
    else:
        _write_hdf5(traced, path)
    return [path]


def _numbers(traced: Traced) -> dict[str, Any]:
    """All arrays but the tokens, by name."""
    arrays: dict[str, Any] = {"words": traced.ids, "bits": traced.bits}
    for number, layer in enumerate(traced.layers, 1):
        arrays |= {f"{name}{number}": values for name, values in layer.items()}
    return arrays


def _write_hdf5(traced: Traced, path: Path, links: dict[str, str] | None = None) -> None:
    """Write all arrays; ``links`` are second names of some."""
    h5py = _h5py()
    # HDF5 wants a path, and writes into the very file that takes its place.
    with written_whole(path, "wb") as temporary, h5py.File(temporary.name, "w") as file:
        for name, values in _numbers(traced).items():
            file.create_dataset(name, data=values)
        tokens = [token.replace("\0", "␀") for token in traced.tokens]  # where its strings end
        file.create_dataset("tokens", data=tokens, dtype=h5py.string_dtype())
        for name, target in (links or {}).items():
            file[name] = file[target]


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need h5py: pip install 'recurra[hdf5]'") from None
    return h5py


# ---- LSTMVis --------------------------------------------------------------------------------------------------------


def _write_folder(traced: Traced, folder: Path) -> list[Path]:
    """Write a folder that LSTMVis opens; what it is found by comes last."""
    folder.mkdir(exist_ok=True)
    links = {f"{LSTMVIS_STATES}{number}": f"{traced.usual}{number}" for number in range(1, len(traced.layers) + 1)}
    _write_hdf5(traced, folder / STATES_FILE, links)
    with written_whole(folder / WORDS_FILE) as file:
        for id, token in sorted(dict(zip(traced.ids.tolist(), traced.tokens, strict=True)).items()):
            file.write(f"{_unbroken(token)} {id}\n")
    with written_whole(folder / CONFIGURATION) as file:
        file.write(_configuration(traced, folder.absolute().stem))
    return [folder / name for name in (STATES_FILE, WORDS_FILE, CONFIGURATION)]


def _configuration(traced: Traced, name: str) -> str:
    """What LSTMVis reads of a folder first, as YAML."""
    usual = traced.usual
    arrays = [
        f"    - {{{_entry(gate, number, layer[gate], usual=gate == usual)}}}"
        for number, layer in enumerate(traced.layers, 1)
        for gate in (usual, *(name for name in layer if name != usual))
    ]
    most = float(traced.bits[np.isfinite(traced.bits)].max(initial=0.0))
    return "\n".join(
        [
            f"name: {json.dumps(name, ensure_ascii=False)}",
            f"description: {traced.cell}, layers {len(traced.layers)}, tokens {len(traced.ids)}",
            "files:",
            f"  states: {STATES_FILE}",
            f"  words: {WORDS_FILE}",
            "word_sequence: {file: states, path: words, dict_file: words}",
            "states:",
            "  file: states",
            "  types:",
            *arrays,
            "meta:",
            "  surprisal_bits:",
            "    file: states",
            "    path: bits",
            f"    vis: {{type: scalar, range: [0, {most:.2f}]}}",
            "",
        ]
    )


def _entry(gate: str, number: int, values: Values, *, usual: bool) -> str:
    """How LSTMVis is to show an array: what it is called, where it lies, and whether through tanh."""
    kind = "state" if usual else "output" if gate == "hidden" else f"{gate} gate" if gate in OPENED else gate
    path = f"{LSTMVIS_STATES if usual else gate}{number}"
    shown = "tanh" if gate == "cell" or np.abs(values).max(initial=0.0) > 1 else "none"
    sign = ", unsigned: true" if gate in OPENED else ""
    return f"type: {kind}, layer: {number}, path: {path}, transform: {shown}{sign}"


def _unbroken(token: str) -> str:
    r"""A token without white space, which would end it in a file of words; different ones stay different.

    A space is written ``␣``, other white space as ``\u0009``.
    """

    def written(letter: str) -> str:
        if letter == " ":
            return "␣"
        if letter == "\\":
            return "\\\\"
        return f"\\u{ord(letter):04x}" if letter.isspace() or letter == "␣" else letter

    return "".join(map(written, token))

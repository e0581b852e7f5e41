"""The compiled loops of ``cpp/``: built where a C++ compiler is found, never needed.

They are compiled when first used, for the very processor at hand, which takes some seconds; the library is kept in the
user's cache folder. Set ``RECURRA_NATIVE=0`` to do without. Everything here has an equal in ``kernels.py`` or in torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from .int8 import int8_of

__all__ = ["GATES", "MODES", "TYPES", "Step", "available", "linear", "product", "run", "take_steps", "why_not"]

GATES = {"LSTM": 4, "GRU": 3, "GRU_RESET_BEFORE": 3}  # of the others 1
MODES = ("RNN_TANH", "RNN_RELU", "RNN_SIGMOID", "LSTM", "GRU", "GRU_RESET_BEFORE")  # in the order of cpp/layer.h
TYPES = {torch.float32: "float", torch.float64: "double"}

SOURCES = Path(__file__).with_name("cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
LONGEST_BUILD = 300  # seconds

_log = logging.getLogger(__name__)
_reason = "it was not asked for yet"


class _Layer(ctypes.Structure):
    """``Layer`` of ``cpp/layer.h``."""

    NUMBERS = ("mode", "steps", "batch", "hidden", "width", "backwards", "threads")
    TENSORS = (
        *("batch_sizes", "weight_hh", "bias_hh", "weight_hr", "first_hidden", "first_cell"),
        *("gates", "cells", "inner", "output"),
        *("grad_output", "grad_gates", "grad_inner", "grad_projected", "grad_hidden", "grad_cell"),
    )
    _fields_ = [(name, ctypes.c_int64) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in TENSORS]


class Step(ctypes.Structure):
    """``Step`` of ``cpp/step.h``."""

    MATRICES = ("weight_ih", "weight_hh", "weight_hr")
    _fields_ = [
        ("layer", _Layer),
        ("inputs", ctypes.c_int64),
        ("is_int8", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in MATRICES),
        *((name.replace("weight", "scale"), ctypes.c_void_p) for name in MATRICES),
        ("bias_ih", ctypes.c_void_p),
        ("bias_hh", ctypes.c_void_p),
    ]


class _Product(ctypes.Structure):
    """``Product`` of ``cpp/products.h``."""

    NUMBERS = ("rows", "columns", "depth", "a_row", "a_deeper", "b_row", "out_row", "add", "threads")
    TENSORS = ("a", "b", "out")
    _fields_ = [(name, ctypes.c_int64) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in TENSORS]


def available() -> bool:
    """Whether the compiled loops can be used; compiles them if they were not before."""
    return _library() is not None


def why_not() -> str:
    """Why they are not available, in a few words; empty if they are."""
    return "" if available() else _reason


def run(name: str, *, numbers: Mapping[str, int], tensors: Mapping[str, Tensor | None]) -> None:
    """Run ``forward`` or ``backward`` over a layer.

    Args:
        name: which of the two.
        numbers: the fields of ``Layer`` of ``cpp/layer.h`` that are numbers, but for ``threads``.
        tensors: those that are arrays, of the shapes given there and contiguous; None for those not there.
    """
    library = _library()
    assert library is not None
    layer = _layer(numbers, tensors)
    gates = tensors["gates"]
    assert gates is not None
    getattr(library, f"recurra_{name}_{TYPES[gates.dtype]}")(ctypes.byref(layer))


def take_steps(steps: ctypes.Array[Step]) -> None:
    """Take a step of each layer of a stack, one after the other."""
    library = _library()
    assert library is not None
    library.recurra_steps(steps, ctypes.c_int64(len(steps)))


def _layer(numbers: Mapping[str, int], tensors: Mapping[str, Tensor | None]) -> _Layer:
    layer = _Layer(**numbers, threads=torch.get_num_threads())
    for field, tensor in tensors.items():
        if tensor is not None:
            assert tensor.is_contiguous(), field
            setattr(layer, field, tensor.data_ptr())
    return layer


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias`` for a few rows: the weights are read once, from where they are.

    Args:
        input: float32 ``[rows, features]``.
        weight: float32 ``[outputs, features]``, contiguous; read as int8 if it has such a form (``int8.py``).
        bias: float32 ``[outputs]``.
    """
    library = _library()
    assert library is not None
    input = input.contiguous()
    output = input.new_empty(len(input), len(weight))
    sizes = (*map(ctypes.c_int64, weight.shape), _address(input), ctypes.c_int64(len(input)), _address(output))
    threads = ctypes.c_int64(torch.get_num_threads())
    small = int8_of(weight)
    if small is None:
        library.recurra_linear_float(_address(weight), _address(bias), *sizes, threads)
    else:
        library.recurra_linear_int8(_address(small.values), _address(small.scale), _address(bias), *sizes, threads)
    return output


def product(a: Tensor, b: Tensor, *, out: Tensor, add: bool) -> None:
    """Write ``a @ b`` into ``out``, or add it to that: float32 matrices, which may be parts of others.

    Args:
        a: ``[rows, depth]``, transposed or not.
        b: ``[depth, columns]``, each row in one piece.
        out: ``[rows, columns]``, likewise.
        add: add.
    """
    library = _library()
    assert library is not None
    assert b.stride(1) == out.stride(1) == 1
    strides = (*a.stride(), b.stride(0), out.stride(0))
    addresses = (a.data_ptr(), b.data_ptr(), out.data_ptr())
    own = _Product(*out.shape, a.shape[1], *strides, add, torch.get_num_threads(), *addresses)
    library.recurra_product(ctypes.byref(own))


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, compiled if need be; None where that is not possible."""
    global _reason
    if os.environ.get("RECURRA_NATIVE", "1") == "0":
        _reason = "RECURRA_NATIVE is 0"
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.SubprocessError) as error:
        _reason = str(error)
        _log.info("without compiled loops: %s", _reason)
        return None


def _built() -> Path:
    """The library's file, whose name says what it was made of.

    Raises:
        OSError: there is no compiler, or no folder to write to.
        subprocess.SubprocessError: the compiler failed.
    """
    compiler = (
        shlex.split(os.environ.get("CXX", "")) or [name for name in ("c++", "g++", "clang++") if shutil.which(name)][:1]
    )
    if not compiler or not shutil.which(compiler[0]):
        raise OSError(f"no C++ compiler ({compiler[0] if compiler else 'c++, g++ or clang++'}) was found")
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.*"))]
    made_of = (sources, FLAGS, compiler, sys.platform, platform.machine(), _processor())
    name = f"native-{hashlib.blake2b(repr(made_of).encode(), digest_size=8).hexdigest()}.so"
    for folder in (platformdirs.user_cache_path("recurra"), Path(tempfile.gettempdir()) / f"recurra-{_user()}"):
        if not _ours(folder):
            continue
        path = folder / name
        if path.exists() and not _is_mine(path):
            continue
        if not path.exists():
            _compile(compiler, path)
        return path
    raise OSError("no folder to keep the compiled library in can be written to by this user alone")


def _ours(folder: Path) -> bool:
    """Whether a folder, made if need be, is one that nobody else can write to: what lies there is run."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return not folder.is_symlink() and _is_mine(folder) and os.access(folder, os.W_OK)
    except OSError:
        return False


def _is_mine(path: Path) -> bool:
    status = path.lstat()
    return status.st_uid == _user() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(compiler: Sequence[str], path: Path) -> None:
    """Compile to a file beside the path, then rename: several processes may do so at once.

    Raises:
        OSError: the compiler cannot be run.
        subprocess.SubprocessError: it failed.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        made = Path(folder) / path.name
        for flags in (("-fopenmp",), ()):  # without OpenMP, one thread does it all
            command = [*compiler, *FLAGS, *flags, str(SOURCES / "library.cpp"), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_BUILD, check=False)
            if done.returncode == 0:
                made.chmod(0o700)
                os.replace(made, path)
                return
    raise subprocess.SubprocessError(f"{compiler[0]} failed: {(done.stderr.strip().splitlines() or ['?'])[0]}")


def _processor() -> str:
    """What the compiler makes its code for: another processor may not run it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0

"""What is on disk: a model directory, and the state of a training run.

A model directory holds

- ``settings.json``: the kind of model, every resolved setting, the tokenizer with its vocabulary;
- ``weights.safetensors``: the weights, with the digest of their bytes and of the vocabulary they belong to;
- ``log.jsonl``, ``results.json``: what training logged and what evaluation found;
- ``training/``: token files and the state of the run, for resuming, for ``recurra compare`` and for dynamic evaluation
  by ``rms``; without it the model is as good for all else.

Weights are safetensors and everything else is JSON: nothing that is loaded can run code. Every file is written whole or
not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recurra.config import UserError
from recurra.files import json_text, written_whole

__all__ = [
    "SETTINGS",
    "WEIGHTS",
    "clear_directory",
    "prepare_directory",
    "read_json",
    "read_log",
    "read_settings",
    "read_tensors",
    "write_settings",
    "write_tensors",
]

FORMAT = 1  # of the directory; a reader refuses one it does not know
SETTINGS = "settings.json"
WEIGHTS = "weights.safetensors"
RUN = ("log.jsonl", "results.json", "training")  # what a training run leaves beside them

TYPES = {  # as safetensors names them
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


class CheckpointError(UserError):
    """A model directory or a file of it that cannot be used; the text says which and why."""


def prepare_directory(directory: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Make ``directory`` ready to take a model, or say why it is not.

    Raises:
        UserError: it is a file, cannot be written to, holds a model already and neither ``overwrite`` nor ``resume``
            was given, or holds something that is no model under a name that a model's files have.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: expected a folder for the model, found a file; choose another with -o")
    if (directory / SETTINGS).exists() and not (overwrite or resume):
        raise UserError(
            f"{directory}: already holds a model; give --overwrite to replace it, or --resume to go on with its"
            " training"
        )
    if (directory / SETTINGS).exists() and not resume:
        read_settings(directory)  # only a model is ever replaced
    strange = [name for name in (WEIGHTS, *RUN) if (directory / name).exists()]
    if strange and not (directory / SETTINGS).exists():
        raise UserError(
            f"{directory}: has {', '.join(strange)} but no {SETTINGS}, so it is not a model's folder and nothing there"
            " is replaced; choose another with -o"
        )
    if resume and not (directory / SETTINGS).exists():
        raise UserError(f"{directory}: nothing to resume; train there without --resume first")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{directory}: cannot write there ({error.strerror}); choose another folder with -o") from error


def clear_directory(directory: Path) -> None:
    """Remove a model, with all that its training left, from a folder that :func:`prepare_directory` has approved of."""
    for name in (SETTINGS, WEIGHTS, *RUN):
        if (directory / name).is_dir():
            shutil.rmtree(directory / name)
        else:
            (directory / name).unlink(missing_ok=True)


def write_settings(directory: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write ``settings.json``: what a model is, all but its weights."""
    write_json(directory / SETTINGS, {"format": FORMAT, "kind": kind, **content})


def read_settings(directory: Path, kind: str | None = None) -> dict[str, Any]:
    """Read ``settings.json``.

    Args:
        directory: a model directory.
        kind: the kind of model that is wanted; ``None`` takes any.

    Raises:
        UserError: there is none, it is damaged, of another format, or of another kind of model.
    """
    path = directory / SETTINGS
    if not path.exists():
        what = "no such folder" if not directory.exists() else f"not a model: it has no {SETTINGS}"
        raise CheckpointError(f"{directory}: {what}")
    content = read_json(path)
    try:
        found, found_kind = content["format"], str(content["kind"])
    except KeyError as error:
        raise CheckpointError(f"{path}: damaged (no {error}); restore it or train again") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: is of format {found}, this version reads format {FORMAT}")
    if kind is not None and found_kind != kind:
        raise CheckpointError(f"{directory}: holds a model of kind {found_kind!r}, expected {kind!r}")
    settings: dict[str, Any] = content
    return settings


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds names and values.

    Raises:
        UserError: it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); restore it or train again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: damaged (expected names and values); restore it or train again")
    return content


def read_log(path: Path) -> list[dict[str, Any]] | None:
    """Read ``log.jsonl``: a mapping for each line that training logged; None if there is no log.

    A run that was killed may leave its last line unfinished: that one is passed over.

    Raises:
        UserError: it cannot be read, or a line holds anything else.
    """
    if not path.exists():
        return None
    try:
        texts = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); restore it or train again") from error
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text.decode())
        except ValueError as error:
            if number == len(texts):
                break
            raise CheckpointError(f"{path}:{number}: damaged ({error}); restore it or train again") from error
        if not isinstance(line, dict):
            raise CheckpointError(f"{path}:{number}: damaged (expected names and numbers); restore it or train again")
        lines.append(line)
    return lines


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with written_whole(path) as file:
        file.write(json_text(content) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with their digest as a safetensors file, whole or not at all.

    What is in main memory goes from where it lies to the file, without a copy beside it; of tensors that are not
    contiguous one at a time is copied. The same tensors and metadata make the same bytes.
    """
    # The library's own writer renames a file of its own over `path`, before its content has reached the disk, and gives
    # metadata in an order that changes from call to call. The format: the header's length, the header, the tensors.
    ready = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    names = sorted(ready, key=lambda name: (-ready[name].itemsize, name))  # so that each is aligned
    header: dict[str, Any] = {"__metadata__": {**metadata, "digest": _digest(ready)}}
    end = 0
    for name in names:
        tensor, begin = ready[name], end
        end += tensor.numel() * tensor.itemsize
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(_bytes(ready[name]))


def read_tensors(path: Path, *, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata.

    Args:
        path: the file.
        verify: compare the content with its digest, which reads all of it. Without, the tensors are mapped into memory
            and nothing is read before it is used, however large they are; a file cut short is found all the same.

    Raises:
        UserError: the file is missing, cut short, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; train again or restore it") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read, probably cut short ({error}); restore it or train again"
        ) from error
    digest = metadata.pop("digest", None)
    if verify and digest != _digest(tensors):
        raise CheckpointError(f"{path}: damaged: its content does not match its digest; restore it or train again")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's content, row by row; where it lies if it is contiguous."""
    if tensor.numel() == 0:
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data  # numpy does not know every type

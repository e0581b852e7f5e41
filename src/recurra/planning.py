"""What training a model would take, before it is begun: parameters, memory, arithmetic, time.

Parameters are counted exactly, on a model without storage. Memory and arithmetic are worked out from the settings. Time
is measured by a few real training steps in a process of their own, where the model fits into this machine, and worked
out for other hardware from its peak arithmetic and its memory bandwidth (the roofline of Williams et al. 2009).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recurra.config import UserError, from_mapping, resolve, to_mapping
from recurra.models.kinds import KINDS
from recurra.nn.classes import ClassSoftmax
from recurra.nn.recurrent import Recurrent
from recurra.nn.rows import is_row_sparse
from recurra.nn.sampled import SampledOutput
from recurra.nn.softmax import SCORES_PER_CHUNK, AdaptiveSoftmax
from recurra.optimization import build_optimizer
from recurra.presets import find_preset
from recurra.recipes import sections, settle
from recurra.text.batches import Batch
from recurra.text.vocabulary import SPECIAL, Vocabulary
from recurra.training import Trainer, TrainingSettings

__all__ = ["Plan", "plan"]

FLOAT = 4  # bytes
MOMENTS = {"adam": 2, "adamw": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0, "asgd": 0}  # numbers kept for a weight
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
PROCESS = 350e6  # bytes of a process that has imported torch and trained nothing
DIFFERENT = 1 / 3  # of the words of a batch
MOST_WORDS = 20_000_000
LETTERS = 7  # of a made-up word, as an English one has on average in a vocabulary


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a training run would take.

    Attributes:
        parameters: numbers to learn, by part of the model.
        memory: bytes in training, by what they hold.
        flops_per_token: floating-point operations of a training step, forward and backward, divided by its tokens;
            a multiplication and an addition are two.
        batch_tokens: tokens of a step.
        tokens: of one pass over the text.
        measured: of real steps on this machine: ``tokens_per_second``, ``step_seconds``, ``peak_bytes`` of the process;
            None where none were made.
        hardware_seconds: one pass on the hardware that was described; None where none was.
    """

    parameters: Mapping[str, int]
    memory: Mapping[str, float]
    flops_per_token: float
    batch_tokens: int
    tokens: int
    measured: Mapping[str, float] | None = None
    hardware_seconds: float | None = None

    @property
    def pass_seconds(self) -> float | None:
        """Seconds of one pass over the text on this machine, as measured."""
        return None if self.measured is None else self.tokens / self.measured["tokens_per_second"]

    def to_mapping(self) -> dict[str, Any]:
        """Every number by its name, as JSON holds them."""
        return {
            "parameters": {**self.parameters, "all": sum(self.parameters.values())},
            "memory_bytes": {**self.memory, "all": sum(self.memory.values())},
            "flops_per_token": self.flops_per_token,
            "batch_tokens": self.batch_tokens,
            "tokens": self.tokens,
            "measured": self.measured,
            "pass_seconds": self.pass_seconds,
            "hardware_pass_seconds": self.hardware_seconds,
        }


def plan(
    preset: str,
    *,
    vocabulary_size: int,
    tokens: int,
    scale: float = 1.0,
    steps: int = 3,
    peak: float | None = None,
    bandwidth: float | None = None,
    **settings: Any,
) -> Plan:
    """Say what training a preset would take.

    Args:
        preset: its name.
        vocabulary_size: words of the vocabulary.
        tokens: of the training text.
        scale: what the sizes of the preset are multiplied by.
        steps: real training steps to measure, after a first one that is not counted; 0 measures nothing. Nothing is
            measured either where the model would not fit into the memory that is free.
        peak: floating-point operations a second of other hardware.
        bandwidth: bytes a second that it reads from its memory.
        settings: those that win over the preset's.

    Raises:
        UserError: no such preset, one that is made by counting, sizes that cannot be.
    """
    chosen = find_preset(preset)
    if KINDS[chosen.kind].counted:
        raise UserError(f"{preset} is made by counting words, not by training steps: there is nothing to plan")
    if not len(SPECIAL) < vocabulary_size <= MOST_WORDS or tokens < 1:
        raise UserError(
            f"expected a vocabulary of {len(SPECIAL) + 1} to {MOST_WORDS:,} words and a text, got {vocabulary_size:,}"
            f" words and {tokens:,} tokens"
        )
    if (peak is None) != (bandwidth is None):
        raise UserError("other hardware is described by two numbers: give both its peak and its bandwidth")
    for name, value in (("peak", peak), ("bandwidth", bandwidth)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} of other hardware: expected a number above 0, got {value}")
    if steps < 0:
        raise UserError(f"steps to measure: expected 0 or more, got {steps}")
    parts = resolve(sections(chosen.kind), base=chosen.scaled(scale), flags=settings)
    vocabulary = invented_vocabulary(vocabulary_size, tokens)
    tokenizer: Any = SimpleNamespace(kind="whitespace", vocabulary=vocabulary)
    text: Any = range(tokens)
    model_settings, training = settle(chosen.kind, parts["model"], parts["training"], text, tokenizer)
    with torch.device("meta"):
        model = KINDS[chosen.kind].model(model_settings, vocabulary)
    assert training.batch_size is not None
    batch_tokens = training.batch_size * training.chunk_length
    memory = _memory(model, training, batch_tokens)
    flops = 6 * _products(model, vocabulary, batch_tokens)  # forward, and twice as much backward
    needed = sum(memory.values())
    measured = None
    if steps > 0 and needed < available_memory():
        task = {
            "kind": chosen.kind,
            "model": to_mapping(model_settings),
            "training": to_mapping(training),
            "vocabulary_size": vocabulary_size,
            "tokens": tokens,
            "steps": steps,
        }
        measured = _measured(task)
    elsewhere = None
    if peak is not None and bandwidth is not None:
        moved = _moved(model, training, batch_tokens)
        elsewhere = tokens / batch_tokens * max(flops * batch_tokens / peak, moved / bandwidth)
    return Plan(
        parameters=_parameters(model),
        memory=memory,
        flops_per_token=flops,
        batch_tokens=batch_tokens,
        tokens=tokens,
        measured=measured,
        hardware_seconds=elsewhere,
    )


def invented_vocabulary(size: int, tokens: int) -> Vocabulary:
    """Words that do not exist, with counts by Zipf's law in a text of so many tokens."""
    counts = np.maximum(tokens / np.arange(1, size + 1) / np.log(size + 1), 1).astype(np.int64)
    words = (np.base_repr(number, 36).lower().zfill(LETTERS) for number in range(size - len(SPECIAL)))
    return Vocabulary([*SPECIAL, *words], counts.tolist())


def available_memory() -> float:
    """Bytes that a new process can have here."""
    try:
        return _kernel_says("/proc/meminfo", "MemAvailable")
    except (OSError, KeyError):
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _kernel_says(path: str, name: str) -> float:
    """Bytes that a file of Linux's has by a name, in kB; OSError or KeyError elsewhere."""
    with open(path, encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return float(lines[name].split()[0]) * 1024


# ---- worked out -----------------------------------------------------------------------------------------------------


def _parameters(model: Any) -> dict[str, int]:
    """Numbers to learn, by the first part of their name; what two parts share counts for the first."""
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        found[part] = found.get(part, 0) + parameter.numel()
    return found


def _memory(model: Any, training: TrainingSettings, batch_tokens: int) -> dict[str, float]:
    """Bytes in training, by what they hold."""
    build_optimizer(training.optimizer, model, learning_rate=1.0, weight_decay=training.weight_decay)
    parameters = list(model.parameters())
    every = sum(p.numel() for p in parameters)
    by_rows = [p for p in parameters if is_row_sparse(p)]
    dense = every - sum(p.numel() for p in by_rows)
    # Rows with a gradient: of the tokens read or predicted, and of the samples; once as they come, once put in order.
    rows = batch_tokens + (getattr(model.settings, "samples", None) or 0)
    touched = sum(2 * min(len(p), rows) * p[0].numel() for p in by_rows)
    own = {p for module in model.modules() for p, _ in getattr(module, "optimizer_options", list)()}  # one number a row
    remembered = MOMENTS[training.optimizer] * (every - sum(p.numel() for p in own)) + sum(map(len, own))
    return {
        "process": PROCESS,
        "weights": FLOAT * float(every),
        "gradients": FLOAT * float(dense + touched),
        "optimizer": FLOAT * float(remembered),
        "average": FLOAT * float(dense) * bool(training.average),
        "activations": FLOAT * float(batch_tokens * _numbers_per_token(model)),
        "scores": FLOAT * 3.0 * min(SCORES_PER_CHUNK, batch_tokens * model.vocabulary_size),
    }


def _numbers_per_token(model: Any) -> float:
    """Numbers held for each token of a batch between forward and backward pass, and those of the backward pass."""
    found = 0.0
    for stack in _stacks(model):
        gates = GATES[type(stack).__name__]
        widths = [stack.input_size, *stack.hidden_widths]
        for hidden, read, given in zip(stack.hidden_sizes, widths, widths[1:], strict=False):
            found += (gates + 2) * hidden + 2 * (read + given)  # gates, cells; what is read and given, dropped out too
        found += gates * max(stack.hidden_sizes)  # gradients of one layer's gates
    sizes = (getattr(model.settings, name, None) or 0 for name in ("embedding_size", "output_size"))
    found += 4 * max(sizes)
    if model.settings.__dict__.get("inputs") == "char-cnn":
        found += DIFFERENT * 3 * LETTERS * sum(model.settings.filters)
    return found


def _products(model: Any, vocabulary: Vocabulary, batch_tokens: int) -> float:
    """Multiplications of a forward pass in matrix products, for each token."""
    counts = np.asarray(vocabulary.counts, np.float64)
    share = counts / counts.sum()
    output = model.output
    features = _output_features(output)
    found = float(sum(p.numel() for stack in _stacks(model) for p in stack.parameters() if p.dim() == 2))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(("output", "recurrent", "embedding")):
            found += module.weight.numel()
    if isinstance(output, AdaptiveSoftmax):
        bounds = [0, *output.bounds]
        found += output.head.numel()
        for k, (projection, tail) in enumerate(zip(output.projections, output.tails, strict=True), start=1):
            found += float(share[bounds[k] : bounds[k + 1]].sum()) * (projection.numel() + tail.numel())
    elif isinstance(output, ClassSoftmax):
        sizes = np.diff(output.bounds)
        mass = np.add.reduceat(share, output.bounds[:-1])
        found += features * (len(sizes) + float((mass * sizes).sum()))
    elif isinstance(output, SampledOutput):
        found += features * (output.draws.samples + 1)
    else:
        found += output.weight.numel()
    if model.settings.__dict__.get("inputs", "words") != "words":
        # A word is spelt once a batch, however often it occurs in it.
        found += DIFFERENT * sum(p.numel() for p in model.embedding.parameters() if p.dim() == 2)
    return found


def _output_features(output: Any) -> int:
    weight: Tensor = output.head if isinstance(output, AdaptiveSoftmax) else output.weight
    return weight.shape[1]


def _moved(model: Any, training: TrainingSettings, batch_tokens: int) -> float:
    """Bytes that a step moves between memory and processor, at the least.

    The recurrent weights are read at every time step, forward and backward, the others once each way; the optimiser
    reads and writes each weight it changes, with its gradient and what else it keeps of it.
    """
    memory = _memory(model, training, batch_tokens)
    recurrent = float(sum(p.numel() for stack in _stacks(model) for p in stack.parameters()))
    updated = memory["gradients"] * (3 + 2 * MOMENTS[training.optimizer])
    return 2 * FLOAT * recurrent * training.chunk_length + updated + 3 * memory["activations"]


def _stacks(model: Any) -> list[Recurrent]:
    """The recurrent stack of the model itself, not those that spell words."""
    return [model.recurrent] if hasattr(model, "recurrent") else []


# ---- measured -------------------------------------------------------------------------------------------------------


def _measured(task: Mapping[str, Any]) -> dict[str, float]:
    """Make real steps in a process of their own, so that its peak memory is theirs."""
    code = "import sys; from recurra.planning import _measure; _measure(sys.stdin.read())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(task), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or "killed, probably for want of memory").splitlines()[-1]
        raise UserError(f"the steps to be measured did not end well: {last}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _measure(text: str) -> None:
    """Train for a few steps on made-up words; print seconds a step, tokens a second and peak memory as JSON."""
    task = json.loads(text)
    model_settings = from_mapping(KINDS[task["kind"]].settings, task["model"], "plan")
    steps = task["steps"] + 1
    limits = {"max_steps": steps, "max_minutes": None, "epochs": None, "log_every": 1}
    training = dataclasses.replace(from_mapping(TrainingSettings, task["training"], "plan"), **limits)
    vocabulary = invented_vocabulary(task["vocabulary_size"], task["tokens"])
    torch.manual_seed(training.seed)
    model = KINDS[task["kind"]].model(model_settings, vocabulary)
    counts = np.asarray(vocabulary.counts, np.float64)
    assert training.batch_size is not None
    shape = training.chunk_length + 1, training.batch_size
    random = np.random.default_rng(training.seed)
    words = torch.from_numpy(np.searchsorted(np.cumsum(counts / counts.sum()), random.random((steps, *shape))))
    words.clamp_(max=len(counts) - 1)
    batches = [Batch(text[:-1], text[1:]) for text in words]
    model.assign_ngrams(words.transpose(1, 2).flatten().numpy())  # where it has any
    seconds: list[float] = []
    trainer = Trainer(model, training, lambda _: batches, watch=lambda progress: seconds.append(progress.seconds))
    trainer.run()
    step = float(np.median(np.diff(seconds)))
    result = {
        "step_seconds": step,
        "tokens_per_second": batches[0].tokens / step,
        "peak_bytes": _peak_memory(),
    }
    print(json.dumps(result))  # noqa: T201 - what the process is for


def _peak_memory() -> float:
    """Most bytes that this process has had in memory."""
    try:
        return _kernel_says("/proc/self/status", "VmHWM")
    except (OSError, KeyError):
        import resource  # where a process that was started by a larger one may show the larger one's

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)

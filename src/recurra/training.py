"""The Trainer: from batches to trained weights, stoppable at any moment and resumable to the bit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from recurra import distributed
from recurra.checkpoint import read_tensors, write_tensors
from recurra.config import UserError, setting
from recurra.files import remove_leftovers
from recurra.models.protocol import LossSum, evaluating
from recurra.optimization import (
    LEARNING_RATES,
    OPTIMIZERS,
    SCHEDULES,
    Plateau,
    WeightAverage,
    build_optimizer,
    clip_gradients,
    norm_limit,
    schedule_factor,
)

__all__ = [
    "LIMITS",
    "Diverged",
    "ExampleTrainingSettings",
    "Progress",
    "Trainer",
    "TrainerSettings",
    "TrainingSettings",
    "Watcher",
    "check_support",
]

STATE = "state.safetensors"

# What may be told anew on resuming: how long to go on and where, but nothing that the steps made so far depend on.
LIMITS = frozenset(
    {
        "epochs",
        "max_steps",
        "max_minutes",
        "early_stopping",
        "save_every",
        "log_every",
        "device",
        "threads",
        "tensorboard",
    }
)


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How any model is trained; ``None`` is settled from the data and the time there is."""

    epochs: int | None = setting(None, "passes over the training data", minimum=1)
    max_steps: int | None = setting(None, "updates of the weights", minimum=1)
    max_minutes: float | None = setting(None, "minutes of training", minimum=0)
    optimizer: str = setting("adam", "optimiser", choices=OPTIMIZERS)
    learning_rate: float | None = setting(None, "highest learning rate", minimum=0)
    beta2: float = setting(0.99, "decay of Adam's and RMSProp's squared gradients", minimum=0, maximum=0.99999)
    momentum: float = setting(0.0, "of SGD and RMSProp", minimum=0, maximum=1)
    weight_decay: float = setting(0.0, "pull of the weights towards zero", minimum=0)
    schedule: str = setting("cosine", "of the learning rate", choices=SCHEDULES)
    warmup: float = setting(0.05, "part of the run over which the learning rate rises", minimum=0, maximum=1)
    plateau_factor: float = setting(0.25, "what a plateau multiplies the learning rate by", minimum=0, maximum=1)
    plateau_patience: int = setting(0, "evaluations without gain that a plateau waits", minimum=0)
    clip_norm: float | None = setting(None, "largest joint norm of the gradients; 0 for no clipping", minimum=0)
    clip_value: float = setting(0.0, "largest entry of a gradient; 0 for no clipping", minimum=0)
    average: float = setting(0.0, "decay of an exponential average of the weights; 0 for none", minimum=0, maximum=1)
    asgd_trigger: int = setting(5, "evaluations without gain after which asgd begins to average", minimum=1)
    early_stopping: int = setting(0, "stop after so many evaluations without gain; 0 for never", minimum=0)
    evaluate_every: int | None = setting(None, "steps between validations", minimum=1)
    save_every: float = setting(60.0, "seconds between saves of the run's state", minimum=0)
    log_every: int = setting(50, "steps between lines of the log", minimum=1)
    precision: str = setting("auto", "of the products", choices=("auto", "float32", "bfloat16"))
    device: str = setting("auto", "where to train: auto, cpu, cuda, cuda:1, mps")
    threads: int | None = setting(None, "threads of the CPU", minimum=1)
    seed: int = setting(1, "of every random choice", minimum=0, maximum=2**53)
    tensorboard: bool = setting(False, "write TensorBoard events too")

    @property
    def bounded(self) -> bool:
        """Whether it is known beforehand when training ends, so that schedules can go by how much of it is over."""
        return bool(self.epochs or self.max_steps or self.max_minutes is not None)

    def check_end(self, *, validated: bool = False) -> None:
        """Refuse settings under which training would never end.

        Args:
            validated: whether there is validation data, so that early stopping is an end, too.
        """
        if not (self.bounded or (self.early_stopping and validated)):
            raise UserError(
                "training has no end: give epochs, max_steps or max_minutes, or early_stopping and validation data"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(TrainerSettings):
    """How a language model is trained on running text."""

    batch_size: int | None = setting(None, "rows of a batch (all ranks together)", minimum=1)
    chunk_length: int = setting(35, "time steps that gradients flow back through", minimum=1)
    evaluate_tokens: int = setting(100_000, "tokens of validation text read at each validation", minimum=1)


@dataclass(frozen=True, kw_only=True)
class ExampleTrainingSettings(TrainerSettings):
    """How a model is trained on examples of different lengths."""

    batch_size: int | None = setting(None, "examples of a batch, at most (all ranks together)", minimum=1)
    batch_tokens: int | None = setting(None, "time steps of a batch, at most, padding among them", minimum=1)


def check_support(settings: TrainerSettings, device: torch.device) -> None:
    """Refuse what this device or this installation cannot do."""
    if settings.precision == "bfloat16" and not _has_bfloat16(device):
        raise UserError(f"this {device.type} has no bfloat16 products; leave --precision at auto or float32")
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("TensorBoard events need tensorboard: pip install 'recurra[tensorboard]'")


class Diverged(RuntimeError):
    """The loss or the gradient was no longer finite; the text says where, and what to try."""


@dataclass(frozen=True)
class Progress:
    """How a run is getting on, as the log has it.

    Attributes:
        step: updates made.
        epoch: passes begun, from 1.
        fraction: part of the run that is over, 0 to 1.
        seconds: of training, over all sessions.
        tokens_per_second: since the last report, all ranks together; None where there was no step since.
        loss: training loss since the last report, nats per token; None likewise.
        gradient_norm: joint norm before clipping, at this step; None at the end of a run.
        learning_rate: at this step.
        valid: validation loss in nats per token, where this report is one of an evaluation.
        score: of the validation data then, where the trainer was given a way to tell; the higher the better.
        score_name: what it is; a minus before it says that the sign was changed.
    """

    step: int
    epoch: int
    fraction: float
    seconds: float
    tokens_per_second: float | None
    loss: float | None
    gradient_norm: float | None
    learning_rate: float
    valid: float | None = None
    score: float | None = None
    score_name: str = "score"

    def to_mapping(self) -> dict[str, float | str]:
        """As a line of the log."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        if self.score is None:
            del known["score_name"]
        return known


Watcher = Callable[[Progress], None]


@dataclass
class _Run:
    """Where a run is: all of its state but tensors. JSON."""

    step: int = 0
    epoch: int = 0
    chunk: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    since_best: int = 0
    validated_step: int = -1
    saved_best: bool = False
    averaging: bool = False
    average_count: int = 0
    log_bytes: int = 0
    window_nats: float = 0.0
    window_tokens: int = 0
    window_seconds: float = 0.0
    validations: list[float] = field(default_factory=list)
    plateau: dict[str, float] = field(default_factory=dict)
    finished: bool = False


class Trainer:
    """Trains a model on batches, epoch by epoch.

    The loss of a step is the mean over the tokens of the whole batch, on however many ranks it lies; every rank makes
    the same update. The random numbers of a step depend on seed, step and rank alone, the order of the batches on seed
    and epoch: a resumed run goes on exactly as it would have. Where only early stopping ends a run, nobody knows how
    much of it is over, and the learning rate has no schedule but that of a plateau.

    Args:
        model: ``model(batch, state) -> (LossSum, state)`` is its training loss; ``model.detach(state)`` cuts the graph.
        settings: with no setting left to choose but the limits.
        batches: from an epoch's number to its batches, this rank's part of them: :class:`recurra.text.batches.Batch` or
            whatever else has ``tokens`` and ``to(device)`` and is what the model takes.
        valid: batches of validation data, this rank's part; empty for none.
        score: what is measured and how good the model is by it on validation data, the higher the better: where given,
            the best model is the one with the highest score, and not the one with the lowest loss. The writing rank
            alone is asked.
        carry_state: whether the state goes on from batch to batch within an epoch (contiguous streams).
        directory: where the log and the state of the run are kept; ``None`` keeps nothing.
        keep: is called, on the writing rank, whenever the model is the best so far: writes its weights.
        watch: is called with each line of the log.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainerSettings,
        batches: Callable[[int], Sequence[Any]],
        *,
        valid: Sequence[Any] = (),
        score: Callable[[], tuple[str, float]] | None = None,
        carry_state: bool = True,
        directory: Path | None = None,
        keep: Callable[[], None] | None = None,
        watch: Watcher | None = None,
    ) -> None:
        self.model, self.settings, self.batches, self.valid, self.score = model, settings, batches, valid, score
        self.carry_state, self.directory, self.keep, self.watch = carry_state, directory, keep, watch
        self.device = next(model.parameters()).device
        settings.check_end(validated=len(valid) > 0)
        check_support(settings, self.device)
        default_rate = LEARNING_RATES[settings.optimizer]
        self.learning_rate = default_rate if settings.learning_rate is None else settings.learning_rate
        self.clip_norm = norm_limit(settings.clip_norm, settings.optimizer)
        self.optimizer = build_optimizer(
            settings.optimizer,
            model,
            learning_rate=self.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            betas=(0.9, settings.beta2),
        )
        self.plateau = Plateau(settings.plateau_factor, settings.plateau_patience)
        self.average: WeightAverage | None = None
        self.run_state = _Run()
        self.recurrent_state: Any = None
        self.events: Any = None
        self._signalled: signal.Signals | None = None  # what came to this rank
        self._stop: signal.Signals | None = None  # what all ranks have agreed to heed
        if settings.average:
            self._start_averaging(settings.average)

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> signal.Signals | None:
        """Train until a limit is reached or a signal comes.

        The best weights are those that ``keep`` wrote last, averaged where there is an average; the model itself is
        left with the weights of the last step.

        Returns:
            The signal that stopped it, if one did: the run can then be resumed.

        Raises:
            Diverged: a loss or gradient is not finite; the best weights so far are kept.
        """
        run, settings = self.run_state, self.settings
        with self._log_file() as log, self._events(), self._signals():
            last_save = last_evaluation = session_start = time.monotonic()
            seconds_before, last_time = run.seconds, session_start
            evaluation_cost = 0.0
            epoch_batches: Sequence[Any] = self.batches(run.epoch)
            while True:
                fraction = self._agree(1.0 if run.finished else self._fraction(len(epoch_batches)))
                if fraction >= 1 or self._stop:
                    run.finished = fraction >= 1
                    break
                learning_rate = self._set_learning_rate(fraction)
                nats, tokens, norm = self._step(epoch_batches[run.chunk])
                if not (math.isfinite(nats) and math.isfinite(norm)):
                    raise self._diverged(nats, norm, learning_rate)
                run.step += 1
                run.chunk += 1
                run.window_nats += nats
                run.window_tokens += tokens
                run.tokens += tokens
                epoch_ends = run.chunk == len(epoch_batches)
                if epoch_ends:
                    run.epoch, run.chunk, self.recurrent_state = run.epoch + 1, 0, None
                    epoch_batches = self.batches(run.epoch)
                now = time.monotonic()
                run.seconds = seconds_before + now - session_start
                run.window_seconds += now - last_time
                last_time = now
                by_time = settings.evaluate_every is None and settings.max_minutes is not None
                due = (
                    now - last_evaluation > max(20.0, 30 * evaluation_cost)
                    if by_time
                    else (run.step % settings.evaluate_every == 0 if settings.evaluate_every else epoch_ends)
                )
                due = len(self.valid) > 0 and bool(self._agree(float(due)))
                if due or run.step % settings.log_every == 0:
                    found = self._evaluated() if due else (None, None, "score")
                    fraction = self._fraction(len(epoch_batches))
                    self._report(self._progress(fraction, learning_rate, norm, found), log)
                    last_time = time.monotonic()
                    valid, score, _ = found
                    if valid is not None:
                        evaluation_cost, last_evaluation = last_time - now, last_time
                        run.seconds += evaluation_cost
                        self._validated(valid if score is None else -score)
                if self._agree(float(time.monotonic() - last_save >= settings.save_every)):
                    self.save()
                    last_save = time.monotonic()
            self._end(log)
        return self._stop

    def finish(self) -> None:
        """End the run after the step at hand: for a ``score`` or ``watch`` that has seen enough.

        A run that is resumed goes on to its limit.
        """
        self.run_state.finished = True

    def _step(self, batch: Any) -> tuple[float, int, float]:
        """One update. Returns the loss in nats and the tokens of the whole batch, and the norm of the gradient."""
        settings = self.settings
        torch.manual_seed(_seed(settings.seed, self.run_state.step, distributed.rank()))
        batch = batch.to(self.device)
        state = self.recurrent_state
        if state is not None:
            state = self.model.detach(state)  # type: ignore[operator]  # truncated BPTT: gradients stop at the chunk's start
        tokens = int(distributed.sum_over_ranks(torch.tensor(batch.tokens)))
        if not tokens:  # nothing is to be predicted, so there is nothing to learn
            return 0.0, 0, 0.0
        self.optimizer.zero_grad()
        with self._autocast():
            loss, state = self.model(batch, state)
        (loss.nats / tokens).backward()
        parameters = list(self.model.parameters())
        distributed.sum_gradients(parameters)
        norm = clip_gradients(parameters, norm=self.clip_norm, value=settings.clip_value or None)
        nats, norm_value = float(distributed.sum_over_ranks(loss.nats.detach())), float(norm)
        if math.isfinite(nats) and math.isfinite(norm_value):
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model)
        self.recurrent_state = state if self.carry_state else None
        return nats, tokens, norm_value

    def evaluate(self) -> float:
        """Mean loss of the validation batches in nats per token, with the averaged weights where there are any."""
        total = LossSum(torch.zeros((), dtype=torch.float64), 0)
        state = None
        with self._averaged(), evaluating(self.model), torch.no_grad(), self._autocast():
            for batch in self.valid:
                loss, state = self.model(batch.to(self.device), state)
                state = state if self.carry_state else None
                total += LossSum(loss.nats.cpu().double(), loss.tokens)
        sums = distributed.sum_over_ranks(torch.tensor([float(total.nats), total.tokens], dtype=torch.float64))
        if not sums[1]:
            raise ValueError("expected validation data in which something is to be predicted, there is nothing")
        return float(sums[0] / sums[1])

    def _evaluated(self) -> tuple[float, float | None, str]:
        """Loss and score on the validation data, and what the score is."""
        loss, name, value = self.evaluate(), "score", 0.0
        if self.score is None:
            return loss, None, name
        if distributed.is_writer():
            with self._averaged(), evaluating(self.model), torch.no_grad():
                name, value = self.score()
        return loss, self._agree(value), name

    # ---- what a run decides ---------------------------------------------------------------------------------------

    def _fraction(self, epoch_length: int) -> float:
        """The part of the run that is over, by whichever limit is nearest."""
        run, settings = self.run_state, self.settings
        parts = [0.0]
        if settings.max_minutes is not None:
            parts.append(run.seconds / max(settings.max_minutes * 60, 1e-9))
        if settings.max_steps:
            parts.append(run.step / settings.max_steps)
        if settings.epochs:
            parts.append((run.epoch + run.chunk / epoch_length) / settings.epochs)
        if settings.early_stopping and run.since_best >= settings.early_stopping:
            parts.append(1.0)
        return min(1.0, max(parts))

    def _set_learning_rate(self, fraction: float) -> float:
        settings = self.settings
        factor = self.plateau.scale
        if settings.bounded:
            factor *= schedule_factor(settings.schedule, fraction, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group.get("rate", self.learning_rate)  # some parameters have a rate of their own
        return factor * self.learning_rate

    def _validated(self, loss: float) -> None:
        """Draw the conclusions from a validation: keep the model, lower the learning rate, begin to average.

        Args:
            loss: the lower the better: where there are scores, the score with its sign changed.
        """
        run, settings = self.run_state, self.settings
        run.since_best = 0 if loss < run.best else run.since_best + 1
        if loss < run.best:
            run.best = loss
            self._keep()
        if settings.schedule == "plateau":
            self.plateau.update(loss)
        earlier = run.validations[: -settings.asgd_trigger]
        if settings.optimizer == "asgd" and self.average is None and earlier and loss > min(earlier):
            self._start_averaging(1.0)
        run.validations.append(loss)
        run.validated_step = run.step

    def _start_averaging(self, decay: float) -> None:
        self.average = WeightAverage(self.model, decay)
        self.run_state.averaging = True

    def _keep(self) -> None:
        self.run_state.saved_best = True
        if self.keep is not None and distributed.is_writer():
            with self._averaged():
                self.keep()

    def _progress(
        self, fraction: float, rate: float, norm: float | None, found: tuple[float | None, float | None, str]
    ) -> Progress:
        """What there is to report; the means are over the steps since the last report, and begin anew."""
        run = self.run_state
        tokens, nats, seconds = run.window_tokens, run.window_nats, run.window_seconds
        run.window_tokens, run.window_nats, run.window_seconds = 0, 0.0, 0.0
        return Progress(
            step=run.step,
            epoch=run.epoch + (run.chunk > 0),
            fraction=fraction,
            seconds=run.seconds,
            tokens_per_second=tokens / max(seconds, 1e-9) if tokens else None,
            loss=nats / tokens if tokens else None,
            gradient_norm=norm,
            learning_rate=rate,
            valid=found[0],
            score=found[1],
            score_name=found[2],
        )

    def _end(self, log: IO[str] | None) -> None:
        """Validate once more where the run is over, keep what must be kept, save."""
        run = self.run_state
        if run.finished and self.valid and run.validated_step != run.step:
            loss, score, _ = found = self._evaluated()
            self._report(self._progress(1.0, self._set_learning_rate(1.0), None, found), log)
            self._validated(loss if score is None else -score)
        if not run.saved_best or not self.valid:
            self._keep()
        self.save()

    def _diverged(self, nats: float, norm: float, rate: float) -> Diverged:
        what = f"loss {nats}" if not math.isfinite(nats) else f"gradient norm {norm}"
        kept = "the best weights so far are kept" if self.run_state.saved_best else "there was nothing to keep yet"
        return Diverged(
            f"step {self.run_state.step + 1}: {what} at learning rate {rate:.3g}; {kept}."
            f" Try a lower --learning-rate (now {self.learning_rate:g}) or a smaller --clip-norm"
        )

    # ---- saving and resuming --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state of the run: one file, whole or not at all."""
        if self.directory is None:
            return
        rows = [distributed.gather_rows(t, dim=-2) for t in _tensors(self.recurrent_state)]
        if not distributed.is_writer():
            return
        run = self.run_state
        run.plateau = self.plateau.state()
        run.average_count = self.average.count if self.average else 0
        tensors: dict[str, Tensor] = {f"model.{name}": p for name, p in self.model.named_parameters()}
        tensors |= {f"recurrent.{i}": t for i, t in enumerate(rows)}
        if self.average:
            tensors |= {f"average.{name}": t for name, t in self.average.weights.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items() if value is not None
            }
        path = self.directory / STATE
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {"run": json.dumps(vars(run))})

    def resume(self) -> bool:
        """Take up the run that :meth:`save` wrote; False where there is none, and the run starts from the beginning."""
        assert self.directory is not None
        path = self.directory / STATE
        if not path.exists():
            return False
        tensors, metadata = read_tensors(path)
        self.run_state = run = _Run(**json.loads(metadata["run"]))
        run.finished = False  # the limits may have been raised since
        self.plateau.load(run.plateau)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "recurrent": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(parts["model"][name])
        if run.averaging:
            self._start_averaging(self.settings.average or 1.0)
            assert self.average is not None
            self.average.count = run.average_count
            for name, weight in self.average.weights.items():
                weight.copy_(parts["average"][name])
        state_dict = self.optimizer.state_dict()
        state_dict["state"] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state_dict["state"].setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(state_dict)
        if parts["recurrent"]:
            values = iter(parts["recurrent"][str(i)] for i in range(len(parts["recurrent"])))
            rows = next(iter(parts["recurrent"].values())).shape[-2]
            mine = distributed.own_rows(rows)
            template = self.model.start(rows)  # type: ignore[operator]
            self.recurrent_state = _rebuild(template, values, lambda t: t[..., mine, :].contiguous().to(self.device))
        return True

    @contextmanager
    def _log_file(self) -> Iterator[IO[str] | None]:
        """The log, cut back to where the state of the run was saved."""
        if self.directory is None or not distributed.is_writer():
            yield None
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.directory)
        remove_leftovers(self.directory.parent)
        path = self.directory.parent / "log.jsonl"
        path.touch()
        with open(path, "r+", encoding="utf-8") as log:
            log.truncate(self.run_state.log_bytes)
            log.seek(0, 2)
            yield log

    def _report(self, progress: Progress, log: IO[str] | None) -> None:
        if log is not None:
            log.write(json.dumps(progress.to_mapping()) + "\n")
            log.flush()
            self.run_state.log_bytes = log.tell()
        if self.events is not None:
            for name, value in progress.to_mapping().items():
                if isinstance(value, str):
                    continue
                self.events.add_scalar(name, value, progress.step)
        if self.watch is not None and distributed.is_writer():
            self.watch(progress)

    @contextmanager
    def _events(self) -> Iterator[None]:
        """TensorBoard events for the length of the block, where they were asked for."""
        if not self.settings.tensorboard or self.directory is None or not distributed.is_writer():
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = self.directory.parent / "tensorboard"
        with SummaryWriter(folder, purge_step=self.run_state.step) as self.events:
            yield
        self.events = None

    # ---- small things ---------------------------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where it was asked for, or where the device gains by it."""
        gains = self.device.type == "cuda" and _has_bfloat16(self.device)
        wanted = self.settings.precision == "bfloat16" or (self.settings.precision == "auto" and gains)
        return torch.autocast(self.device.type, torch.bfloat16) if wanted else nullcontext()

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.applied_to(self.model) if self.average is not None and self.average.count else nullcontext()

    def _agree(self, value: float) -> float:
        """The writing rank's value, on every rank: all stop, evaluate and save at the same step."""
        signalled = self._signalled  # read once: it may come at any moment, and what is heeded must be what was sent
        if distributed.world_size() == 1:
            self._stop = signalled
            return value
        flags = torch.tensor([value if distributed.is_writer() else 0.0, float(signalled or 0)], dtype=torch.float64)
        value, stop = distributed.sum_over_ranks(flags).tolist()
        if stop:
            self._stop = signalled or signal.SIGTERM
        return value

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM end the step in hand and save; the second ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in wanted}

        def stop(number: int, _frame: object) -> None:
            self._signalled = signal.Signals(number)
            for each in wanted:
                signal.signal(each, before[each])

        for number in wanted:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number in wanted:
                signal.signal(number, before[number])


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; a CPU without it emulates most products, and refuses an LSTM's."""
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported())
        case "cpu":
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case _:
            return False


def _seed(*numbers: int) -> int:
    """A well-mixed seed: torch's generator looks at 32 bits of it only."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a nest of tuples, in order."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in _tensors(part)]


def _rebuild(template: Any, values: Iterator[Tensor], ready: Callable[[Tensor], Tensor]) -> Any:
    """A nest like ``template`` with the next of ``values`` in place of each tensor."""
    if isinstance(template, Tensor):
        return ready(next(values))
    parts = [_rebuild(part, values, ready) for part in template]
    return type(template)(*parts) if hasattr(template, "_fields") else type(template)(parts)

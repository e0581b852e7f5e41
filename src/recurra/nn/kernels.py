"""The recurrences once more, fast: a layer forward and backward, as one operation of autograd.

What the equations of ``cells.py`` say, in another order:

- What the inputs contribute is one matrix product for all steps.
- The loop forward has in it only the product with the hidden-to-hidden weights, and the gates, in place.
- The loop backward has in it only what depends on the gradient of h(t): the local derivatives are there before it.
- The gradients of all weights are one product each over all steps: the sum over time steps of backpropagation through
  time, in one stroke.
- The batch shrinks as sequences end, so that no work is done on padding.

There are two loops of each kind: of tensor operations, here; and compiled ones (``cpp/``), which do a step with
all its gates in one go, and keep the weights laid out from step to step.

Inside, all data is packed: R rows, those of step t being the first N_t sequences, long ones first (``sequences.py``); a
padded batch has N rows a step. Other letters are those of ``recurrent.py``; G is the number of gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import cells, native
from .cells import HiddenState, LSTMState, State, Weights
from .products import MOST_ROWS, linear, prepared, product
from .stepper import Stepper
from .unrolled import Layer, readable_layer

__all__ = ["MODES", "kernel_layer"]

MODES, GATES = native.MODES, native.GATES


def kernel_layer(
    mode: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    initial: Sequence[State],
    weights: Sequence[Weights],
    *,
    compiled: bool,
) -> Layer:
    """Run a layer; for the arguments see ``unrolled.py``.

    Args:
        mode: one of ``MODES``.
        compiled: use the loops of ``cpp/``, which ``native.available`` must have said are there.
    """
    if compiled and batch_sizes is None and _few(data, initial) and not _to_be_differentiated(data, initial, weights):
        return _one_step(mode, data, initial, weights)
    steps = _Steps(len(data), data.shape[1]) if batch_sizes is None else _Steps(batch_sizes)
    flat = data.reshape(-1, data.shape[-1])
    outputs, states = [], []
    for direction, (state, own) in enumerate(zip(initial, weights, strict=True)):
        plan = _Plan(mode, steps, direction == 1, compiled)
        cell = state.cell if isinstance(state, LSTMState) else None
        output, hidden, last_cell = _Recurrence.apply(plan, flat, state.hidden, cell, *own[:5])
        outputs.append(output.view(*data.shape[:-1], output.shape[-1]))
        states.append(HiddenState(hidden) if last_cell is None else LSTMState(hidden, last_cell))
    return Layer(outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), states, [])


def _few(data: Tensor, initial: Sequence[State]) -> bool:
    parts = (data, *(part for state in initial for part in state))
    return len(data) == 1 and 0 < data.shape[1] <= MOST_ROWS and all(part.dtype == torch.float32 for part in parts)


def _to_be_differentiated(data: Tensor, initial: Sequence[State], weights: Sequence[Weights]) -> bool:
    parts = (data, *(part for group in (*initial, *weights) for part in group))
    return torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)


def _one_step(mode: str, data: Tensor, initial: Sequence[State], weights: Sequence[Weights]) -> Layer:
    """One step of a few sequences."""
    outputs: list[Tensor] = []
    states: list[State] = []
    for state, own in zip(initial, weights, strict=True):
        cell = state.cell[None] if isinstance(state, LSTMState) else None
        hidden, last_cell = Stepper(mode, [own])(data[0], state.hidden[None], cell)
        outputs.append(hidden)
        states.append(HiddenState(hidden[0]) if last_cell is None else LSTMState(hidden[0], last_cell[0]))
    return Layer(torch.cat(outputs, -1), states, [])


class _Steps:
    """Where the rows of each step lie."""

    def __init__(self, batch_sizes: Tensor | int, batch: int | None = None) -> None:
        """Take the N_t of each step; or, where all are the same, L and N."""
        self.even = batch is not None
        sizes = [batch or 0] * batch_sizes if isinstance(batch_sizes, int) else batch_sizes.tolist()
        self.sizes: list[int] = sizes
        self.firsts: list[int] = [0]
        for size in sizes:
            self.firsts.append(self.firsts[-1] + size)
        self.rows = self.firsts.pop()
        self.batch_sizes = torch.tensor(sizes, dtype=torch.long, device="cpu")

    def places(self, backwards: bool) -> Iterator[tuple[slice, int, slice]]:
        """In the order of reading: a step's rows; how many of them had a step before; the rows of that."""
        order = range(len(self.sizes))
        before = slice(0, 0)
        for t in reversed(order) if backwards else order:
            rows = slice(self.firsts[t], self.firsts[t] + self.sizes[t])
            known = min(self.sizes[t], before.stop - before.start)
            yield rows, known, slice(before.start, before.start + known)
            before = rows

    def ends(self, backwards: bool) -> Tensor:
        """Of each sequence that has a step the row of its last one in the order of reading."""
        sequences = torch.arange(self.sizes[0], device="cpu")
        if backwards:
            return sequences
        lengths = (self.batch_sizes[:, None] > sequences).sum(0)
        return torch.tensor(self.firsts, device="cpu")[lengths - 1] + sequences

    def befores(self, backwards: bool) -> Tensor:
        """Of each row that of the same sequence a step before in the order of reading; row R + n for none."""
        steps = torch.arange(len(self.sizes), device="cpu").repeat_interleave(self.batch_sizes)
        rows = torch.arange(self.rows, device="cpu")
        sequences = rows - torch.tensor(self.firsts, device="cpu")[steps]
        others = steps + 1 if backwards else steps - 1
        sizes = torch.cat((self.batch_sizes, self.batch_sizes.new_zeros(1)))[others]  # none before the first
        distance = self.batch_sizes[steps] if backwards else -sizes
        return torch.where(sequences < sizes, rows + distance, self.rows + sequences)


@dataclass(frozen=True)
class _Plan:
    """What is to be done, but for the numbers."""

    mode: str
    steps: _Steps
    backwards: bool
    compiled: bool

    def state_at_end(self, values: Tensor, initial: Tensor) -> Tensor:
        """Of ``values [R, features]`` those where each sequence ended, ``[N, features]``."""
        batch = len(initial)
        if self.steps.even:
            return (values[:batch] if self.backwards else values[self.steps.rows - batch :]).clone()
        rows = self.steps.ends(self.backwards).to(values.device)
        return torch.cat((values.index_select(0, rows), initial[len(rows) :]))

    def state_before(self, values: Tensor, initial: Tensor) -> Tensor:
        """Of ``values [R, features]`` those of the step before each, ``[R, features]``."""
        if self.steps.even:
            batch = len(initial)
            if self.backwards:
                return torch.cat((values[batch:], initial))
            return torch.cat((initial, values[: self.steps.rows - batch]))
        rows = self.steps.befores(self.backwards).to(values.device)
        if self.backwards:
            return torch.cat((values, initial)).index_select(0, rows)
        first = self.steps.sizes[0]  # the first step's rows come before all others
        found = torch.empty_like(values)
        found[:first] = initial[:first]
        torch.index_select(values, 0, rows[first:], out=found[first:])
        return found


@dataclass
class _Loop:
    """The arrays that a loop reads and writes: those of ``Layer`` in ``cpp/layer.h``, where their shapes are."""

    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_hr: Tensor | None
    first_hidden: Tensor
    first_cell: Tensor | None
    gates: Tensor
    cells: Tensor | None
    # GRU: W_h h(t-1) + b_hh of the candidate; reset before: reset * h(t-1); LSTM: what is projected
    inner: Tensor | None
    output: Tensor
    grad_output: Tensor | None = None
    grad_gates: Tensor | None = None
    grad_inner: Tensor | None = None  # of a GRU
    grad_projected: Tensor | None = None
    grad_hidden: Tensor | None = None
    grad_cell: Tensor | None = None

    def run(self, name: str, plan: _Plan) -> None:
        """Run the loop ``forward`` or ``backward``."""
        if plan.compiled:
            steps = plan.steps
            numbers = {
                "mode": MODES.index(plan.mode),
                "steps": len(steps.sizes),
                "batch": len(self.first_hidden),
                "hidden": self.gates.shape[1] // GATES.get(plan.mode, 1),
                "width": self.output.shape[1],
                "backwards": int(plan.backwards),
            }
            native.run(name, numbers=numbers, tensors={**vars(self), "batch_sizes": steps.batch_sizes})
        else:
            (_forward if name == "forward" else _backward)(self, plan)


class _Recurrence(torch.autograd.Function):
    """One direction of one layer: ``(data, h, c, weights) -> (output, h, c)``, c None where there is none."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: _Plan,
        data: Tensor,
        hidden: Tensor,
        cell: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        weight_hr: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        given = (data, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        dtype = weight_ih.dtype  # autocast has nothing to say here: lower precision would have to be emulated
        data, hidden = data.to(dtype), hidden.to(dtype)
        cell = None if cell is None else cell.to(dtype)
        size = len(weight_hh) // GATES.get(plan.mode, 1)
        bias = bias_ih
        if bias_ih is not None and bias_hh is not None:
            bias = bias_ih + bias_hh
            if plan.mode == "GRU":  # the candidate's own is inside the reset
                bias[2 * size :] = bias_ih[2 * size :]
        with torch.autocast(data.device.type, enabled=False):
            rows = plan.steps.rows
            has_inner = plan.mode.startswith("GRU") or weight_hr is not None
            loop = _Loop(
                weight_hh.contiguous(),
                None if bias_hh is None else bias_hh.contiguous(),
                None if weight_hr is None else weight_hr.contiguous(),
                hidden.contiguous(),
                None if cell is None else cell.contiguous(),
                gates=linear(data, weight_ih, bias),
                cells=None if cell is None else data.new_empty(rows, size),
                inner=data.new_empty(rows, size) if has_inner else None,
                output=data.new_empty(rows, hidden.shape[1]),
            )
            loop.run("forward", plan)
        ctx.plan = plan
        ctx.save_for_backward(*given, loop.gates, loop.cells, loop.inner, loop.output)
        last_hidden = plan.state_at_end(loop.output, loop.first_hidden)
        last_cell = None
        if loop.cells is not None and loop.first_cell is not None:
            last_cell = plan.state_at_end(loop.cells, loop.first_cell)
        return loop.output, last_hidden, last_cell

    @staticmethod
    def backward(
        ctx: Any, grad_output: Tensor, grad_hidden: Tensor, grad_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        saved = ctx.saved_tensors  # asked for once: checkpointing allows no more
        given = saved[:8]
        grads = (grad_output, grad_hidden) if grad_cell is None else (grad_output, grad_hidden, grad_cell)
        if torch.is_grad_enabled():  # to be differentiated again: made anew, by operations that autograd can follow
            return None, *_readable_gradients(plan, given, grads, ctx.needs_input_grad[1:])
        data, hidden, cell, weight_ih, weight_hh, _, bias_hh, weight_hr = given
        gates, cell_values, inner, output = saved[8:]
        wanted = ctx.needs_input_grad[1:]
        dtype = weight_ih.dtype
        with torch.autocast(data.device.type, enabled=False):
            x, h, c = data.to(dtype), hidden.to(dtype), None if cell is None else cell.to(dtype)
            size = len(weight_hh) // GATES.get(plan.mode, 1)
            loop = _Loop(
                weight_hh.contiguous(),
                None if bias_hh is None else bias_hh.contiguous(),
                None if weight_hr is None else weight_hr.contiguous(),
                h.contiguous(),
                None if c is None else c.contiguous(),
                gates,
                cell_values,
                inner,
                output,
                grad_output=grad_output.contiguous(),
                grad_gates=torch.empty_like(gates),
                grad_inner=torch.empty_like(inner) if plan.mode == "GRU" else None,
                grad_projected=None if weight_hr is None else torch.empty_like(output),
                grad_hidden=grad_hidden.clone(memory_format=torch.contiguous_format),
                grad_cell=None if grad_cell is None else grad_cell.clone(memory_format=torch.contiguous_format),
            )
            loop.run("backward", plan)
            of_weights = _weight_gradients(plan, loop, x, weight_ih, size, wanted)
        of_states = (loop.grad_hidden, loop.grad_cell)
        of_data = of_weights[0]
        found = (of_data, *of_states, *of_weights[1:])
        return None, *(
            None if grad is None or not want else grad.to(before.dtype)
            for grad, want, before in zip(found, wanted, given, strict=True)
        )


def _weight_gradients(
    plan: _Plan, loop: _Loop, data: Tensor, weight_ih: Tensor, size: int, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of data, weight_ih, weight_hh, bias_ih, bias_hh and weight_hr: each one product over all steps."""
    for_data, _, _, for_ih, for_hh, for_bias_ih, for_bias_hh, for_hr = wanted
    grad = loop.grad_gates
    assert grad is not None
    direct = 2 * size if plan.mode.startswith("GRU") else grad.shape[1]  # rows of W_h that multiply h(t-1) for a gate
    data_grad = linear(grad, weight_ih.t()) if for_data else None
    ih_grad = product(grad.t(), data) if for_ih else None
    hh_grad = bias_ih_grad = bias_hh_grad = hr_grad = None
    if for_hh:
        before = plan.state_before(loop.output, loop.first_hidden)
        hh_grad = torch.empty_like(loop.weight_hh)
        product(grad[:, :direct].t(), before, out=hh_grad[:direct])
        if plan.mode == "GRU":
            assert loop.grad_inner is not None
            product(loop.grad_inner.t(), before, out=hh_grad[direct:])
        elif plan.mode == "GRU_RESET_BEFORE":
            assert loop.inner is not None
            product(grad[:, direct:].t(), loop.inner, out=hh_grad[direct:])
    if for_bias_ih or for_bias_hh:
        bias_ih_grad = grad.sum(0)
        bias_hh_grad = bias_ih_grad.clone()
        if plan.mode == "GRU":
            assert loop.grad_inner is not None
            bias_hh_grad = torch.cat((bias_ih_grad[:direct], loop.grad_inner.sum(0)))
    if for_hr:
        assert loop.grad_projected is not None
        assert loop.inner is not None
        hr_grad = product(loop.grad_projected.t(), loop.inner)
    return data_grad, ih_grad, hh_grad, bias_ih_grad, bias_hh_grad, hr_grad


def _readable_gradients(
    plan: _Plan, given: Sequence[Tensor | None], grads: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    data, hidden, cell, *weights = given
    assert data is not None
    assert hidden is not None
    own = Weights(*weights)  # type: ignore[arg-type]  # the last may be None
    state: State = HiddenState(hidden) if cell is None else LSTMState(hidden, cell)
    directions = 2 if plan.backwards else 1  # the second one reads backwards
    done = readable_layer(_binding(plan.mode), data, plan.steps.batch_sizes, [state] * directions, [own] * directions)
    width = hidden.shape[1]
    results = [done.output[:, (directions - 1) * width :], *done.states[-1]]
    inputs = [part for part, want in zip(given, wanted, strict=True) if part is not None and want]
    found = iter(torch.autograd.grad(results, inputs, grads, create_graph=True, allow_unused=True))
    return [next(found) if part is not None and want else None for part, want in zip(given, wanted, strict=True)]


def _binding(mode: str) -> Callable[[Weights, State], cells.Step]:
    match mode:
        case "LSTM":
            return lambda weights, _: cells.bind_lstm(weights)
        case "GRU" | "GRU_RESET_BEFORE":
            return lambda weights, _: cells.bind_gru(weights, "after" if mode == "GRU" else "before")
        case _:
            return lambda weights, _: cells.bind_rnn(weights, mode.removeprefix("RNN_").lower())


# The loops, of tensor operations


def _forward(loop: _Loop, plan: _Plan) -> None:
    step = {"LSTM": _lstm_forward, "GRU": _gru_forward, "GRU_RESET_BEFORE": _gru_before_forward}.get(plan.mode)
    size = loop.gates.shape[1] // GATES.get(plan.mode, 1)
    main = loop.weight_hh[: 2 * size] if plan.mode == "GRU_RESET_BEFORE" else loop.weight_hh
    bias = None
    if plan.mode == "GRU" and loop.bias_hh is not None:  # of the candidate; the others' are in the gates already
        bias = torch.cat((loop.bias_hh.new_zeros(2 * size), loop.bias_hh[2 * size :]))
    recall = prepared(main, bias)
    second = loop.weight_hh[2 * size :] if plan.mode == "GRU_RESET_BEFORE" else loop.weight_hr
    recall_second = None if second is None else prepared(second)
    for rows, known, before in plan.steps.places(plan.backwards):
        count = rows.stop - rows.start
        hidden = _previous(loop.output, loop.first_hidden, known, before, count)
        if step is None:
            sums = loop.gates[rows].add_(recall(hidden))
            loop.output[rows] = cells.NONLINEARITIES[plan.mode.removeprefix("RNN_").lower()](sums)
        else:
            cell = None
            if loop.cells is not None and loop.first_cell is not None:
                cell = _previous(loop.cells, loop.first_cell, known, before, count)
            step(loop, rows, hidden, cell, recall, recall_second)


def _previous(values: Tensor, initial: Tensor, known: int, before: slice, count: int) -> Tensor:
    """The state of the step before, ``[N_t, features]``."""
    if known == count:
        return values[before]
    return torch.cat((values[before], initial[known:count])) if known else initial[:count]


_Product = Callable[[Tensor], Tensor]


def _lstm_forward(
    loop: _Loop, rows: slice, hidden: Tensor, cell: Tensor | None, recall: _Product, project: _Product | None
) -> None:
    gates = loop.gates[rows].add_(recall(hidden))
    input, forget, candidate, output = gates.chunk(4, 1)
    gates[:, : 2 * input.shape[1]].sigmoid_()
    candidate.tanh_()
    output.sigmoid_()
    assert loop.cells is not None
    assert cell is not None
    now = torch.mul(forget, cell, out=loop.cells[rows]).addcmul_(input, candidate)
    if project is None:
        torch.tanh(now, out=loop.output[rows]).mul_(output)
    else:
        assert loop.inner is not None
        loop.output[rows] = project(torch.tanh(now, out=loop.inner[rows]).mul_(output))


def _gru_forward(loop: _Loop, rows: slice, hidden: Tensor, _: Any, recall: _Product, __: Any) -> None:
    sums, gates = recall(hidden), loop.gates[rows]
    size = hidden.shape[1]
    reset, update, candidate = gates.chunk(3, 1)
    gates[:, : 2 * size].add_(sums[:, : 2 * size]).sigmoid_()
    assert loop.inner is not None
    recalled = loop.inner[rows].copy_(sums[:, 2 * size :])
    candidate.addcmul_(reset, recalled).tanh_()
    torch.lerp(candidate, hidden, update, out=loop.output[rows])


def _gru_before_forward(
    loop: _Loop, rows: slice, hidden: Tensor, _: Any, recall: _Product, recall_second: _Product | None
) -> None:
    gates = loop.gates[rows]
    size = hidden.shape[1]
    reset, update, candidate = gates.chunk(3, 1)
    gates[:, : 2 * size].add_(recall(hidden)).sigmoid_()
    assert loop.inner is not None
    assert recall_second is not None
    candidate.add_(recall_second(torch.mul(reset, hidden, out=loop.inner[rows]))).tanh_()
    torch.lerp(candidate, hidden, update, out=loop.output[rows])


def _backward(loop: _Loop, plan: _Plan) -> None:
    """All local derivatives first, for all steps at once; then the loop, which multiplies them by what comes back."""
    assert loop.grad_gates is not None
    assert loop.grad_hidden is not None
    assert loop.grad_output is not None
    mode, grad, carried = plan.mode, loop.grad_gates, loop.grad_hidden
    size = loop.gates.shape[1] // GATES.get(mode, 1)
    local = _local_derivatives(loop, plan, size)
    before_reset = mode == "GRU_RESET_BEFORE"
    direct = 2 * size if before_reset else loop.gates.shape[1]  # gates that read h(t-1) itself
    back = prepared(loop.weight_hh[:direct].t())
    back_second = None
    if before_reset:
        back_second = prepared(loop.weight_hh[direct:].t())
    elif loop.weight_hr is not None:
        back_second = prepared(loop.weight_hr.t())
    for rows, _, _ in reversed(list(plan.steps.places(plan.backwards))):
        count = rows.stop - rows.start
        own, now = carried[:count], grad[rows]
        blocks = now.view(count, -1, size)
        of_hidden = own + loop.grad_output[rows]
        if mode == "LSTM":
            if back_second is not None:
                assert loop.grad_projected is not None
                loop.grad_projected[rows] = of_hidden
                of_hidden = back_second(of_hidden)
            assert loop.grad_cell is not None
            of_cell = loop.grad_cell[:count].addcmul_(of_hidden, local["cell"][rows])
            torch.mul(local["gates"][rows, :3], of_cell[:, None], out=blocks[:, :3])
            torch.mul(local["gates"][rows, 3], of_hidden, out=blocks[:, 3])
            of_cell.mul_(loop.gates[rows, size : 2 * size])
            own.copy_(back(now))
        elif mode == "GRU":
            assert loop.grad_inner is not None
            torch.mul(local["gates"][rows], of_hidden[:, None], out=blocks)
            of_sums = now.clone()  # of all that h(t-1) adds to
            torch.mul(blocks[:, 2], loop.gates[rows, :size], out=of_sums[:, 2 * size :])
            loop.grad_inner[rows] = of_sums[:, 2 * size :]
            torch.addcmul(back(of_sums), of_hidden, loop.gates[rows, size : 2 * size], out=own)
        elif before_reset:
            assert back_second is not None
            torch.mul(local["gates"][rows, 1:], of_hidden[:, None], out=blocks[:, 1:])
            of_inner = back_second(now[:, direct:])
            torch.mul(local["gates"][rows, 0], of_inner, out=blocks[:, 0])
            torch.mul(of_hidden, loop.gates[rows, size : 2 * size], out=own)
            own.addcmul_(of_inner, loop.gates[rows, :size]).add_(back(now[:, :direct]))
        else:
            torch.mul(local["gates"][rows, 0], of_hidden, out=now)
            own.copy_(back(now))


def _local_derivatives(loop: _Loop, plan: _Plan, size: int) -> dict[str, Tensor]:
    """What the gradient of h(t), or of c(t), is multiplied by: ``gates [R, blocks of grad_gates, H]`` and ``cell``."""
    if plan.mode.startswith("RNN"):
        h = loop.output
        match plan.mode:
            case "RNN_TANH":
                return {"gates": (1 - h * h)[:, None]}
            case "RNN_RELU":
                return {"gates": (h > 0).to(h.dtype)[:, None]}
            case _:
                return {"gates": (h * (1 - h))[:, None]}
    if plan.mode == "LSTM":
        assert loop.cells is not None
        assert loop.first_cell is not None
        input, forget, candidate, output = loop.gates.chunk(4, 1)
        squashed = loop.cells.tanh()
        factors = (
            candidate * input * (1 - input),
            plan.state_before(loop.cells, loop.first_cell) * forget * (1 - forget),
            input * (1 - candidate * candidate),
            squashed * output * (1 - output),
        )
        return {"gates": torch.stack(factors, 1), "cell": output * (1 - squashed * squashed)}
    reset, update, candidate = loop.gates.chunk(3, 1)
    before = plan.state_before(loop.output, loop.first_hidden)
    of_candidate = (1 - update) * (1 - candidate * candidate)
    of_update = (before - candidate) * update * (1 - update)
    if plan.mode == "GRU":
        assert loop.inner is not None
        of_reset = of_candidate * loop.inner * reset * (1 - reset)
        return {"gates": torch.stack((of_reset, of_update, of_candidate), 1)}
    return {"gates": torch.stack((before * reset * (1 - reset), of_update, of_candidate), 1)}

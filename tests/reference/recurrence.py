"""The recurrences in plain NumPy, one sequence, one unit of work after the other, straight from the papers' equations.

Weights come as torch lays them out; everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigma(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


NONLINEARITIES: Mapping[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigma,
}


def gate_weights(weights: Mapping[str, Array], gates: str) -> dict[str, tuple[Array, Array, Array, Array]]:
    """W_e, W_h, b_e, b_h of each gate, the gates being named by letters in the order of torch's rows."""
    parts = [
        np.split(weights[name], len(gates)) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    ]
    return dict(zip(gates, zip(*parts, strict=True), strict=True))


def rnn(inputs: Array, hidden: Array, weights: Mapping[str, Array], nonlinearity: str) -> Array:
    """h(t) of every step, [L, H]."""
    w_e, w_h, b_e, b_h = gate_weights(weights, "h")["h"]
    outputs = []
    for e in inputs:
        hidden = NONLINEARITIES[nonlinearity](w_h @ hidden + w_e @ e + b_e + b_h)
        outputs.append(hidden)
    return np.stack(outputs)


def lstm(inputs: Array, hidden: Array, cell: Array, weights: Mapping[str, Array]) -> tuple[Array, Array]:
    """h(t) and c(t) of every step, [L, H]."""
    gates = gate_weights(weights, "ifgo")
    outputs, cells = [], []
    for e in inputs:
        i, f, g, o = (w_h @ hidden + w_e @ e + b_e + b_h for w_e, w_h, b_e, b_h in gates.values())
        cell = sigma(f) * cell + sigma(i) * np.tanh(g)
        hidden = sigma(o) * np.tanh(cell)
        if "weight_hr_l0" in weights:
            hidden = weights["weight_hr_l0"] @ hidden
        outputs.append(hidden)
        cells.append(cell)
    return np.stack(outputs), np.stack(cells)


def gru(inputs: Array, hidden: Array, weights: Mapping[str, Array], reset: str) -> Array:
    """h(t) of every step, [L, H]."""
    gates = gate_weights(weights, "rzn")
    outputs = []
    for e in inputs:
        r, z = (sigma(w_h @ hidden + w_e @ e + b_e + b_h) for w_e, w_h, b_e, b_h in (gates["r"], gates["z"]))
        w_e, w_h, b_e, b_h = gates["n"]
        recalled = r * (w_h @ hidden + b_h) if reset == "after" else w_h @ (r * hidden) + b_h
        hidden = z * hidden + (1 - z) * np.tanh(w_e @ e + b_e + recalled)
        outputs.append(hidden)
    return np.stack(outputs)


def normalised(x: Array, gain: Array, shift: Array) -> Array:
    """Layer normalisation (Ba et al. 2016, equation 3), with torch's epsilon."""
    return gain * (x - x.mean()) / np.sqrt(x.var() + 1e-5) + shift


def layer_norm_lstm(inputs: Array, hidden: Array, cell: Array, weights: Mapping[str, Array]) -> Array:
    """h(t) of every step (Ba et al. 2016, equations 20 to 22): the sums of all four gates are normalised together."""
    w = {name.removesuffix("_l0"): value for name, value in weights.items()}
    outputs = []
    for e in inputs:
        recalled = normalised(w["weight_hh"] @ hidden, w["gain_hh"], w["bias_hh"])
        driven = normalised(w["weight_ih"] @ e, w["gain_ih"], w["bias_ih"])
        i, f, g, o = np.split(recalled + driven, 4)
        cell = sigma(f) * cell + sigma(i) * np.tanh(g)
        hidden = sigma(o) * np.tanh(normalised(cell, w["gain_cell"], w["bias_cell"]))
        outputs.append(hidden)
    return np.stack(outputs)


def layer_norm_gru(inputs: Array, hidden: Array, weights: Mapping[str, Array]) -> Array:
    """h(t) of every step (Ba et al. 2016, appendix): reset and update are normalised together, the candidate alone."""
    w = {name.removesuffix("_l0"): value for name, value in weights.items()}
    width = len(hidden)

    def both(product: Array, kind: str) -> tuple[Array, Array, Array]:
        gain, shift = w[f"gain_{kind}"], w[f"bias_{kind}"]
        gates = normalised(product[: 2 * width], gain[: 2 * width], shift[: 2 * width])
        return gates[:width], gates[width:], normalised(product[2 * width :], gain[2 * width :], shift[2 * width :])

    outputs = []
    for e in inputs:
        r_h, z_h, n_h = both(w["weight_hh"] @ hidden, "hh")
        r_e, z_e, n_e = both(w["weight_ih"] @ e, "ih")
        z = sigma(z_h + z_e)
        hidden = z * hidden + (1 - z) * np.tanh(sigma(r_h + r_e) * n_h + n_e)
        outputs.append(hidden)
    return np.stack(outputs)

r"""How gradients flow back through time in a stack of recurrent layers.

A text is read once, step by step, and every state is kept (:class:`Unrolled`). The way back is gone once too, from the
last step to the first. At step i the vectors :math:`\partial J(t)/\partial h(i)` of *all* losses t >= i are the rows of
one batch, and the equations of one step (``nn/cells.py``, differentiated by autograd) take all of them a step further
back in one matrix product per weight: what T backward passes would read the weights for T times.

Within a step the way is from the top: h of layer l at step i goes into the same layer at i + 1 and into layer l + 1 at
i, and its gradient is the sum of what comes back from both. Everything is in evaluation, without dropout.

Letters: T steps of the text, L layers, H units; J(t) the loss of step t in nats, h(i) and c(i) a layer's hidden and
cell state after step i, W_h its hidden-to-hidden weights. Steps, and layers from the bottom up, are indices from 0;
whoever types a layer's number counts from 1 (:func:`find_layer`).
"""

from recurra.gradients.clipping import Clipping, read_clipping
from recurra.gradients.contributions import Contributions, weight_contributions
from recurra.gradients.jacobians import (
    Bound,
    Growth,
    Split,
    Verdict,
    growth,
    recurrent_bounds,
    split,
    state_jacobian,
    verdict,
)
from recurra.gradients.pairs import (
    STATES,
    Decay,
    GradientMap,
    check_size,
    decay,
    fitted_rate,
    gradient_map,
    in_words,
)
from recurra.gradients.pictures import draw_clipping, draw_contributions, draw_decay, draw_jacobians, draw_map
from recurra.gradients.report import JACOBIANS, GradientReport, StepJacobian, measure
from recurra.gradients.unrolled import Unrolled, check_seed, find_layer, fresh, unroll_model

__all__ = [
    "JACOBIANS",
    "STATES",
    "Bound",
    "Clipping",
    "Contributions",
    "Decay",
    "GradientMap",
    "GradientReport",
    "Growth",
    "Split",
    "StepJacobian",
    "Unrolled",
    "Verdict",
    "check_seed",
    "check_size",
    "decay",
    "draw_clipping",
    "draw_contributions",
    "draw_decay",
    "draw_jacobians",
    "draw_map",
    "find_layer",
    "fitted_rate",
    "fresh",
    "gradient_map",
    "growth",
    "in_words",
    "measure",
    "read_clipping",
    "recurrent_bounds",
    "split",
    "state_jacobian",
    "unroll_model",
    "verdict",
    "weight_contributions",
]

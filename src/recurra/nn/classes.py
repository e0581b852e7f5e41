"""The class-factored softmax: first the word's class, then the word among those of its class (Goodman 2001).

Like the output layers of :mod:`recurra.nn.softmax` it answers two questions, and its probabilities are exact:
``loss(hidden, targets)`` and ``log_probs(hidden, targets=None)``. Both take ``histories`` too, from which n-gram
features (:mod:`recurra.nn.hashed`) add to the scores of classes and words alike (Mikolov et al. 2011): only the words
of one class need be scored, which is what makes such features affordable.

Letters used for shapes: n is tokens, C classes, V words, K n-gram features of a token, W the words of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError
from recurra.nn.hashed import ABSENT, Features, HashedNgrams, row_gradient, row_sums
from recurra.nn.products import linear
from recurra.nn.rows import is_row_sparse
from recurra.nn.softmax import unigram_log_probs

__all__ = ["Assigned", "ClassSoftmax", "assign_ngrams", "class_bounds"]

# Scores held at a time, at most: peak memory does not grow with the number of tokens.
SCORES_PER_CHUNK = 2**23
# Words of a block where no table of n-grams says how many.
BLOCK = 16
# Tokens of a text that are counted at a time.
TOKENS_PER_COUNT = 2**18


class ClassSoftmax(nn.Module):
    r"""Softmax in two steps: :math:`\log P(w \mid h) = \log P(c \mid h) + \log P(w \mid c, h)`, ``c`` being w's class.

    .. math:: P(c \mid h) = \mathrm{softmax}(A h + a + s)_c, \qquad
              P(w \mid c, h) = \mathrm{softmax}_{v \in c}(U h + b + s)_w

    ``s`` being sums of n-gram weights, where there is a table of them. A class is a range of neighbouring ids, so of
    words of about the same frequency (:func:`class_bounds`).

    A training step computes few scores, but the gradients of the words' matrix and bias are dense: writing them, and
    the optimiser's own pass over all words, take time in proportion to V times features. That is on purpose. Were only
    the rows of a batch's classes updated, Adam and RMSProp would have to do so lazily, and the classes hold so much of
    a usual vocabulary in every batch that hardly any row would be spared. Only the n-grams' table is updated by rows;
    for millions of words the sampled layers (:mod:`recurra.nn.sampled`) are the ones to take.

    Args:
        features: size of the hidden vectors; 0 where the n-grams are all there is.
        counts: how often each word was seen in training, by id; biases start at the log-probabilities they give.
        classes: how many, at most; None chooses as many as cost least.
        weight: a matrix ``[vocabulary, features]`` of the words to share, as when tied to the embedding.
        hashed: the n-gram features; they become a part of this module.
    """

    class_of: Tensor
    places: Tensor
    starts: Tensor
    blocks: Tensor
    first_blocks: Tensor

    def __init__(
        self,
        features: int,
        counts: Sequence[int],
        *,
        classes: int | None = None,
        weight: nn.Parameter | None = None,
        hashed: HashedNgrams | None = None,
    ) -> None:
        super().__init__()
        self.bounds = class_bounds(counts, classes)
        sizes = np.diff(self.bounds)
        words = unigram_log_probs(counts)
        members = words.split(sizes.tolist())
        masses = torch.stack([each.logsumexp(0) for each in members])
        within = torch.cat([each - mass for each, mass in zip(members, masses, strict=True)])
        dtype = torch.get_default_dtype()
        scale = max(1, features) ** -0.5
        self.class_weight = nn.Parameter(torch.randn(len(sizes), features) * scale)
        self.class_bias = nn.Parameter(masses.to(dtype))
        self.weight = weight if weight is not None else nn.Parameter(torch.randn(len(counts), features) * scale)
        self.bias = nn.Parameter(within.to(dtype))
        self.hashed = hashed
        self.width = width = hashed.width if hashed is not None else BLOCK
        # Blocks are numbered through: those of the classes, then those of the words of each class that has several.
        blocks = -(-sizes // width) * (sizes > 1)
        self.class_blocks = -(-len(sizes) // width)
        first_blocks = self.class_blocks + np.cumsum(blocks) - blocks
        self.all_blocks = self.class_blocks + int(blocks.sum())
        class_of = np.repeat(np.arange(len(sizes)), sizes)
        places = first_blocks[class_of] * width + np.arange(len(counts)) - self.bounds[class_of]
        for name, values in {
            "class_of": class_of,
            "places": places * (sizes[class_of] > 1),  # among all blocks' words; of one alone in its class, anything
            "starts": self.bounds[:-1],
            "blocks": blocks,
            "first_blocks": first_blocks,
        }.items():
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def loss(self, hidden: Tensor, targets: Tensor, histories: Tensor | None = None) -> Tensor:
        """Summed exact cross-entropy in nats, in float32 under autocast too.

        Args:
            hidden: ``[..., features]``.
            targets: ``[...]``.
            histories: hashes ``[..., K]`` from :meth:`HashedNgrams.histories`, where there are n-gram features. The
                gradient of their table is sparse, of the rows that were looked up, each once; it is dense where
                :func:`recurra.nn.rows.set_row_sparse` has said so.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            tokens = self._tokens(hidden, targets, histories)
            nats: Tensor = _SummedCrossEntropy.apply(self, tokens, tokens.hidden, *self._parameters_now())
        return nats

    def log_probs(self, hidden: Tensor, targets: Tensor | None = None, histories: Tensor | None = None) -> Tensor:
        """Log-probabilities ``[..., vocabulary]``, or ``[...]`` of the targets; differentiable, if slowly."""
        shape = hidden.shape[:-1]
        wanted = targets if targets is not None else torch.zeros(shape, dtype=torch.long, device=hidden.device)
        tokens, parameters = self._tokens(hidden, wanted, histories), self._parameters_now()
        if targets is None:
            return self._all(tokens, parameters).view(*shape, len(self.weight))
        if torch.is_grad_enabled():
            return self._all(tokens, parameters).gather(1, tokens.targets[:, None]).view(shape)
        found = tokens.hidden.new_empty(len(tokens.targets))
        for numbers in self._chunks(tokens):
            found[numbers] = self._scored(tokens.select(numbers), parameters).of_targets()
        return found.view(shape)

    def _parameters_now(self) -> _Parameters:
        table = None if self.hashed is None else self.hashed.table
        return _Parameters(self.class_weight, self.class_bias, self.weight, self.bias, table)

    def _tokens(self, hidden: Tensor, targets: Tensor, histories: Tensor | None) -> _Tokens:
        """What is given, checked and flat; dropout of features is drawn here."""
        if hidden.shape[:-1] != targets.shape:
            raise ValueError(f"hidden {tuple(hidden.shape)} and targets {tuple(targets.shape)} do not fit together")
        if (histories is None) != (self.hashed is None):
            raise ValueError(
                "histories are to be given exactly where there are n-gram features:"
                f" got {'none' if histories is None else 'some'}, and hashed={self.hashed}"
            )
        targets = targets.reshape(-1)
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(self.weight):
            raise IndexError(
                f"targets: expected ids from 0 to {len(self.weight) - 1}, got {targets.min()} to {targets.max()}"
            )
        hidden = hidden.reshape(len(targets), hidden.shape[-1]).to(self.weight.dtype)
        if self.hashed is None or histories is None:
            return _Tokens(hidden, targets, None, None)
        histories = histories.reshape(len(targets), self.hashed.features)
        return _Tokens(hidden, targets, histories, self.hashed.weights(histories))

    def _chunks(self, tokens: _Tokens) -> tuple[Tensor, ...]:
        """Numbers of tokens in the order of their classes, in parts whose scores fit into memory whatever they are."""
        most = SCORES_PER_CHUNK // ((self.class_blocks + int(self.blocks.max())) * self.width)
        parts: tuple[Tensor, ...] = self.class_of[tokens.targets].argsort(stable=True).split(max(1, most))
        return parts if len(tokens.targets) else ()

    def _features(self, tokens: _Tokens, owners: Tensor, blocks: Tensor) -> Features:
        """What the table adds to blocks ``[p]``, each of the token whose number is in ``owners``."""
        assert self.hashed is not None
        assert tokens.histories is not None
        assert tokens.weights is not None
        return self.hashed.look_up(tokens.histories, owners, blocks, tokens.weights)

    def _all(self, tokens: _Tokens, parameters: _Parameters) -> Tensor:
        """Log-probabilities ``[n, V]`` of all words, the plain way."""
        n = len(tokens.hidden)
        product = F.linear if torch.is_grad_enabled() else linear
        classes = product(tokens.hidden, parameters.class_weight, parameters.class_bias)
        words = product(tokens.hidden, parameters.weight, parameters.bias)
        if parameters.table is not None:
            blocks = torch.arange(self.all_blocks, device=words.device)
            owners = torch.arange(n, device=words.device).repeat_interleave(len(blocks))
            features = self._features(tokens, owners, blocks.repeat(n))
            scores = row_sums(parameters.table, features, len(owners)).view(n, self.all_blocks * self.width)
            classes, words = classes + scores[:, : classes.shape[1]], words + scores[:, self.places]
        parts = words.split(np.diff(self.bounds).tolist(), 1)
        within = torch.cat([part.log_softmax(1) for part in parts], 1)
        return within + classes.log_softmax(1)[:, self.class_of]

    def _lookups(self, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which blocks are scored for tokens of these classes ``[n]``: all classes' first, then those of their words.

        Returns:
            Pairs of a token's number and a block, ``[p]`` each, and at which pair the words of each token begin.
        """
        n, device = len(classes), classes.device
        split = n * self.class_blocks
        own = self.blocks[classes]
        first = split + own.cumsum(0) - own
        tokens = torch.arange(n, device=device)
        owners = torch.cat([tokens.repeat_interleave(self.class_blocks), tokens.repeat_interleave(own)])
        blocks = torch.arange(len(owners), device=device)
        blocks[:split] %= self.class_blocks
        blocks[split:] += (self.first_blocks[classes] - first)[owners[split:]]
        return owners, blocks, first

    def _groups(self, classes: Tensor, parameters: _Parameters) -> list[_Group]:
        """Who is scored together, for tokens of these classes ``[n]``, rising: all before classes, then each class."""
        split = len(classes) * self.class_blocks
        groups = [_Group(slice(0, len(classes)), slice(0, split), parameters.class_weight, parameters.class_bias, None)]
        first_token, first_block = 0, split
        numbers, counts = classes.unique_consecutive(return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            words = slice(self.bounds[number], self.bounds[number + 1])
            size = words.stop - words.start
            if size > 1:  # the only word of its class has probability 1
                tokens = slice(first_token, first_token + count)
                blocks = slice(first_block, first_block + count * -(-size // self.width))
                groups.append(_Group(tokens, blocks, parameters.weight[words], parameters.bias[words], words))
                first_block = blocks.stop
            first_token += count
        return groups

    def _scored(self, tokens: _Tokens, parameters: _Parameters) -> _Scored:
        """Log-probabilities of all classes and of the words of each token's class; ``tokens`` are sorted by class.

        Not differentiable.
        """
        n = len(tokens.hidden)
        classes = self.class_of[tokens.targets]
        owners, blocks, first = self._lookups(classes)
        features = None
        if parameters.table is None:
            scores = tokens.hidden.new_zeros(len(owners), self.width)
        else:
            features = self._features(tokens, owners, blocks)
            scores = row_sums(parameters.table, features, len(owners))
        groups = self._groups(classes, parameters)
        for group in groups:
            known = group.of(scores)
            size = len(group.bias)
            known[:, :size] += torch.addmm(group.bias, tokens.hidden[group.tokens], group.weight.t())
            known[:, size:] = -torch.inf
            known.copy_(known.log_softmax(1))
        class_places = torch.arange(n, device=classes.device) * (self.class_blocks * self.width) + classes
        word_places = first * self.width + tokens.targets - self.starts[classes]
        return _Scored(scores, groups, class_places, word_places, self.blocks[classes] > 0, features)


class _Tokens(NamedTuple):
    """Tokens to be predicted: ``hidden [n, features]``, ``targets [n]``, n-gram features ``[n, K]``."""

    hidden: Tensor
    targets: Tensor
    histories: Tensor | None
    weights: Tensor | None

    def select(self, numbers: Tensor) -> _Tokens:
        """Some of them, by number."""
        features = (None if value is None else value[numbers] for value in (self.histories, self.weights))
        return _Tokens(self.hidden[numbers], self.targets[numbers], *features)


class _Parameters(NamedTuple):
    """The layer's parameters, as they were given: to whatever is differentiated again, not only as they are now."""

    class_weight: Tensor
    class_bias: Tensor
    weight: Tensor
    bias: Tensor
    table: Tensor | None


class _Group(NamedTuple):
    """Tokens with a matrix of scores in common: before all classes, or before the words of one class."""

    tokens: slice
    blocks: slice
    weight: Tensor
    bias: Tensor
    words: slice | None

    def of(self, scores: Tensor) -> Tensor:
        """The group's part of ``scores [blocks, W]``: a row for each token, which ends in padding."""
        return scores[self.blocks].view(self.tokens.stop - self.tokens.start, -1)


class _Scored(NamedTuple):
    """Log-probabilities ``scores [p, W]`` of classes and words, a block a row; minus infinity in padding.

    Attributes:
        groups: whose they are.
        class_places: where that of each token's class is, counted in single scores.
        word_places: where that of the token itself is among the words of its class.
        several: whether there are several words in its class; otherwise there are no scores of them.
        features: what the table added.
    """

    scores: Tensor
    groups: list[_Group]
    class_places: Tensor
    word_places: Tensor
    several: Tensor
    features: Features | None

    def of_targets(self) -> Tensor:
        """Log-probabilities ``[n]`` of the targets."""
        flat = self.scores.view(-1)
        found = flat[self.class_places]
        found[self.several] += flat[self.word_places[self.several]]
        return found

    def deltas(self) -> Tensor:
        """Gradients of the summed loss with respect to the scores, probabilities minus one-hot, in their place."""
        flat = self.scores.view(-1).exp_()
        flat[self.class_places] -= 1
        flat[self.word_places[self.several]] -= 1
        return self.scores


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum of ``-log P(target)``, with the gradients made in the forward pass while the scores are at hand.

    The backward pass only scales them, in place.
    """

    @staticmethod
    def forward(ctx: Any, layer: ClassSoftmax, tokens: _Tokens, hidden: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.layer, ctx.tokens = layer, tokens._replace(hidden=hidden[:0])
        ctx.save_for_backward(hidden, *parameters)
        ctx.sparse = parameters[-1] is not None and is_row_sparse(parameters[-1])
        given = _Parameters(*parameters)  # type: ignore[arg-type]  # only the table can be None
        nats, ctx.gradients = _SummedCrossEntropy._run(layer, tokens, given, ctx.needs_input_grad[2:], ctx.sparse)
        return nats

    @staticmethod
    def _run(
        layer: ClassSoftmax, tokens: _Tokens, parameters: _Parameters, wanted: Sequence[bool], sparse: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        dense = tokens.hidden, *parameters[:4]
        gradients = [torch.zeros_like(x) if wants else None for x, wants in zip(dense, wanted, strict=False)]
        hidden, class_weight, class_bias, weight, bias = gradients
        nats = tokens.hidden.new_zeros(())
        table: Tensor | None = None  # its gradient, of the rows alone or of all
        if parameters.table is not None and wanted[-1] and not sparse:
            table = torch.zeros_like(parameters.table)
        for numbers in layer._chunks(tokens):
            part = tokens.select(numbers)
            scored = layer._scored(part, parameters)
            nats -= scored.of_targets().sum()
            if not any(wanted):
                continue
            deltas = scored.deltas()
            if parameters.table is not None and scored.features is not None and wanted[-1]:
                rows = row_gradient(scored.features, deltas, len(parameters.table))
                table = rows if table is None else table.add_(rows)  # the sum of coalesced ones is coalesced
            of_hidden = torch.zeros_like(part.hidden) if hidden is not None else None
            for group in scored.groups:
                delta = group.of(deltas)[:, : len(group.bias)]
                matrix, vector = (class_weight, class_bias) if group.words is None else (weight, bias)
                words = slice(None) if group.words is None else group.words
                if vector is not None:
                    vector[words] += delta.sum(0)
                if matrix is not None:
                    matrix[words].addmm_(delta.t(), part.hidden[group.tokens])
                if of_hidden is not None:
                    of_hidden[group.tokens].addmm_(delta, group.weight)
            if hidden is not None and of_hidden is not None:
                hidden[numbers] = of_hidden
        return nats, (*gradients, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        hidden, *parameters = inputs = ctx.saved_tensors
        tokens, given = ctx.tokens._replace(hidden=hidden), _Parameters(*parameters)
        wanted = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():  # to be differentiated again: made anew, by operations that autograd can follow
            nats = -ctx.layer._all(tokens, given).gather(1, tokens.targets[:, None]).sum()
            asked = [x for x, wants in zip(inputs, wanted, strict=True) if wants]
            made = iter(torch.autograd.grad(nats, asked, grad, create_graph=True))
            return None, None, *(next(made) if wants else None for wants in wanted)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # gone to the caller in an earlier pass over the same graph
            _, gradients = _SummedCrossEntropy._run(ctx.layer, tokens, given, wanted, ctx.sparse)
        for gradient in gradients:
            if gradient is not None:
                (gradient._values() if gradient.is_sparse else gradient).mul_(grad)
        return None, None, *gradients


def class_bounds(counts: Sequence[int], classes: int | None = None) -> NDArray[np.int64]:
    r"""Where classes of neighbouring ids begin and end, such that scoring costs the least on the average.

    A token costs C scores of classes and those of the ``n`` words of its class. Let there be words of probability ``p``
    in classes of ``n(p)``: the mean cost :math:`\sum_w 1/n + \sum_w p\,n` is least for :math:`n = 1/\sqrt p`, which is
    to say that the :math:`\sqrt p` of every class's words sum to the same. So it is in RNNLM's code, too (Mikolov
    2012). The least cost is :math:`2 S` with :math:`C = S = \sum_w \sqrt{p_w} \le \sqrt V`, and :math:`C + S^2/C` for
    another number of classes; on WikiText-2 a C of 103 costs 207 scores, against 409 for classes of equal probability.

    Args:
        counts: of the words in training, by id, about falling.
        classes: C, at most; None for the cheapest.

    Returns:
        The first id of each class, rising strictly, and at the end the size of the vocabulary.
    """
    if classes is not None and classes < 1:
        raise UserError(f"classes: expected at least 1, got {classes}")
    frequency = np.asarray(counts, dtype=np.float64) + 1
    roots = np.sqrt(frequency / frequency.sum())
    wanted = classes if classes is not None else max(1, round(float(roots.sum())))
    middles = np.cumsum(roots) - roots / 2
    _, firsts = np.unique(np.floor(middles / roots.sum() * wanted), return_index=True)
    return np.append(firsts, len(roots)).astype(np.int64)


class Assigned(NamedTuple):
    """How a text fills a table of n-grams; what is counted is different pairs of a history and a block of words.

    Attributes:
        pairs: how many the text has with histories of 1, 2, ... words; of longer ones, those alone whose shorter
            history has a row: what finds its row taken is missed by all that are longer.
        wanted: how many of them were seen often enough.
        placed: how many of those have a row; the others found it taken.
    """

    pairs: list[int]
    wanted: list[int]
    placed: list[int]


@torch.no_grad()
def assign_ngrams(layer: ClassSoftmax, tokens: NDArray[np.integer[Any]]) -> Assigned:
    """Count the n-grams of a training text, and give those seen often enough rows of the table: short ones first.

    Time grows with the text and the order, and memory by some 50 bytes a token.

    Args:
        layer: with n-gram features; an assignment made before is forgotten, and with it what was learnt.
        tokens: the text, int ``[tokens]``, line ends among them; may be mapped from a file.
    """
    hashed = layer.hashed
    if hashed is None:
        raise ValueError("assign_ngrams: the layer has no n-gram features")
    hashed.prints.zero_()
    hashed.table.zero_()
    alive = np.ones((2, len(tokens)), np.bool_)  # whether the shorter history has a row: for class, and for word
    found = Assigned([], [], [])
    for k in range(hashed.features):
        pairs, counts = np.unique(_target_pairs(layer, tokens, k, alive), return_counts=True)
        often = counts >= hashed.cutoffs[min(k, len(hashed.cutoffs) - 1)]
        found.pairs.append(len(pairs))
        found.wanted.append(int(often.sum()))
        found.placed.append(hashed.assign(torch.from_numpy(pairs[often]), torch.from_numpy(counts[often])))
    return found


def _target_pairs(
    layer: ClassSoftmax, tokens: NDArray[np.integer[Any]], k: int, alive: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The pairs of a text's tokens with the ``k + 1`` words before them, where the shorter histories have rows.

    Brings ``alive [2, tokens]`` up to date: it says so of histories of ``k`` words afterwards.
    """
    hashed = layer.hashed
    assert hashed is not None
    state = hashed.start(1)
    last = torch.tensor([hashed.line_end], device=state.device)
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(tokens), TOKENS_PER_COUNT):
        part = slice(start, start + TOKENS_PER_COUNT)
        targets = torch.from_numpy(np.asarray(tokens[part], np.int64)).to(state.device)
        histories, state = hashed.histories(torch.cat([last, targets[:-1]])[:, None], state)
        last = targets[-1:]
        classes = layer.class_of[targets]
        words = layer.first_blocks[classes] + (targets - layer.starts[classes]) // layer.width
        for blocks, counting, mask in (
            (classes // layer.width, None, alive[0, part]),
            (words, layer.blocks[classes] > 0, alive[1, part]),
        ):
            if k:
                mask &= hashed.owned(hashed.pairs(histories[:, 0, k - 1], blocks)).cpu().numpy()
            elif counting is not None:
                mask &= counting.cpu().numpy()
            kept = (torch.from_numpy(mask).to(state.device) & (histories[:, 0, k] != ABSENT)).nonzero()[:, 0]
            parts.append(hashed.pairs(histories[kept, 0, k], blocks[kept]).cpu().numpy())
    return np.concatenate(parts)

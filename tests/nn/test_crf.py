"""The conditional random field against enumeration of all tag sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from recurra.config import UserError
from recurra.nn import crf
from recurra.nn.crf import Allowed, LinearChainCRF, bio_constraints

TAGS, TIME = 4, 5
LENGTHS = [3, 0, 5, 1, 4]  # sorting them is not its own inverse
ILLEGAL = [(0, 0), (2, 1), (3, 3), (1, 0)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def constraints():
    transitions = torch.ones(TAGS, TAGS, dtype=torch.bool)
    for one, other in ILLEGAL:
        transitions[one, other] = False
    return Allowed(transitions, torch.tensor([True, False, True, True]), torch.tensor([True, True, False, True]))


def built(constrained=False, scale=1.0):
    layer = LinearChainCRF(TAGS, allowed=constraints() if constrained else None).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, scale)
    return layer


def emitted(scale=1.0, padding=torch.nan):
    emissions = torch.randn(TIME, len(LENGTHS), TAGS, dtype=torch.float64) * scale
    for row, length in enumerate(LENGTHS):
        emissions[length:, row] = padding
    return emissions


def enumerated(layer, emissions):
    """Every allowed sequence over ``emissions [steps, C]`` and its score: the definition."""
    transitions, starts, ends = (part.tolist() for part in (layer.transitions, layer.starts, layer.ends))
    allowed = Allowed(*(getattr(layer, f"allowed_{name}").tolist() for name in Allowed._fields))
    rows, found = emissions.tolist(), {}
    for tags in itertools.product(range(TAGS), repeat=len(rows)):
        pairs = list(itertools.pairwise(tags))
        if not (allowed.starts[tags[0]] and allowed.ends[tags[-1]]):
            continue
        if not all(allowed.transitions[one][other] for one, other in pairs):
            continue
        score = starts[tags[0]] + ends[tags[-1]] + sum(transitions[one][other] for one, other in pairs)
        found[tags] = score + sum(row[tag] for row, tag in zip(rows, tags, strict=True))
    return found


def legal_targets(layer, emissions):
    targets = torch.full((TIME, len(LENGTHS)), -100)
    for row, length in enumerate(LENGTHS):
        if length:
            choices = sorted(enumerated(layer, emissions[:length, row]))
            targets[:length, row] = torch.tensor(choices[len(choices) // 3])
    return targets


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0, 400.0])  # at the last, sums without logarithms would lose terms
def test_loss_partition_best_and_marginals_are_those_of_enumeration(constrained, scale):
    layer, emissions = built(constrained, scale), emitted(scale)
    targets = legal_targets(layer, emissions)
    found = layer.log_partition(emissions, LENGTHS)
    tags, best = layer.decode(emissions, LENGTHS)
    marginals = layer.marginals(emissions, torch.tensor(LENGTHS))
    assert tags.dtype == torch.int64
    nats = 0.0
    for row, length in enumerate(LENGTHS):
        assert not tags[length:, row].any()
        assert not marginals[length:, row].any()
        if not length:
            assert found[row] == best[row] == 0
            continue
        scores = enumerated(layer, emissions[:length, row])
        total = torch.tensor(list(scores.values()), dtype=torch.float64).logsumexp(0)
        torch.testing.assert_close(found[row], total, rtol=1e-10, atol=1e-9)
        wanted = max(scores, key=lambda path: scores[path])
        assert tuple(tags[:length, row].tolist()) == wanted
        assert best[row].item() == pytest.approx(scores[wanted], rel=1e-10)
        expected = torch.zeros(length, TAGS, dtype=torch.float64)
        for path, score in scores.items():
            for step, tag in enumerate(path):
                expected[step, tag] += math.exp(score - total)
        torch.testing.assert_close(marginals[:length, row], expected, rtol=1e-8, atol=1e-10)
        nats += total - scores[tuple(targets[:length, row].tolist())]
    torch.testing.assert_close(layer.loss(emissions, targets, LENGTHS), nats, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("constrained", [False, True])
def test_gradients_are_those_of_finite_differences(constrained):
    layer = built(constrained)
    targets = legal_targets(layer, emitted())
    emissions = emitted(padding=0.0).requires_grad_()
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(emissions, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Loss(layer), {f"layer.{name}": named[name] for name in named}, (emissions,))

    class _Loss(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, emissions):
            return self.layer.loss(emissions, targets, LENGTHS), self.layer.log_partition(emissions, LENGTHS)

    assert torch.autograd.gradcheck(run, (emissions, *values))
    assert torch.autograd.gradgradcheck(run, (emissions, *values), fast_mode=True)


def gradients(layer, emissions, targets, lengths):
    emissions = emissions.clone().requires_grad_()
    loss = layer.loss(emissions, targets, lengths)
    return [loss.detach(), *torch.autograd.grad(loss, [emissions, *layer.parameters()])]


@pytest.mark.parametrize("constrained", [False, True])
def test_fast_and_readable_gradients_agree_and_what_is_forbidden_has_none(constrained, monkeypatch):
    layer, emissions = built(constrained), emitted()
    targets = legal_targets(layer, emissions)
    fast = gradients(layer, emissions, targets, LENGTHS)
    monkeypatch.setattr(crf, "_all_at_least", lambda *_: False)
    for one, other in zip(fast, gradients(layer, emissions, targets, LENGTHS), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    if constrained:
        assert not any(fast[2][pair] for pair in ILLEGAL)
        assert fast[3][1] == fast[4][2] == 0


def test_the_fast_way_is_taken_unless_numbers_are_extreme(monkeypatch):
    calls = []
    readable = crf._readable
    monkeypatch.setattr(crf, "_readable", lambda *given: calls.append(1) or readable(*given))
    layer = built(True, 10.0)  # over 40 steps, past several rescalings
    emissions, lengths = torch.randn(40, 3, TAGS) * 30, [40, 12, 33]
    targets = layer.decode(emissions, lengths)[0]
    gradients(layer, emissions, targets, lengths)
    alternating = LinearChainCRF(2, allowed=bio_constraints([("B", "X"), ("E", "X")], "bioes"))
    assert alternating.log_partition(torch.ones(6, 1, 2)) == 6  # half of all tags are out of reach
    assert not calls
    gradients(layer, emissions * 100, targets, lengths)
    assert calls


def test_long_sequences_are_as_in_logarithms():
    layer = built()
    emissions = torch.randn(200, 3, TAGS, dtype=torch.float64) * 5
    lengths = [150, 200, 7]
    found = layer.log_partition(emissions, lengths)
    for row, length in enumerate(lengths):
        sums = layer.starts + emissions[0, row]
        for emission in emissions[1:length, row]:
            sums = (sums[:, None] + layer.transitions).logsumexp(0) + emission
        torch.testing.assert_close(found[row], (sums + layer.ends).logsumexp(0), rtol=1e-12, atol=1e-12)


def test_padding_reaches_neither_loss_nor_gradients():
    layer = built(True)
    emissions = emitted()
    targets = legal_targets(layer, emissions)
    with_nan = gradients(layer, emissions, targets, LENGTHS)
    with_zeros = gradients(layer, emissions.nan_to_num(0.0), targets.clamp(min=0), LENGTHS)
    for one, other in zip(with_nan, with_zeros, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for row, length in enumerate(LENGTHS):
        assert not with_nan[1][length:, row].any()


def test_a_batch_is_its_sequences_one_by_one():
    layer, emissions = built(True), emitted()
    targets = legal_targets(layer, emissions)
    loss, own, *_ = gradients(layer, emissions, targets, LENGTHS)
    tags, best = layer.decode(emissions, LENGTHS)
    alone = 0.0
    for row, length in enumerate(LENGTHS):
        part, target = emissions[:length, row, None], targets[:length, row, None]
        nats, slope, *_ = gradients(layer, part, target, None)
        alone += nats
        torch.testing.assert_close(own[:length, row, None], slope)
        part_tags, part_best = layer.decode(part)
        assert torch.equal(part_tags, tags[:length, row, None])
        torch.testing.assert_close(part_best, best[row : row + 1])
    torch.testing.assert_close(loss, alone)


def test_float32_and_bfloat16_lose_nothing_in_sums():
    layer = built().float()
    emissions = torch.randn(60, 4, TAGS) * 8
    targets = torch.randint(TAGS, (60, 4))
    precise = LinearChainCRF(TAGS).double()
    precise.load_state_dict(layer.state_dict())
    wanted = precise.loss(emissions.double(), targets)
    found = layer.loss(emissions, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.loss(emissions, targets), found)
        rounded = layer.loss(emissions.bfloat16(), targets)
        assert torch.equal(layer.decode(emissions)[0], precise.decode(emissions.double())[0])
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(
        rounded.double(), precise.loss(emissions.bfloat16().double(), targets), rtol=1e-6, atol=0
    )


def test_the_best_sequence_is_found_by_sums_in_float64():
    emissions = torch.rand(200, 3, TAGS) * 1e-2
    emissions[0] += 1e5  # in float32 the sums would lose what follows
    layer = built().float()
    with torch.no_grad():
        layer.transitions.mul_(1e-2)
    precise = LinearChainCRF(TAGS).double()
    precise.load_state_dict(layer.state_dict())
    tags, best = layer.decode(emissions, [200, 0, 150])
    wanted_tags, wanted = precise.decode(emissions.double(), [200, 0, 150])
    assert torch.equal(tags, wanted_tags)
    assert best.dtype == torch.float32
    assert torch.equal(best, wanted.float())


def test_marginals_of_rounded_scores_are_not_rounded():
    layer = built().float()
    emissions = torch.randn(6, 2, TAGS).bfloat16()
    found = layer.marginals(emissions)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer.marginals(emissions.float()))


def test_nan_among_valid_scores_shows():
    layer, emissions = built(True), torch.zeros(20, 2, TAGS, dtype=torch.float64)
    emissions[7, 1, 2] = torch.nan
    found = layer.log_partition(emissions)
    assert found[0].isfinite()
    assert found[1].isnan()


def test_a_batch_of_nothing():
    layer = built()
    for shape, lengths in (((0, 2, TAGS), None), ((3, 2, TAGS), [0, 0]), ((3, 0, TAGS), [])):
        emissions = torch.full(shape, torch.nan, dtype=torch.float64, requires_grad=True)
        loss = layer.loss(emissions, torch.zeros(shape[:2], dtype=torch.long), lengths)
        loss.backward()
        assert loss == 0
        assert not emissions.grad.any()
        tags, best = layer.decode(emissions, lengths)
        assert tags.shape == shape[:2]
        assert not best.any()
        assert not layer.marginals(emissions, lengths).any()


def test_decoding_works_where_nothing_is_to_be_differentiated():
    layer, emissions = built(), emitted()
    wanted = layer.decode(emissions, LENGTHS)[0], layer.marginals(emissions, LENGTHS)
    with torch.inference_mode():
        inside = emissions.clone()
        assert torch.equal(layer.decode(inside, LENGTHS)[0], wanted[0])
        assert torch.equal(layer.marginals(inside, LENGTHS), wanted[1])


def parsed(labels):
    """Letters and kinds."""
    return [tuple(label.partition("-")[::2]) for label in labels]


def legal(scheme, labels, length):
    """Every sequence that is legal by the constraints."""
    allowed = bio_constraints(parsed(labels), scheme)
    return {
        tags
        for tags in itertools.product(range(len(labels)), repeat=length)
        if allowed.starts[tags[0]]
        and allowed.ends[tags[-1]]
        and all(allowed.transitions[pair] for pair in itertools.pairwise(tags))
    }


def written(scheme, chunks, length):
    """How a scheme writes chunks ``(start, end, kind)``, which do not overlap and are in order."""
    labels, previous = ["O"] * length, (-1, -1, "")
    for start, end, kind in chunks:
        labels[start:end] = [f"I-{kind}"] * (end - start)
        if scheme == "bioes":
            labels[end - 1] = f"E-{kind}"
            labels[start] = f"B-{kind}" if end - start > 1 else f"S-{kind}"
        elif scheme == "bio" or previous[1:] == (start, kind):
            labels[start] = f"B-{kind}"
        previous = (start, end, kind)
    return labels


def chunkings(begin, length):
    """All ways to lay chunks of two kinds on the places from ``begin`` on."""
    yield []
    for start in range(begin, length):
        for end in range(start + 1, length + 1):
            for kind in ("X", "Y-Z"):
                for rest in chunkings(end, length):
                    yield [(start, end, kind), *rest]


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_legal_is_what_a_scheme_writes(scheme):
    labels = ["O", *(f"{prefix}-{kind}" for kind in ("X", "Y-Z") for prefix in scheme.upper() if prefix != "O")]
    for length in range(1, 5):
        wanted = {tuple(labels.index(label) for label in written(scheme, c, length)) for c in chunkings(0, length)}
        assert legal(scheme, labels, length) == wanted


def test_iob1_writes_legal_labels_and_b_needs_a_chunk_before():
    labels = ["B-X", "O", "I-X", "I-Y-Z", "B-Y-Z"]
    for length in range(1, 5):
        wanted = {tuple(labels.index(label) for label in written("iob1", c, length)) for c in chunkings(0, length)}
        assert wanted == legal("IOB1", labels, length)


def test_constraints_name_mistakes():
    with pytest.raises(UserError, match="scheme: expected one of bio, iob1, bioes, got 'iob3'"):
        bio_constraints([("O", "")], "iob3")
    for label in ("S-X", "x", "O-X", ""):
        with pytest.raises(UserError, match=f"tag '{label}' is not of scheme bio: expected B-..., I-..., O"):
            bio_constraints(parsed(["O", label]), "bio")
    assert bio_constraints(parsed("BIO"), "bio").transitions.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 1]]


def test_targets_that_are_not_allowed_are_named():
    labels = ["O", "B-X", "I-X", "E-X"]
    layer = LinearChainCRF(4, allowed=bio_constraints(parsed(labels), "bioes"), labels=labels)
    emissions, lengths = torch.zeros(3, 2, 4), [3, 2]
    good = torch.tensor([[1, 0], [2, 0], [3, 2]])
    layer.loss(emissions, good, lengths)
    for bad, message in (
        ([2, 0], "sequence 1: begins with tag I-X"),
        ([1, 0], "sequence 1: at step 1 tag O follows B-X"),
        ([0, 1], "sequence 1: ends with tag B-X"),
    ):
        targets = good.clone()
        targets[:2, 1] = torch.tensor(bad)
        with pytest.raises(UserError, match=message):
            layer.loss(emissions, targets, lengths)
    none = LinearChainCRF(2, allowed=bio_constraints([("B", "X"), ("E", "X")], "bioes"))
    assert none.decode(torch.zeros(2, 1, 2))[0].T.tolist() == [[0, 1]]
    with pytest.raises(UserError, match="sequence 1: no tags are allowed for its length"):
        none.decode(torch.zeros(2, 2, 2), [2, 1])
    with pytest.raises(UserError, match="sequence 0: no tags are allowed for its length"):
        none.log_partition(torch.zeros(2, 2, 2), [1, 2])


def test_what_does_not_fit_is_refused():
    layer = LinearChainCRF(3)
    with pytest.raises(ValueError, match=r"emissions: expected \[T, N, 3\], got \(2, 2, 4\)"):
        layer.decode(torch.zeros(2, 2, 4))
    with pytest.raises(ValueError, match="targets: expected tags from 0 to 2, got 0 to 3"):
        layer.loss(torch.zeros(2, 1, 3), torch.tensor([[0], [3]]))
    with pytest.raises(ValueError, match=r"targets: expected \(2, 1\), as emissions, got \(1, 2\)"):
        layer.loss(torch.zeros(2, 1, 3), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="lengths: expected 0 to 2, the steps of the batch; got 3 to 3"):
        layer.decode(torch.zeros(2, 1, 3), [3])
    with pytest.raises(ValueError, match="labels: expected 3, one per tag, got 1"):
        LinearChainCRF(3, labels=["O"])
    with pytest.raises(ValueError, match="allowed transitions: expected bool"):
        LinearChainCRF(3, allowed=constraints())

"""Vectors made of spellings, against plain NumPy; and that neither a batch nor a table changes a vector."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.nn import characters
from recurra.nn.characters import CharacterCNN, CharacterLSTM, Highway

WORDS = ["<unk>", "<eos>", "a", "", "the", "naïve", "cat", "tac", "𝔘𝔫𝔦", "👍🏽", "internationalisation", "<", "x" * 70]
FEATURES = 4
FILTERS = ((1, 3), (2, 4), (5, 6))


def cnn(words=WORDS, **options):
    return CharacterCNN(words, FEATURES, character_size=3, filters=FILTERS, **options)


def lstm(words=WORDS, **options):
    return CharacterLSTM(words, FEATURES, character_size=3, hidden_size=5, **options)


@pytest.fixture(params=[cnn, lstm])
def build(request):
    def built(*arguments, **options):
        torch.manual_seed(0)
        module = request.param(*arguments, **options).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)  # biases and the unknown character too
        return module

    return built


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def spelling(module, word):
    """Ids of a word's characters, by the words of the documentation."""
    alphabet = sorted({letter for other in WORDS if other not in ("<unk>", "<eos>") for letter in other[:48]})
    if word in ("<unk>", "<eos>"):
        ids = [3 + len(alphabet) + ("<unk>", "<eos>").index(word)]
    else:
        ids = [3 + alphabet.index(letter) if letter in alphabet else 0 for letter in word[: module.longest - 2]]
    return [1, *ids, 2]


def convolution(module, word):
    """A word's vector by a CharacterCNN, in loops."""
    own = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    table = own["character_vectors"]
    vectors = [table[i] for i in spelling(module, word)]
    found = []
    for kind, (width, count) in enumerate(FILTERS):
        filled = vectors + [np.zeros(3)] * (width - len(vectors))
        windows = [np.concatenate(filled[t : t + width]) for t in range(len(filled) - width + 1)]
        found += [max(own[f"filters.{kind}"][row] @ window for window in windows) for row in range(count)]
    x = np.array(found) + own["bias"]
    x = np.tanh(x) if module.nonlinearity == "tanh" else np.maximum(x, 0)
    for layer in range(len(module.highway)):
        weight, bias = own[f"highway.{layer}.linear.weight"], own[f"highway.{layer}.linear.bias"]
        t = sigmoid(weight[len(x) :] @ x + bias[len(x) :])
        x = t * np.maximum(weight[: len(x)] @ x + bias[: len(x)], 0) + (1 - t) * x
    return own["projection.weight"] @ x + own["projection.bias"]


def both_ways(module, word):
    """A word's vector by a CharacterLSTM, by torch.nn.LSTM on the word alone."""
    peer = torch.nn.LSTM(3, 5, bidirectional=True).double()
    peer.load_state_dict(module.lstm.state_dict())
    hidden = peer(module.character_vectors[spelling(module, word)])[1][0]
    return module.projection(hidden.flatten()).detach().numpy()


@pytest.mark.parametrize("options", [{}, {"highway_layers": 2, "nonlinearity": "relu"}, {"highway_layers": 0}])
def test_the_convolution_is_its_equation(options):
    torch.manual_seed(0)
    module = cnn(**options).double()
    found = module(torch.arange(len(WORDS))).detach()
    for word, vector in zip(WORDS, found, strict=True):
        np.testing.assert_allclose(vector, convolution(module, word), rtol=1e-10, atol=1e-12)


def test_the_lstm_is_torch_s_on_each_word_alone():
    torch.manual_seed(0)
    module = lstm().double()
    found = module(torch.arange(len(WORDS))).detach()
    for word, vector in zip(WORDS, found, strict=True):
        np.testing.assert_allclose(vector, both_ways(module, word), rtol=1e-10, atol=1e-12)


def test_highway_is_its_equation():
    torch.manual_seed(0)
    layer = Highway(5).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    weight, bias = (parameter.detach().numpy() for parameter in layer.linear.parameters())
    assert (bias[5:] == -2).all()
    t = sigmoid(x.numpy() @ weight[5:].T + bias[5:])
    expected = t * np.maximum(x.numpy() @ weight[:5].T + bias[:5], 0) + (1 - t) * x.numpy()
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_vector_does_not_depend_on_its_batch(build, gradients):
    module = build()
    everything = module(torch.arange(len(WORDS))).detach()
    with torch.set_grad_enabled(gradients):
        for word in range(len(WORDS)):
            torch.testing.assert_close(module(torch.tensor([word]))[0].detach(), everything[word])
        batch = torch.randint(len(WORDS), (2, 3, 4))
        torch.testing.assert_close(module(batch).detach(), everything[batch])
        assert module(batch[:0]).shape == (0, 3, 4, FEATURES)


def test_what_lies_beyond_a_word_is_never_read(build):
    module = build()
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 5, 2, 0, 0], [1, 2, 0, 0, 0]])
    lengths = torch.tensor([5, 3, 2])
    expected = module.compose(ids, lengths)
    with torch.no_grad():
        module.character_vectors[0] = torch.nan
    torch.testing.assert_close(module.compose(ids, lengths), expected)
    torch.testing.assert_close(module.compose(torch.cat([ids, 0 * ids], 1), lengths), expected)
    module.compose(ids, lengths).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_letters_and_their_order_make_the_difference(build):
    vectors = build().spell(["cat", "tac", "cat", "ca", "a", "", "<", "<unk>", "<eos>"])
    same = torch.cdist(vectors, vectors) < 1e-9
    expected = torch.eye(len(vectors), dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = True
    assert (same == expected).all()


def test_spelling_a_word_of_the_vocabulary_gives_its_vector(build):
    module = build(dropout=0.5)
    torch.testing.assert_close(module.spell(WORDS), module.eval()(torch.arange(len(WORDS))))
    assert module.spell([]).shape == (0, FEATURES)


def test_words_of_no_vocabulary_have_vectors(build):
    module = build()
    vectors = module.spell(["chat", "ж", "ш", "жa", "\ud800"])
    torch.testing.assert_close(vectors[1], vectors[2])  # both are one unknown character
    torch.testing.assert_close(vectors[1], vectors[4])
    assert (vectors[1] - vectors[3]).abs().max() > 1e-6
    vectors[0].sum().backward()
    assert module.character_vectors.grad.abs().sum() > 0


def test_the_end_of_a_long_word_is_cut_off(build):
    module = build(longest=6)
    vectors = module.spell(["interval", "interest", "inte", "int"])
    torch.testing.assert_close(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[0], vectors[2])
    assert (vectors[2] - vectors[3]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("letters", "kind"), [(20, torch.uint8), (251, torch.uint8), (252, torch.int16), (33_000, torch.int32)]
)
def test_spellings_take_no_more_bytes_than_there_are_characters(letters, kind):
    words = ["<unk>", "<eos>", *(chr(0x10000 + i) for i in range(letters))]
    module = cnn(words)
    assert module._characters.dtype == kind
    assert module._characters.numel() == 3 * len(words)
    assert module.character_vectors.shape[0] == letters + 5
    assert module._characters.max() == letters + 4
    torch.testing.assert_close(module.spell([words[-1]])[0], module(torch.tensor([len(words) - 1]))[0])


def test_the_unknown_character_starts_at_zero_and_spellings_are_not_saved():
    module = cnn()
    assert (module.character_vectors[0] == 0).all()
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


def test_gradcheck(build):
    module = build(WORDS[:8])
    tokens = torch.tensor([[2, 5, 2], [0, 7, 4]])
    names, parameters = zip(*module.named_parameters(), strict=True)

    def vectors(*values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (tokens,))

    assert torch.autograd.gradcheck(vectors, parameters)


def test_gradients_can_be_differentiated_again():
    torch.manual_seed(0)
    layer, x = Highway(3).double(), torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def output(x, weight, bias):
        return torch.func.functional_call(layer, {"linear.weight": weight, "linear.bias": bias}, (x,))

    assert torch.autograd.gradgradcheck(output, (x, *parameters))


@pytest.mark.parametrize("count", [5, 16, 17])
def test_float32_gradients_are_those_of_float64(count):
    torch.manual_seed(0)
    precise = CharacterCNN([f"{i:b}" for i in range(40)], 8, highway_layers=2).double()
    fast = copy.deepcopy(precise).float()
    weights = torch.randn(count, 8, dtype=torch.float64)
    for module in (precise, fast):
        (module(torch.arange(count)) * weights.to(module.bias.dtype)).sum().backward()
    for (name, found), expected in zip(fast.named_parameters(), precise.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_it_runs_under_autocast_and_keeps_full_precision_vectors(build):
    module = build().float()
    tokens = torch.arange(len(WORDS))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            kept = module(tokens)
        torch.testing.assert_close(kept, module(tokens), rtol=0, atol=0)
    exact = module(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(tokens).float(), exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(kept, exact.detach(), rtol=1e-5, atol=1e-6)


def test_a_word_s_gradient_is_the_sum_over_its_places(build):
    module = build()
    module(torch.tensor([4, 4, 6])).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    (2 * module(torch.tensor([4])) + module(torch.tensor([6]))).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


class TestTable:
    """Vectors that are kept where no gradients are asked for."""

    tokens = torch.tensor([4, 6, 4])

    def reads(self, module, monkeypatch):
        """A list of how many words each reading was of."""
        counts = []
        compose = module.compose

        def counted(characters, lengths):
            counts.append(len(lengths))
            return compose(characters, lengths)

        monkeypatch.setattr(module, "compose", counted)
        return counts

    @torch.no_grad()
    def test_a_word_is_read_once(self, build, monkeypatch):
        monkeypatch.setattr(characters, "WORDS_AT_ONCE", 3)
        module = build()
        counts = self.reads(module, monkeypatch)
        module(self.tokens), module(self.tokens), module(self.tokens[:1])
        assert counts == [2]
        module(torch.tensor([4, 5]))
        assert counts == [2, 1]
        module(torch.arange(len(WORDS)))
        assert counts[2:] == [3, 3, 3, 1]

    def test_an_optimiser_s_step_is_seen(self, build):
        module = build()
        optimizer = torch.optim.Adam(module.parameters(), 0.1)
        with torch.no_grad():
            before = module(self.tokens)
        module(self.tokens).square().sum().backward()
        optimizer.step()
        self.check(module, before)

    @pytest.mark.parametrize("name", ["character_vectors", "projection.bias"])
    def test_any_parameter_s_change_is_seen(self, build, name):
        module = build()
        with torch.no_grad():
            before = module(self.tokens)
            module.get_parameter(name).mul_(1.5)
        self.check(module, before)

    def test_loading_is_seen(self, build):
        module, other = build(), build()
        with torch.no_grad():
            before = module(self.tokens)
            other.projection.weight.mul_(2)
        module.load_state_dict(other.state_dict())
        self.check(module, before)

    def test_changes_through_data_are_seen_after_training_steps(self, build):
        module = build()
        with torch.no_grad():
            before = module(self.tokens)
        module.projection.weight.data.mul_(2)
        module(self.tokens)
        self.check(module, before)

    def check(self, module, before):
        """What is looked up is what is read."""
        with torch.no_grad():
            after = module(self.tokens)
        torch.testing.assert_close(after, module(self.tokens).detach())
        assert (after - before).abs().max() > 1e-6

    def test_other_types_and_copies_have_their_own(self, build):
        module = build()
        with torch.no_grad():
            expected = module(self.tokens)
            assert copy.deepcopy(module)._table is None
            assert module.float()(self.tokens).dtype == torch.float32
            torch.testing.assert_close(module.double()(self.tokens), expected, rtol=1e-5, atol=1e-6)

    def test_inference_mode_and_no_grad_share_it(self, build, monkeypatch):
        module = build()
        counts = self.reads(module, monkeypatch)
        with torch.inference_mode():
            first = module(self.tokens)
        with torch.no_grad():
            torch.testing.assert_close(module(self.tokens), first.clone())
            module(torch.tensor([5]))
        with torch.inference_mode():
            module(torch.tensor([5, 7]))
        assert counts == [2, 1, 1]

    def test_training_frees_it(self, build):
        module = build()
        with torch.no_grad():
            module(self.tokens)
        assert module._table is not None
        module(self.tokens)
        assert module._table is None


@pytest.mark.parametrize("gradients", [True, False])
def test_word_dropout_drops_whole_words_everywhere_alike(build, gradients):
    module = build(dropout=0.5)
    tokens = torch.arange(len(WORDS)).repeat(3, 1)
    with torch.set_grad_enabled(gradients):
        vectors = module(tokens).detach()
        plain = module.eval()(tokens).detach()
    dropped = (vectors == 0).all(-1)
    assert 0 < dropped[0].sum() < len(WORDS)
    assert (dropped == dropped[0]).all()
    torch.testing.assert_close(vectors[~dropped], 2 * plain[~dropped])


def test_the_big_model_s_parameters():
    filters = [(1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024), (8, 2048)]
    with torch.device("meta"):
        highway = sum(parameter.numel() for parameter in Highway(4096).parameters())
        projection = sum(parameter.numel() for parameter in torch.nn.Linear(4096, 1024).parameters())
    small = CharacterCNN(WORDS, 1, character_size=16, filters=filters, highway_layers=0)
    count = sum(parameter.numel() for parameter in small.parameters()) - 4097 + 2 * highway + projection
    assert round(count / 1e6, 1) == 71.8


def test_a_large_vocabulary_is_spelled_quickly():
    words = ["<unk>", "<eos>", *(f"{i:x}" for i in range(200_000))]
    module = cnn(words)
    assert module._characters.numel() == sum(map(len, words[2:])) + 2 * len(words) + 2
    torch.testing.assert_close(module.spell(["1869f"])[0], module(torch.tensor([2 + 99_999]))[0])


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("token", [-1, -2, len(WORDS)])
def test_a_token_that_is_no_word_is_refused(build, token, gradients):
    with torch.set_grad_enabled(gradients), pytest.raises(IndexError):
        build()(torch.tensor([3, token]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": ()}, "filters: expected pairs"),
        ({"filters": ((2, 5), (0, 3))}, "filters: expected pairs"),
        ({"nonlinearity": "sine"}, "nonlinearity: expected one of tanh, relu"),
        ({"longest": 2}, "longest: expected 3 or more"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        CharacterCNN(WORDS, FEATURES, **options)
    assert "\n" not in str(caught.value)

"""One training step of a word-level language model: Recurra against the example that comes with PyTorch.

    python benchmarks/lm_step.py [--seconds 20] [--keep-memory] [--words 33278] [--size 650] [--batch 20] [--chunk 35]

The peer does what pytorch/examples/word_language_model does in a step, in its default way: embedding, dropout, a
two-layer LSTM, dropout, a linear layer, log-softmax and NLL loss over all words, gradients clipped at norm 0.25, and
plain SGD written out. Recurra's model is of the same sizes, not tied either; with the full softmax it computes the same
function, but for dropout, of which it draws one mask a sequence. Words are drawn by Zipf's law, as in a text. As it is,
much of the example's time goes into memory that is returned to the system and asked for again; ``--keep-memory`` spares
both sides that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from side_by_side import keep_memory, machine, medians, peak
from torch import Tensor, nn

from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.optimization import build_optimizer, clip_gradients
from recurra.text.batches import Batch
from recurra.text.vocabulary import SPECIAL, Vocabulary

LEARNING_RATE, CLIP, DROPOUT = 1.0, 0.25, 0.2


class Peer(nn.Module):
    """The example's model."""

    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.encoder = nn.Embedding(words, size)
        self.recurrent = nn.LSTM(size, size, 2, dropout=DROPOUT)
        self.decoder = nn.Linear(size, words)

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.recurrent(self.dropout(self.encoder(tokens)), state)
        scores = self.decoder(self.dropout(output)).flatten(0, 1)
        return F.log_softmax(scores, dim=1), state


def peer_step(words: int, size: int, inputs: Tensor, targets: Tensor) -> Callable[[], float]:
    model = Peer(words, size)
    begin = torch.zeros(2, inputs.shape[1], size)
    state = (begin, begin)

    def step() -> float:
        nonlocal state
        model.zero_grad()
        state = (state[0].detach(), state[1].detach())
        log_probs, state = model(inputs, state)
        loss = F.nll_loss(log_probs, targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(parameter.grad, alpha=-LEARNING_RATE)
        return loss.item()

    return step


def own_step(output: str, counts: list[int], size: int, inputs: Tensor, targets: Tensor) -> Callable[[], float]:
    model = RecurrentLM(
        RecurrentLMSettings(
            hidden_size=size, layers=2, embedding_size=size, output=output, shrink=4.0, tied=False, output_norm=False,
            input_dropout=DROPOUT, dropout=DROPOUT, output_dropout=DROPOUT,
        ),
        Vocabulary([*SPECIAL, *map(str, range(len(counts) - len(SPECIAL)))], counts),
    )  # fmt: skip
    parameters = list(model.parameters())
    optimizer = build_optimizer("sgd", model, learning_rate=LEARNING_RATE)
    batch, state = Batch(inputs, targets), model.start(inputs.shape[1])

    def step() -> float:
        nonlocal state
        optimizer.zero_grad()
        loss, state = model(batch, model.detach(state))
        (loss.nats / loss.tokens).backward()
        clip_gradients(parameters, norm=CLIP, value=None)
        optimizer.step()
        return loss.nats.item() / loss.tokens

    return step


def steps(words: int, size: int, batch: int, chunk: int, only: str | None = None) -> dict[str, Callable[[], float]]:
    """The step of each, or of one only, ready to run."""
    torch.manual_seed(1)
    shares = 1 / torch.arange(1, words + 1)
    counts = (2e6 * shares / shares.sum()).long().clamp(min=3).tolist()
    tokens = torch.multinomial(shares, (chunk + 1) * batch, replacement=True).view(chunk + 1, batch)
    inputs, targets = tokens[:-1], tokens[1:]
    makers = {
        "PyTorch's example": lambda: peer_step(words, size, inputs, targets),
        "Recurra, full softmax": lambda: own_step("full", counts, size, inputs, targets),
        "Recurra, adaptive": lambda: own_step("adaptive", counts, size, inputs, targets),
    }
    return {name: make() for name, make in makers.items() if only in (None, name)}


def arguments(description: str) -> argparse.ArgumentParser:
    """The sizes, as flags."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in (("words", 33_278), ("size", 650), ("batch", 20), ("chunk", 35)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--keep-memory", action="store_true", help="have the C library keep memory that is freed")
    options = parser.parse_args()
    if options.keep_memory:
        keep_memory()
    best = peak()
    rows = options.batch * options.chunk
    products = 6 * rows * options.size * (2 * 8 * options.size + options.words)  # of two LSTM layers, and of all words
    print(machine())
    print(f"{options.words} words, 2 x {options.size}, {options.batch} rows, {options.chunk} steps\n")
    found = medians(steps(options.words, options.size, options.batch, options.chunk), seconds=options.seconds)
    peer = found["PyTorch's example"]
    for name, seconds in found.items():
        rate = rows / seconds
        share = "" if "adaptive" in name else f"{products / seconds / best:7.0%} of the peak of matrix products"
        print(f"{name:24} {seconds * 1e3:8.0f} ms {rate:8.0f} tokens/s {peer / seconds:6.2f} x {share}")


if __name__ == "__main__":
    main()

"""N-gram models: estimating, opening and querying one, Recurra against KenLM where that is installed.

    python benchmarks/ngram.py [--corpus wikitext-2] [--order 5] [--seconds 3]

Both read the same words, KenLM's lmplz (where it is on the PATH) from lines of text and Recurra from a file of ids, and
write a model file, each in a process of its own. Peak memory is that of the whole process; the first row is one that
only loads Python and torch. lmplz has an unknown word of its own beside that of the corpus. KenLM's Python module
(where there is one) queries the ARPA file that Recurra wrote, a line at a time; Recurra reads the ids of all lines in
one piece, as they are one text to a model that forgets at line ends.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from side_by_side import machine, medians

from recurra.evaluation import evaluate
from recurra.models.arpa import read_arpa, write_arpa
from recurra.models.kneser_ney import NgramLM, NgramSettings
from recurra.text.batches import TokenStream
from recurra.text.corpora import open_corpus
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer
from recurra.text.vocabulary import LINE_END, SPECIAL, UNKNOWN, Vocabulary

TEXT, IDS, WEIGHTS, ARPA, PEER_ARPA = "train.txt", "train.npy", "weights.safetensors", "model.arpa", "lmplz.arpa"


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run a command to its end: seconds, and MB of peak memory."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{command[0]} failed:\n{said.read().decode(errors='replace')}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def estimate(folder: Path, order: int, words: int) -> None:
    """What the process that estimates does; nothing for order 0."""
    if order == 0:
        return
    vocabulary = Vocabulary([*SPECIAL, *map(str, range(words - len(SPECIAL)))], [0] * words)
    stream = TokenStream.from_tokens(np.load(folder / IDS, mmap_mode="r"))
    model = NgramLM.estimate(NgramSettings(order=order), stream, vocabulary, say=print)
    save_file(model.tensors(), folder / WEIGHTS)


def open_model(folder: Path, order: int, vocabulary: Vocabulary) -> NgramLM:
    with safe_open(folder / WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    return NgramLM.from_tensors(NgramSettings(order=order), vocabulary, tensors)


def lines_of(stream: TokenStream, vocabulary: Vocabulary) -> list[str]:
    """The text of ids, with the unknown word one like others."""
    words = [*vocabulary.tokens]
    words[UNKNOWN] = "<oov>"
    lines = np.split(np.asarray(stream.tokens), stream.line_starts[1:])
    return [" ".join(words[i] for i in line if i != LINE_END) for line in lines]


def perplexity(model: NgramLM, stream: TokenStream) -> float:
    return evaluate(model, stream.tokens, words=len(stream), characters=len(stream)).perplexity


def row(name: str, **values: str) -> None:
    print(f"{name:34} " + "   ".join(f"{value} {unit}" for unit, value in values.items()))


def compare_estimates(folder: Path, order: int, train: TokenStream, test: TokenStream, vocabulary: Vocabulary) -> None:
    (folder / TEXT).write_text("\n".join([*lines_of(train, vocabulary), ""]), encoding="utf-8")
    np.save(folder / IDS, np.asarray(train.tokens))
    this = [sys.executable, __file__, "--estimate", str(folder), str(len(vocabulary))]
    seconds, memory = run([*this, "--order", "0"])
    row("Python and torch alone", s=f"{seconds:8.2f}", MB=f"{memory:8.0f}")
    seconds, memory = run([*this, "--order", str(order)])
    found = perplexity(open_model(folder, order, vocabulary), test)
    row("Recurra, its start included", s=f"{seconds:8.2f}", MB=f"{memory:8.0f}", perplexity=f"{found:9.4f}")
    start = time.perf_counter()
    NgramLM.estimate(NgramSettings(order=order), train, vocabulary)
    row("Recurra, the estimate alone", s=f"{time.perf_counter() - start:8.2f}")
    if lmplz := shutil.which("lmplz"):
        files = ["--text", str(folder / TEXT), "--arpa", str(folder / PEER_ARPA), "-T", str(folder), "-S", "2G"]
        seconds, memory = run([lmplz, "-o", str(order), *files])
        model, words = read_arpa(folder / PEER_ARPA)
        names = ["<oov>", *vocabulary.tokens[1:]]
        moved = np.array([words.id(name) for name in names])[np.asarray(test.tokens)]
        found = perplexity(model, TokenStream.from_tokens(moved))
        row("lmplz", s=f"{seconds:8.2f}", MB=f"{memory:8.0f}", perplexity=f"{found:9.4f}")


def compare_queries(folder: Path, order: int, test: TokenStream, vocabulary: Vocabulary, seconds: float) -> None:
    model = open_model(folder, order, vocabulary)
    inputs = torch.from_numpy(np.append(LINE_END, test.tokens[:-1]).astype(np.int64))[:, None]
    targets = torch.from_numpy(np.asarray(test.tokens, np.int64))[:, None]
    ways: dict[str, Callable[[], object]] = {
        "opening a saved model, one token": lambda: open_model(folder, order, vocabulary).score(
            inputs[:1], targets[:1], model.start(1)
        ),
        "Recurra, one text": lambda: model.score(inputs, targets, model.start(1)),
        "Recurra, batches of lines": lambda: evaluate(
            model, test.tokens, words=1, characters=1, reset="lines", line_starts=test.line_starts
        ),
        "Recurra, one step of one row": lambda: model.step(inputs[0], model.start(1)),
    }
    if importlib.util.find_spec("kenlm") is not None:
        kenlm: Any = importlib.import_module("kenlm")
        write_arpa(model, vocabulary, folder / ARPA)
        peer = kenlm.Model(str(folder / ARPA))
        lines = [line.replace("<oov>", SPECIAL[UNKNOWN]) for line in lines_of(test, vocabulary)]
        total = sum(map(peer.score, lines))
        print(f"perplexity: Recurra {perplexity(model, test):.4f}, KenLM {10 ** (-total / len(test)):.4f}")
        ways["KenLM's module, line by line"] = lambda: sum(map(peer.score, lines))
    for name, median in medians(ways, seconds=seconds).items():
        row(name, ms=f"{1e3 * median:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="wikitext-2", help="a named corpus, or a file or folder of text")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="for querying")
    parser.add_argument("--estimate", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.estimate:
        estimate(Path(options.estimate[0]), options.order, int(options.estimate[1]))
        return
    print(machine())
    peers = {"lmplz": shutil.which("lmplz"), "kenlm module": importlib.util.find_spec("kenlm")}
    print(", ".join(f"{peer}: {'yes' if found else 'not installed'}" for peer, found in peers.items()))
    corpus = open_corpus(options.corpus)
    tokenizer = build_tokenizer(corpus.train, TokenizerSettings(tokenizer="whitespace", min_count=1))
    vocabulary = tokenizer.vocabulary
    assert corpus.test is not None
    train, test = (TokenStream.from_text(text, tokenizer) for text in (corpus.train, corpus.test))
    print(f"{corpus.name}: {len(train):,} tokens of {len(vocabulary):,} words, test {len(test):,}\n")
    with tempfile.TemporaryDirectory() as name:
        compare_estimates(Path(name), options.order, train, test, vocabulary)
        print()
        compare_queries(Path(name), options.order, test, vocabulary, options.seconds)


if __name__ == "__main__":
    main()

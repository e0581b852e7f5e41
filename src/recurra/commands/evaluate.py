"""How well a model predicts a text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.commands.command import Command, loading_flags, positive
from recurra.commands.predict import (
    DECODING,
    READING,
    decoding_flags,
    evaluate_predictor,
    is_predictor,
    reading_flags,
    refuse,
)
from recurra.config import ArgumentParser, UserError

if TYPE_CHECKING:
    from recurra.evaluation import Evaluation
    from recurra.text.batches import TokenStream

__all__ = ["COMMANDS"]

CHUNK_LENGTH = 256
# What language models alone have a use for. Without a default: what was not given is None.
LANGUAGE_MODEL = (
    "reset",
    "batch_size",
    "chunk_length",
    "precision",
    "per_token",
    "cache",
    "cache_theta",
    "cache_weight",
    "tune_on",
    "dynamic",
    "dynamic_rate",
    "dynamic_decay",
)


def _evaluate_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("text", nargs="+", metavar="TEXT", help="file, folder, glob, .gz, - or CORPUS:SPLIT; examples")
    parser.add_argument(
        "--reset", choices=("none", "documents", "lines"), help="where the state starts anew (default: as trained)"
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="rows read side by side (default: 32; 256 where words are counted)",
    )
    parser.add_argument("--chunk-length", type=positive, metavar="N", help=f"steps at a time (default: {CHUNK_LENGTH})")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--per-token", metavar="FILE", help="write the surprisal of every token as TSV")
    cache = parser.add_argument_group("neural cache (Grave et al. 2017)")
    cache.add_argument("--cache", type=positive, metavar="N", help="remember the last N words and their contexts")
    cache.add_argument("--cache-theta", type=float, metavar="X", help="how sharply like contexts are told from others")
    cache.add_argument("--cache-weight", type=float, metavar="X", help="weight of the cache, 0 to 1")
    cache.add_argument("--tune-on", metavar="TEXT", help="choose theta and weight on this text instead")
    dynamic = parser.add_argument_group("dynamic evaluation (Krause et al. 2018)")
    dynamic.add_argument(
        "--dynamic", choices=("rms", "sgd"), help="go on learning from the text, in steps measured by training or plain"
    )
    dynamic.add_argument(
        "--dynamic-rate", type=float, metavar="X", help="learning rate of its steps; 0.01 is a first try"
    )
    dynamic.add_argument("--dynamic-decay", type=float, metavar="X", help="return to the trained weights (default: 0)")
    decoding_flags(parser)
    reading_flags(parser)
    loading_flags(parser)
    parser.set_defaults(precision=None)


def _evaluate(arguments: argparse.Namespace) -> int:
    import tempfile

    import numpy as np

    from recurra.evaluation import write_surprisals_tsv
    from recurra.files import written_whole
    from recurra.language_model import load
    from recurra.text.batches import write_tokens
    from recurra.text.corpora import open_text

    if is_predictor(arguments.directory):
        refuse(arguments, LANGUAGE_MODEL, "model that reads examples")
        return evaluate_predictor(arguments)
    refuse(arguments, (*DECODING, *(name for name in READING if name not in ("encoding", "errors"))), "language model")
    if bool(arguments.dynamic) != (arguments.dynamic_rate is not None):
        raise UserError("dynamic evaluation needs both --dynamic and --dynamic-rate")
    if arguments.dynamic_decay is not None and not arguments.dynamic:
        raise UserError("--dynamic-decay is a part of dynamic evaluation: give --dynamic too")
    if arguments.dynamic and (arguments.cache or arguments.reset or arguments.batch_size):
        raise UserError(
            "dynamic evaluation reads a text as one row and has no cache: leave out --cache, --reset and --batch-size"
        )
    cached = (arguments.tune_on, arguments.cache_theta, arguments.cache_weight)
    if not arguments.cache and any(value is not None for value in cached):
        raise UserError("--cache-theta, --cache-weight and --tune-on say how a cache is used: give --cache too")
    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision or "float32")
    how = {"encoding": arguments.encoding or "utf-8", "errors": arguments.errors or "strict"}
    text = open_text(arguments.text, **how)
    with tempfile.TemporaryDirectory() as folder:
        stream = write_tokens(text, lm.tokenizer, Path(folder) / "text")
        if arguments.cache:
            tuned_on = None
            if arguments.tune_on:
                valid = open_text([arguments.tune_on], **how)
                tuned_on = write_tokens(valid, lm.tokenizer, Path(folder) / "tune")
            lm = lm.with_cache(
                arguments.cache, theta=arguments.cache_theta, weight=arguments.cache_weight, tuned_on=tuned_on
            )
        per_token = None
        if arguments.per_token:
            per_token = np.lib.format.open_memmap(Path(folder) / "nats.npy", "w+", np.float64, (len(stream.tokens),))
        options: dict[str, Any] = {"chunk_length": arguments.chunk_length or CHUNK_LENGTH, "per_token": per_token}
        if arguments.dynamic:
            result = lm.evaluate_dynamically(
                stream,
                learning_rate=arguments.dynamic_rate,
                decay=arguments.dynamic_decay or 0.0,
                sample=_training_text(arguments.directory) if arguments.dynamic == "rms" else None,
                **options,
            )
        else:
            if arguments.batch_size:
                options["batch_size"] = arguments.batch_size
            result = lm.evaluate(stream, reset=arguments.reset, **options)
        if per_token is not None:
            with written_whole(arguments.per_token) as file:
                write_surprisals_tsv(
                    file, stream.tokens, per_token, token=lm.tokenizer.token, document_starts=stream.document_starts
                )
    if arguments.json:
        print(json.dumps(result.to_mapping(), indent=1))
    else:
        print(_table(result))
    return 0


def _training_text(directory: str) -> TokenStream:
    """The tokens that a model was trained on, which stay in its folder."""
    from recurra.text.batches import TokenStream

    path = Path(directory) / "training" / "train"
    if not path.exists():
        raise UserError(f"{path}: the training text is gone, which steps are measured by; give --dynamic sgd")
    return TokenStream.open(path)


def _table(result: Evaluation) -> str:
    share = 100 * result.unknown_tokens / result.tokens
    words = {"none": "carried from start to end", "documents": "reset at each document", "lines": "reset at each line"}
    rows = {
        "perplexity": f"{result.perplexity:.4f}",
        "  without unknown tokens": f"{result.perplexity_without_unknown:.4f}",
        "  per word": f"{result.perplexity_per_word:.4f}",
        "nats per token": f"{result.nats_per_token:.4f}",
        "bits per token": f"{result.bits_per_token:.4f}",
        "bits per character": f"{result.bits_per_character:.4f}",
        "tokens": f"{result.tokens:,}",
        "unknown tokens": f"{result.unknown_tokens:,} ({share:.2f} %)",
        "words, with line ends": f"{result.words:,}",
        "characters": f"{result.characters:,}",
        "state": words[result.reset],
        "seconds": f"{result.seconds:.2f}",
    }
    return "\n".join(f"{name:<26}{value}" for name, value in rows.items())


COMMANDS = {
    "evaluate": Command(
        "perplexity of a language model on a text; scores of any other on examples", _evaluate_flags, _evaluate
    ),
}

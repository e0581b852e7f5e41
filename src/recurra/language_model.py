"""What a user holds: a language model with its tokenizer and settings."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from recurra import distributed
from recurra.checkpoint import WEIGHTS, CheckpointError, read_settings, read_tensors, write_settings, write_tensors
from recurra.config import UserError, from_mapping, to_mapping
from recurra.evaluation import Evaluation, evaluate, surprisals
from recurra.generation import (
    Generated,
    GenerationSettings,
    Piece,
    generate,
    generate_stream,
    next_log_probs,
    next_tokens,
)
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn import native
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import Tokenizer, tokenizer_from_mapping
from recurra.text.vocabulary import LINE_END

__all__ = ["KIND", "LanguageModel", "load"]

KIND = "lm"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    r"""A recurrent language model that reads and writes text.

    Attributes:
        model: the network; follows the protocol that every language model follows.
        tokenizer: turns text into ids and back.
        settings: every other setting it was made with, by section, for the record.

    Example:
        >>> lm = recurra.load("my-model")
        >>> lm.perplexity("It was a dark and stormy night.\\n")
        >>> lm.next_tokens("It was a dark and", k=5)
        >>> lm.generate("It was", max_tokens=50, seed=1)[0].text
    """

    model: RecurrentLM
    tokenizer: Tokenizer
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        words = len(self.tokenizer.vocabulary)
        if words != self.model.vocabulary_size:
            raise UserError(
                f"the vocabulary has {words} tokens, the model {self.model.vocabulary_size}: they do not fit together"
            )

    # ---- on disk --------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write the model into a folder: ``settings.json`` and ``weights.safetensors``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_settings(directory)
        self.save_weights(directory)

    def save_settings(self, directory: Path) -> None:
        """Write all but the weights."""
        content = {**self.settings, "model": to_mapping(self.model.settings), "tokenizer": self.tokenizer.to_mapping()}
        write_settings(directory, KIND, content)

    def save_weights(self, directory: Path) -> None:
        """Write the weights."""
        weights = dict(self.model.named_parameters())
        write_tensors(directory / WEIGHTS, weights, {"vocabulary": self.tokenizer.vocabulary.digest()})

    def load_weights(self, directory: Path) -> None:
        """Read the weights that :meth:`save_weights` wrote.

        Raises:
            UserError: they are missing, damaged, of another shape or for another vocabulary.
        """
        path = directory / WEIGHTS
        tensors, metadata = read_tensors(path)
        if metadata.get("vocabulary") != self.tokenizer.vocabulary.digest():
            raise CheckpointError(
                f"{path}: belongs to another vocabulary than the one in {directory / 'settings.json'}"
            )
        own = dict(self.model.named_parameters())
        for name in sorted(own.keys() | tensors.keys()):
            expected = tuple(own[name].shape) if name in own else "none"
            found = tuple(tensors[name].shape) if name in tensors else "none"
            if expected != found:
                raise CheckpointError(f"{path}: {name}: expected {expected} by the settings, found {found}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    @classmethod
    def load(cls, directory: str | Path, *, device: str | None = None, precision: str = "float32") -> LanguageModel:
        """Read a model that :meth:`save` or training wrote.

        Args:
            directory: its folder.
            device: ``cpu``, ``cuda`` or ``mps``; what there is if not given.
            precision: of the weights, ``float32`` or ``int8``: see :meth:`RecurrentLM.round_to_int8_`.

        Raises:
            UserError: there is none, it is of another kind, or a file of it is damaged.
        """
        if precision not in ("float32", "int8"):
            raise UserError(f"precision: expected float32 or int8, got {precision!r}")
        directory = Path(directory)
        content = read_settings(directory, KIND)
        where = str(directory / "settings.json")
        try:
            tokenizer = tokenizer_from_mapping(content.pop("tokenizer"))
            settings = from_mapping(RecurrentLMSettings, content.pop("model"), where)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{where}: damaged ({error!r}); restore it or train again") from error
        model = RecurrentLM(settings, tokenizer.vocabulary.counts).to(distributed.choose_device(device))
        lm = cls(model, tokenizer, content)
        lm.load_weights(directory)
        model.eval()
        if precision == "int8":
            model.round_to_int8_()
            if not native.available():
                _log.warning("int8 weights are no faster here: there are no compiled loops (%s)", native.why_not())
        return lm

    # ---- reading --------------------------------------------------------------------------------------------------

    def evaluate(self, text: str | TokenStream, *, reset: str | None = None, **options: Any) -> Evaluation:
        """Perplexity and its relatives on a text, see :class:`recurra.evaluation.Evaluation`.

        Args:
            text: a text, or one already turned into tokens.
            reset: where the state starts anew (``none``, ``documents``, ``lines``); as in training if not given.
            options: for :func:`recurra.evaluation.evaluate`.
        """
        stream = self._tokens(text)
        return evaluate(
            self.model,
            stream.tokens,
            words=stream.words,
            characters=stream.characters,
            **self._rows(stream, reset),
            **options,
        )

    def perplexity(self, text: str | TokenStream, **options: Any) -> float:
        """Exp of the mean of -log p over every token, line ends included."""
        return self.evaluate(text, **options).perplexity

    def surprisal(self, text: str, *, reset: str | None = None) -> list[tuple[str, float]]:
        """Each token of a text with its -log p in nats."""
        stream = self._tokens(text)
        nats = surprisals(self.model, stream.tokens, **self._rows(stream, reset))
        return [(self.tokenizer.token(i), n) for i, n in zip(stream.tokens.tolist(), nats.tolist(), strict=True)]

    # ---- writing --------------------------------------------------------------------------------------------------

    def next_tokens(self, prompt: str = "", k: int = 10) -> list[tuple[str, float]]:
        """The ``k`` likeliest tokens after ``prompt``, with their probabilities."""
        found = next_tokens(self.model, self._prompt(prompt), k)
        return [(self.tokenizer.token(i), p) for i, p in found]

    def next_probability(self, prompt: str, token: str) -> float:
        """The probability of one token after ``prompt``; of ``<unk>`` for a token that is not in the vocabulary."""
        return math.exp(next_log_probs(self.model, self._prompt(prompt))[self.tokenizer.id(token)])

    def generate(self, prompt: str = "", **settings: Any) -> list[Generated]:
        """Texts that go on from ``prompt``, without it; keywords: :class:`recurra.generation.GenerationSettings`."""
        chosen = from_mapping(GenerationSettings, settings, "generate")
        return generate(self.model, self._prompt(prompt), chosen, self.tokenizer.decode)

    def stream(self, prompt: str = "", **settings: Any) -> Iterator[Piece]:
        """Like :meth:`generate`, a piece at a time as it is written."""
        chosen = from_mapping(GenerationSettings, settings, "generate")
        return generate_stream(self.model, self._prompt(prompt), chosen, self.tokenizer.decode)

    def _prompt(self, prompt: str) -> list[int]:
        """Ids of a prompt: of its last line alone where lines are independent, so that what was before is forgotten."""
        ids: list[int] = self.tokenizer.encode(prompt).tolist()
        if self.model.settings.reset == "lines" and LINE_END in ids:
            ids = ids[len(ids) - ids[::-1].index(LINE_END) :]
        return ids

    def _rows(self, stream: TokenStream, reset: str | None) -> dict[str, Any]:
        """How the text is cut into rows that are read each by itself."""
        return {
            "reset": reset or self.model.settings.reset,
            "document_starts": stream.document_starts,
            "line_starts": stream.line_starts,
        }

    def _tokens(self, text: str | TokenStream) -> TokenStream:
        stream = TokenStream.from_text(text, self.tokenizer) if isinstance(text, str) else text
        if stream.vocabulary != self.tokenizer.vocabulary.digest():
            raise UserError(
                "these tokens belong to another vocabulary than the model's: encode the text with its tokenizer"
            )
        return stream


def load(directory: str | Path, *, device: str | None = None, precision: str = "float32") -> LanguageModel:
    """Read a trained language model from its folder; see :meth:`LanguageModel.load`."""
    return LanguageModel.load(directory, device=device, precision=precision)

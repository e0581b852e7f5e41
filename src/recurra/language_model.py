"""What a user holds: a language model with its tokenizer and settings."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recurra import distributed
from recurra.checkpoint import (
    SETTINGS,
    WEIGHTS,
    CheckpointError,
    read_settings,
    read_tensors,
    write_settings,
    write_tensors,
)
from recurra.config import UserError, from_mapping, to_mapping
from recurra.evaluation import Evaluation, evaluate, row_starts, surprisals
from recurra.generation import (
    Generated,
    GenerationSettings,
    Piece,
    generate,
    generate_stream,
    next_log_probs,
    next_tokens,
)
from recurra.models.arpa import read_arpa
from recurra.models.dynamic_evaluation import DynamicEvaluation, gradient_statistics
from recurra.models.kinds import KINDS
from recurra.models.mixture import Mixture
from recurra.models.neural import NeuralLM
from recurra.models.neural_cache import NeuralCache, tune
from recurra.models.protocol import LanguageModelProtocol, StoredModel
from recurra.models.recurrent_lm import RecurrentLM
from recurra.nn import Recurrent, native
from recurra.text.batches import ContiguousStreams, TokenStream
from recurra.text.tokenizer import Tokenizer, WordTokenizer, tokenizer_from_mapping
from recurra.text.vocabulary import LINE_END

__all__ = ["CacheSettings", "Component", "LanguageModel", "MixtureSettings", "assemble", "held_out", "load"]

SAMPLE_ROWS, SAMPLE_STEPS, SAMPLE_BATCHES = 20, 35, 50  # what gradients are known from before dynamic evaluation
COUNTED_ROWS = 256  # lines that a model of counts reads side by side: searching a table is faster for many at once
MIXTURE = "mixture"  # the kind of a directory that names others

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """A neural cache beside a model; see :class:`recurra.models.neural_cache.NeuralCache`."""

    size: int
    theta: float
    weight: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """A model of a mixture.

    Attributes:
        path: its folder, or its ARPA file; absolute, and on disk as it is seen from the mixture's folder. None for a
            model that was never saved.
        weight: its share.
        cache: the cache beside it, if there is one.
    """

    path: Path | None
    weight: float
    cache: CacheSettings | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """What a mixture is made of, and where the state of all its models starts anew."""

    components: tuple[Component, ...]
    reset: str

    def to_mapping(self, directory: Path) -> dict[str, Any]:
        """Return it as JSON holds it, in ``directory``.

        Raises:
            UserError: a component was never saved.
        """
        components = []
        for each in self.components:
            if each.path is None:
                raise UserError("a mixture names the folders of its models: save the models first")
            path = os.path.relpath(each.path, directory.resolve())
            cache = None if each.cache is None else vars(each.cache)
            components.append({"path": path, "weight": each.weight, "cache": cache})
        return {"components": components, "reset": self.reset}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], directory: Path) -> MixtureSettings:
        """Turn what :meth:`to_mapping` returned back.

        Raises:
            UserError, KeyError, TypeError: it is something else.
        """
        components = []
        for part in mapping["components"]:
            cache = None if part["cache"] is None else from_mapping(CacheSettings, part["cache"], "cache")
            path = (directory / part["path"]).resolve()
            components.append(Component(path=path, weight=float(part["weight"]), cache=cache))
        return cls(components=tuple(components), reset=str(mapping["reset"]))


class SavedMixture(Mixture):
    """A mixture of models that are saved elsewhere, with the settings it was made with."""

    def __init__(
        self, models: Sequence[LanguageModelProtocol], settings: MixtureSettings, parameters_count: int
    ) -> None:
        super().__init__(models, [component.weight for component in settings.components])
        self.settings, self.parameters_count = settings, parameters_count

    def paths(self) -> Iterator[Path | None]:
        """Where its models are, and theirs if they are mixtures too."""
        for component, model in zip(self.settings.components, self.models, strict=True):
            yield component.path
            inner = model.model if isinstance(model, NeuralCache) else model
            if isinstance(inner, SavedMixture):
                yield from inner.paths()


def assemble(settings: MixtureSettings, parts: Sequence[LanguageModel]) -> LanguageModel:
    """Put loaded models together to the mixture that the settings describe."""
    models = [
        part.model if component.cache is None else NeuralCache(part.model, **vars(component.cache))
        for component, part in zip(settings.components, parts, strict=True)
    ]
    mixture = SavedMixture(models, settings, sum(part.model.parameters_count for part in parts))
    return LanguageModel(mixture, parts[0].tokenizer, MIXTURE)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    r"""A language model of any kind that reads and writes text.

    Attributes:
        model: follows the protocol that every language model follows.
        tokenizer: turns text into ids and back.
        kind: which of :data:`recurra.models.kinds.KINDS` it is, or ``mixture``.
        settings: every other setting it was made with, by section, for the record.
        path: the folder or file that it was read from.

    Example:
        >>> lm = recurra.load("my-model")
        >>> lm.perplexity("It was a dark and stormy night.\\n")
        >>> lm.next_tokens("It was a dark and", k=5)
        >>> lm.generate("It was", max_tokens=50, seed=1)[0].text
    """

    model: StoredModel | SavedMixture
    tokenizer: Tokenizer
    kind: str = "lm"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        words = len(self.tokenizer.vocabulary)
        if words != self.model.vocabulary_size:
            raise UserError(
                f"the vocabulary has {words} tokens, the model {self.model.vocabulary_size}: they do not fit together"
            )

    @property
    def counted(self) -> bool:
        """Whether it is made of counts alone: then it starts anew at every line end by itself, whoever reads."""
        parts = self.model.modules() if isinstance(self.model, nn.Module) else ()
        return not any(isinstance(part, NeuralLM) for part in parts)

    @property
    def recurrent(self) -> Recurrent | None:
        """Its stack of recurrent layers; None where it has none, as a mixture, whose models have their own."""
        return self.model.recurrent if isinstance(self.model, RecurrentLM) else None

    def parts(self) -> list[Path | None]:
        """Where the models of a mixture are; none for any other model."""
        return list(self.model.paths()) if isinstance(self.model, SavedMixture) else []

    def held_out(self, split: str = "valid") -> TokenStream | None:
        """The text that training set aside, as it stayed in the model's folder; None where it is not, or is empty.

        Args:
            split: ``valid`` or ``test``.
        """
        return None if self.path is None else held_out(self.path, split)

    # ---- on disk --------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write the model into a folder: ``settings.json`` and ``weights.safetensors``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.save_settings(directory)
        self.save_weights(directory)

    def save_settings(self, directory: Path) -> None:
        """Write all but the weights.

        Raises:
            UserError: a mixture that would take the place of a model it is made of, or one that was never saved.
        """
        if directory.resolve() in self.parts():
            raise UserError(
                f"{directory}: the mixture cannot take the place of what it is made of; choose another folder"
            )
        own = self.model.settings
        model = own.to_mapping(directory) if isinstance(own, MixtureSettings) else to_mapping(own)
        content = {**self.settings, "model": model, "tokenizer": self.tokenizer.to_mapping()}
        write_settings(directory, self.kind, content)

    def save_weights(self, directory: Path) -> None:
        """Write the weights; a mixture has none of its own."""
        if isinstance(self.model, SavedMixture):
            return
        metadata = {"vocabulary": self.tokenizer.vocabulary.digest()}
        write_tensors(directory / WEIGHTS, self.model.tensors(), metadata)

    @classmethod
    def load(cls, directory: str | Path, *, device: str | None = None, precision: str = "float32") -> LanguageModel:
        """Read a model that :meth:`save` or training wrote.

        Args:
            directory: its folder; or an n-gram model in an ARPA file, ``.arpa`` or ``.arpa.gz``.
            device: ``cpu``, ``cuda`` or ``mps``; what there is if not given.
            precision: of the weights, ``float32`` or ``int8``: see :meth:`RecurrentLM.round_to_int8_`.

        Raises:
            UserError: there is none, it is of another kind, or a file of it is missing, damaged, or for another
                vocabulary.
        """
        if precision not in ("float32", "int8"):
            raise UserError(f"precision: expected float32 or int8, got {precision!r}")
        lm = _load(Path(directory), distributed.choose_device(device), ())
        if precision == "int8":
            if not isinstance(lm.model, RecurrentLM):
                raise UserError(f"{directory}: int8 is for recurrent models, this is of kind {lm.kind!r}")
            lm.model.round_to_int8_()
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
        if self.counted:
            options.setdefault("batch_size", COUNTED_ROWS)
        return evaluate(
            self.model,
            stream.tokens,
            words=stream.words,
            characters=stream.characters,
            **self._rows(stream, reset),
            **options,
        )

    def evaluate_dynamically(
        self,
        text: str | TokenStream,
        *,
        learning_rate: float,
        decay: float,
        segment: int = 5,
        sample: TokenStream | None = None,
        **options: Any,
    ) -> Evaluation:
        """Like :meth:`evaluate`, with a model that goes on learning from what it reads (Krause et al. 2018).

        Args:
            text: a text, or one already turned into tokens; read as one row.
            learning_rate: of its steps.
            decay: how far the weights return to the trained ones with each step.
            segment: tokens between two steps.
            sample: training text that the usual size of each weight's gradient is taken from, which the steps are then
                measured in; without, they are plain gradient descent.
            options: for :func:`recurra.evaluation.evaluate`.

        Raises:
            UserError: the model is not trained by gradient, or of independent lines; or the steps diverge.
        """
        stream = self._tokens(text)
        if not isinstance(self.model, NeuralLM):
            raise UserError(f"dynamic evaluation is for models trained by gradient, not for one of kind {self.kind!r}")
        statistics = None
        if sample is not None:
            rows = max(1, min(SAMPLE_ROWS, len(sample) // SAMPLE_STEPS))
            streams = ContiguousStreams(sample, rows, min(SAMPLE_STEPS, len(sample)))
            statistics = gradient_statistics(self.model, streams[:SAMPLE_BATCHES])
        learning = DynamicEvaluation(
            self.model, learning_rate=learning_rate, decay=decay, segment=segment, statistics=statistics
        )
        return evaluate(
            learning, stream.tokens, words=stream.words, characters=stream.characters, batch_size=1, **options
        )

    def with_cache(
        self, size: int, *, theta: float | None = None, weight: float | None = None, tuned_on: TokenStream | None = None
    ) -> LanguageModel:
        """The model with a neural cache beside it (Grave et al. 2017).

        Args:
            size: words that are remembered.
            theta: how sharply like contexts are told from others.
            weight: of the cache, 0 to 1.
            tuned_on: choose both on this text, in place of giving them.

        Raises:
            UserError: neither or both ways of saying theta and weight.
        """
        # Counts forget at line ends by themselves; the cache beside them goes on.
        reset = "none" if self.counted else self.model.settings.reset
        if tuned_on is not None and theta is weight is None:
            stream = self._tokens(tuned_on)
            starts = row_starts(reset, stream.document_starts, stream.line_starts)
            tuned = tune(self.model, stream.tokens, size=size, starts=starts)
            theta, weight = tuned.theta, tuned.weight
        elif tuned_on is not None or theta is None or weight is None:
            raise UserError("a cache needs both theta and weight, or a text to choose them on: give one or the other")
        settings = MixtureSettings(
            components=(
                Component(path=self.path, weight=1.0, cache=CacheSettings(size=size, theta=theta, weight=weight)),
            ),
            reset=reset,
        )
        return assemble(settings, [self])

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


def _load(path: Path, device: torch.device, within: tuple[Path, ...]) -> LanguageModel:
    """Read a model from a folder or an ARPA file; ``within`` are the mixtures that it is a part of."""
    if path.is_file():
        return _load_arpa(path)
    content = read_settings(path)
    name = content.pop("kind")
    del content["format"]
    if name == MIXTURE:
        return _load_mixture(path, content, device, within)
    if name not in KINDS:
        raise CheckpointError(f"{path}: holds a model of kind {name!r}, expected one of {', '.join(KINDS)}")
    kind = KINDS[name]
    where = str(path / SETTINGS)
    try:
        tokenizer = tokenizer_from_mapping(content.pop("tokenizer"))
        settings = from_mapping(kind.settings, content.pop("model"), where)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: damaged ({error!r}); restore it or train again") from error
    tensors, metadata = read_tensors(path / WEIGHTS, verify=not kind.counted)
    if metadata.get("vocabulary") != tokenizer.vocabulary.digest():
        raise CheckpointError(f"{path / WEIGHTS}: belongs to another vocabulary than the one in {where}")
    try:
        model = kind.model.from_tensors(settings, tokenizer.vocabulary, tensors)
    except UserError as error:
        raise CheckpointError(f"{path / WEIGHTS}: {error}") from error
    if isinstance(model, nn.Module):
        model.to(device).eval()
    return LanguageModel(model, tokenizer, name, content, path.resolve())


def _load_mixture(path: Path, content: dict[str, Any], device: torch.device, within: tuple[Path, ...]) -> LanguageModel:
    own = path.resolve()
    if own in within:
        raise CheckpointError(f"{path}: is a mixture that is a part of itself; mix the models again")
    try:
        settings = MixtureSettings.from_mapping(content["model"], own)
        tokens = content["tokenizer"]["vocabulary"]["tokens"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / SETTINGS}: damaged ({error}); mix the models again") from error
    parts = []
    for component in settings.components:
        assert component.path is not None
        if not (component.path.is_file() or (component.path / SETTINGS).exists()):
            raise CheckpointError(f"{path}: is a mixture of {component.path} too, which is not there; mix again")
        parts.append(_load(component.path, device, (*within, own)))
        if parts[-1].tokenizer.vocabulary.tokens != tokens:
            raise CheckpointError(f"{component.path}: has another vocabulary than when it was mixed; mix again")
    return dataclasses.replace(assemble(settings, parts), path=own)


def _load_arpa(path: Path) -> LanguageModel:
    """An n-gram model whose words are what stands between white space, as in the ARPA file it comes from."""
    if not path.name.endswith((".arpa", ".arpa.gz")):
        raise UserError(f"{path}: expected the folder of a model, or an n-gram model named .arpa or .arpa.gz")
    model, vocabulary = read_arpa(path)
    return LanguageModel(model, WordTokenizer("whitespace", vocabulary), "ngram", path=path.resolve())


def held_out(directory: Path, split: str) -> TokenStream | None:
    """:meth:`LanguageModel.held_out` of a folder whose model need not be loaded for it."""
    path = directory / "training" / split
    stream = TokenStream.open(path) if path.exists() else None
    return stream if stream is not None and len(stream) else None


def load(directory: str | Path, *, device: str | None = None, precision: str = "float32") -> LanguageModel:
    """Read a trained language model from its folder; see :meth:`LanguageModel.load`."""
    return LanguageModel.load(directory, device=device, precision=precision)

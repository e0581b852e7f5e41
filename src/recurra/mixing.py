"""From saved models to a better one: mixtures with the weights that fit a text best, and caches tuned on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from recurra.checkpoint import prepare_directory
from recurra.config import UserError
from recurra.evaluation import surprisal_blocks
from recurra.language_model import CacheSettings, Component, LanguageModel, MixtureSettings, assemble, load
from recurra.models.kinds import KINDS
from recurra.models.mixture import fit_weights
from recurra.models.neural import NeuralLM
from recurra.models.neural_cache import NeuralCache, tune
from recurra.models.protocol import LanguageModelProtocol
from recurra.text.batches import TokenStream
from recurra.text.corpora import Sources, open_text

__all__ = ["mix"]


def mix(
    models: Sequence[str | Path],
    directory: str | Path,
    valid: Sources | TokenStream,
    *,
    cache: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> LanguageModel:
    """Interpolate saved models with the weights under which a text is most probable, and leave the mixture in a folder.

    The folder names the models and does not copy them: they have to stay where they are, seen from it. One model alone
    is a mixture too, which is how a cache is put beside it for good.

    Args:
        models: folders of models, all over one vocabulary.
        directory: the mixture's folder.
        valid: the text that weights and caches are chosen on: no model was trained on it.
        cache: words that a neural cache remembers beside each model that has hidden vectors; 0 for none.
        overwrite: replace a model that is there.
        say: is called with a line of text at each stage.

    Raises:
        UserError: whatever is wrong with what was given, in one line.
    """
    directory = Path(directory)
    if not models:
        raise UserError("nothing to mix: name one or more folders of models")
    if len({Path(model).resolve() for model in models}) < len(models):
        raise UserError("a model is named twice: mixing it with itself changes nothing")
    if any(Path(model).resolve() == directory.resolve() for model in models):
        raise UserError(f"{directory}: the mixture cannot take the place of what it is made of; choose another with -o")
    prepare_directory(directory, overwrite=overwrite, resume=False)
    parts = [load(model) for model in models]
    for path, part in zip(models, parts, strict=True):
        if part.tokenizer.vocabulary.tokens != parts[0].tokenizer.vocabulary.tokens:
            raise UserError(
                f"{path} has another vocabulary than {models[0]}: only models over one vocabulary can be mixed; train"
                " them on the same corpus with the same tokenizer settings"
            )
    stream = valid if isinstance(valid, TokenStream) else TokenStream.from_text(open_text(valid), parts[0].tokenizer)
    reset = _common_reset(models, parts)
    starts = {"none": np.zeros(1, np.int64), "documents": stream.document_starts, "lines": stream.line_starts}[reset]
    log_probs = np.empty((len(parts), len(stream)), np.float32)
    components: list[Component] = []
    for number, (path, part) in enumerate(zip(models, parts, strict=True)):
        model: LanguageModelProtocol = part.model
        chosen = None
        if cache and isinstance(model, NeuralLM):
            say(f"{path}: tuning a cache of {cache:,} words")
            tuned = tune(model, stream.tokens, size=cache)
            chosen = CacheSettings(size=cache, theta=tuned.theta, weight=tuned.weight)
            model = NeuralCache(model, size=cache, theta=tuned.theta, weight=tuned.weight)
        say(f"{path}: reading {len(stream):,} tokens")
        for positions, nats in surprisal_blocks(model, stream.tokens, starts):
            log_probs[number, positions] = -nats
        components.append(Component(directory=os.path.relpath(path, directory), weight=0.0, cache=chosen))
    weights = fit_weights(log_probs)
    settings = MixtureSettings(
        components=tuple(
            Component(directory=each.directory, weight=float(weight), cache=each.cache)
            for each, weight in zip(components, weights, strict=True)
        ),
        reset=reset,
    )
    mixture = assemble(settings, parts)
    mixture.save_settings(directory)
    return mixture


def _common_reset(paths: Sequence[str | Path], parts: Sequence[LanguageModel]) -> str:
    """Where the state of all of them starts anew; models that count do so at line ends by themselves."""
    resets = {
        str(path): part.model.settings.reset
        for path, part in zip(paths, parts, strict=True)
        if not (part.kind in KINDS and KINDS[part.kind].counted)
    }
    if len(set(resets.values())) > 1:
        listed = ", ".join(f"{path} ({reset})" for path, reset in resets.items())
        raise UserError(f"models that start anew in different places cannot read one text together: {listed}")
    return next(iter(resets.values()), "lines")

"""From saved models to a better one: mixtures with the weights that fit a text best, and caches tuned on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recurra import distributed
from recurra.checkpoint import clear_directory, prepare_directory
from recurra.config import UserError
from recurra.evaluation import row_starts, surprisal_blocks
from recurra.language_model import (
    CacheSettings,
    Component,
    LanguageModel,
    MixtureSettings,
    assemble,
    load,
)
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
        cache: words that a neural cache remembers beside each model that has hidden vectors and does not forget at line
            ends; 0 for none.
        overwrite: replace a model that is there.
        say: is called with a line of text at each stage.

    Raises:
        UserError: whatever is wrong with what was given, in one line.
    """
    directory = Path(directory)
    if distributed.world_size() > 1:
        raise UserError("models are mixed by one process: run the command without torchrun")
    if not models:
        raise UserError("nothing to mix: name one or more folders of models")
    if len({Path(model).resolve() for model in models}) < len(models):
        raise UserError("a model is named twice: mixing it with itself changes nothing")
    if directory.exists():
        prepare_directory(directory, overwrite=overwrite)
    parts = [load(model) for model in models]
    needed = {path for part in parts for path in (part.path, *part.parts())}
    if directory.resolve() in needed:
        raise UserError(f"{directory}: the mixture cannot take the place of what it is made of; choose another with -o")
    for path, part in zip(models, parts, strict=True):
        if part.tokenizer.vocabulary.tokens != parts[0].tokenizer.vocabulary.tokens:
            raise UserError(
                f"{path} has another vocabulary than {models[0]}: only models over one vocabulary can be mixed; train"
                " them on the same corpus with the same tokenizer settings"
            )
    stream = valid if isinstance(valid, TokenStream) else TokenStream.from_text(open_text(valid), parts[0].tokenizer)
    # A model that starts anew at line ends by itself may be read in any way, and has to be read as the others are.
    reset = _common_reset(models, parts)
    starts = row_starts(reset, stream.document_starts, stream.line_starts)
    log_probs = np.empty((len(parts), len(stream)), np.float32)
    components: list[Component] = []
    for number, (path, part) in enumerate(zip(models, parts, strict=True)):
        model: LanguageModelProtocol = part.model
        chosen = None
        if cache and isinstance(model, NeuralLM) and reset != "lines":
            say(f"{path}: tuning a cache of {cache:,} words")
            tuned = tune(model, stream.tokens, size=cache, starts=starts)
            chosen = CacheSettings(size=cache, theta=tuned.theta, weight=tuned.weight)
            model = NeuralCache(model, size=cache, theta=tuned.theta, weight=tuned.weight)
        say(f"{path}: reading {len(stream):,} tokens")
        for positions, nats in surprisal_blocks(model, stream.tokens, starts):
            log_probs[number, positions] = -nats
        components.append(Component(path=part.path, weight=0.0, cache=chosen))
    weights = fit_weights(log_probs)
    fitted = (dataclasses.replace(each, weight=float(weight)) for each, weight in zip(components, weights, strict=True))
    mixture = assemble(MixtureSettings(components=tuple(fitted), reset=reset), parts)
    with np.errstate(divide="ignore"):
        mixed = np.logaddexp.reduce(log_probs + np.log(weights)[:, None].astype(np.float32), axis=0)
    for path, alone in zip(models, log_probs, strict=True):
        say(f"perplexity {_perplexity(alone):10.2f}  {path}")
    say(f"perplexity {_perplexity(mixed):10.2f}  mixture, on the text its weights were chosen on")
    prepare_directory(directory, overwrite=overwrite)
    clear_directory(directory)
    mixture.save_settings(directory)
    return dataclasses.replace(mixture, path=directory.resolve())


def _common_reset(paths: Sequence[str | Path], parts: Sequence[LanguageModel]) -> str:
    """Where the state of all of them starts anew; models of counts do so at line ends by themselves."""
    resets = {str(path): part.model.settings.reset for path, part in zip(paths, parts, strict=True) if not part.counted}
    if len(set(resets.values())) > 1:
        listed = ", ".join(f"{path} ({reset})" for path, reset in resets.items())
        raise UserError(f"models that start anew in different places cannot read one text together: {listed}")
    return next(iter(resets.values()), "lines")


def _perplexity(log_probs: NDArray[np.float32]) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(-log_probs.mean(dtype=np.float64)))

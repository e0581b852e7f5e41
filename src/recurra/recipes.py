"""From settings and a corpus to a trained model directory: one function for each kind of model."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recurra import distributed
from recurra.checkpoint import (
    SETTINGS,
    WEIGHTS,
    clear_directory,
    prepare_directory,
    read_settings,
    write_json,
    write_settings,
)
from recurra.config import UserError, from_mapping, read_file, resolve, to_mapping
from recurra.evaluation import Evaluation
from recurra.language_model import LanguageModel
from recurra.models.kinds import KINDS
from recurra.models.neural import SAMPLED, NeuralLM
from recurra.optimization import LEARNING_RATES, norm_limit
from recurra.presets import find_preset
from recurra.text.batches import Batch, ContiguousStreams, LineBatches, TokenStream, write_tokens
from recurra.text.corpora import CorpusSettings, open_corpus
from recurra.text.tokenizer import (
    Tokenizer,
    TokenizerSettings,
    build_tokenizer,
    tokenizer_from_mapping,
    word_kind,
)
from recurra.training import LIMITS, Trainer, TrainingSettings, Watcher, check_support

__all__ = ["Outcome", "sections", "settle", "train_lm"]


def sections(kind: str) -> dict[str, type[Any]]:
    """The settings classes of a kind of language model, by the section of a settings file that holds them."""
    found = {"corpus": CorpusSettings, "tokenizer": TokenizerSettings, "model": KINDS[kind].settings}
    return found if KINDS[kind].counted else {**found, "training": TrainingSettings}


ROWS_OF_VALIDATION = 10  # rows that validation during training is read in, each from the zero state: an estimate
SPLITS = ("train", "valid", "test")
# Of Adam, where it is not the LSTM's: above, these cells are thrown off, the sooner the more often the text is read.
WORD_RATES, CHARACTER_RATES = {"rnn": 2e-3, "gru": 3e-3}, {"rnn": 5e-3}


@dataclass(frozen=True)
class Outcome:
    """What training led to.

    Attributes:
        lm: the model, with the best weights found.
        evaluations: of the splits ``valid`` and ``test``, exact; empty when training was stopped by a signal.
        stopped: the signal that stopped it, if one did.
    """

    lm: LanguageModel
    evaluations: Mapping[str, Evaluation]
    stopped: signal.Signals | None = None


def train_lm(
    corpus: str | Path | Sequence[str | Path] = (),
    directory: str | Path = "",
    *,
    kind: str | None = None,
    preset: str | None = None,
    scale: float = 1.0,
    config: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    watch: Watcher | None = None,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Outcome:
    """Train a language model and leave it in a folder.

    Args:
        corpus: files, folders, globs, ``-`` or the name of a corpus; needed but for resuming.
        directory: the model's folder.
        kind: one of :data:`recurra.models.kinds.KINDS`; that of the preset, or ``lm``, if not given.
        preset: settings by the name of a published system (:data:`recurra.presets.PRESETS`); file and keywords win
            over it.
        scale: what the sizes of the preset are multiplied by.
        config: a settings file; keywords win over it.
        overwrite: replace a model that is there.
        resume: go on with the run that was stopped there.
        watch: is called with the progress of training.
        say: is called with a line of text at each stage.
        settings: any field of the kind's :func:`sections`, such as ``hidden_size=256`` or ``max_minutes=5``.

    Raises:
        UserError: whatever is wrong with what was given, in one line.
        recurra.training.Diverged: the loss was no longer finite.
    """
    if not str(directory):
        raise UserError("no folder given for the model")
    directory = Path(directory)
    sources = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    kind, base = _kind_and_base(kind, preset, scale, directory if resume else None)
    chosen = resolve(sections(kind), base=base, file=config, flags=settings)
    wanted = chosen["training"].device if "training" in chosen else "auto"
    device = distributed.choose_device(None if wanted == "auto" else wanted)
    if KINDS[kind].counted:
        if resume:
            raise UserError(f"a model of kind {kind!r} is counted in one go: there is nothing to resume")
        if distributed.world_size() > 1:
            raise UserError(f"a model of kind {kind!r} is counted by one process: run the command without torchrun")
        return _count(kind, sources, directory, chosen, overwrite, say)
    with distributed.process_group(device):
        problem: Exception | None = None
        if distributed.is_writer():
            try:
                prepare_directory(directory, overwrite=overwrite, resume=resume)
                if resume:
                    _update_limits(directory, kind, sources, {*_given(config), *settings, *base}, chosen)
                else:
                    _prepare(kind, sources, directory, chosen, device, say)
            except Exception as error:
                problem = error
        if not distributed.all_succeeded(problem is None):
            raise problem or SystemExit(2)  # the writing process says why
        return _train(directory, kind, device, resume, watch, say)


def _kind_and_base(
    kind: str | None, preset: str | None, scale: float, resumed: Path | None
) -> tuple[str, Mapping[str, Any]]:
    """Which kind of model it is, and the settings that a preset gives."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind of model {kind!r}; there are {', '.join(KINDS)}")
    if preset is None and scale != 1:
        raise UserError("a scale is for the sizes of a preset: name one with --preset")
    found, base, source = kind, {}, "asked for"
    if preset is not None:
        chosen = find_preset(preset)
        found, base, source = chosen.kind, chosen.scaled(scale), f"the kind of preset {preset}"
    elif resumed is not None and (resumed / SETTINGS).exists():
        found, source = read_settings(resumed)["kind"], f"the kind of the model in {resumed}"
        if found not in KINDS:
            raise UserError(
                f"{resumed}: holds a model of another kind: use `recurra train {found} -o {resumed} --resume`"
            )
    if kind is not None and found != kind:
        raise UserError(f"{found!r} is {source}, not {kind!r}: use `recurra train {found}`")
    return found or "lm", base


def _given(config: str | Path | None) -> set[str]:
    """Names of the settings that a file gives."""
    return {name for section in (read_file(config) if config else {}).values() for name in section}


@contextmanager
def _fresh_folder(directory: Path) -> Iterator[Path]:
    """A folder within a model directory that is gone at the end, unless it was moved into its place."""
    fresh = directory / ".training.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        with suppress(OSError):  # nor is there a directory where nothing was to be kept
            directory.rmdir()


def _read(
    kind: str, sources: list[str | Path], chosen: Mapping[str, Any], fresh: Path, say: Callable[[str], None]
) -> tuple[dict[str, TokenStream], Tokenizer]:
    """Text to tokens in a folder, and the tokenizer that was made for it."""
    if not sources:
        raise UserError("no corpus given: name a file, a folder or a corpus of `recurra data list`")
    corpus = open_corpus(sources, chosen["corpus"])
    say(f"reading {corpus.name}")
    settings = chosen["tokenizer"]
    if KINDS[kind].counted and settings.tokenizer is None:
        settings = dataclasses.replace(settings, tokenizer=word_kind(corpus.train))
    tokenizer = build_tokenizer(corpus.train, settings)
    texts = {split: getattr(corpus, split) for split in SPLITS}
    streams = {split: write_tokens(text, tokenizer, fresh / split) for split, text in texts.items() if text is not None}
    return streams, tokenizer


def _install(
    kind: str,
    sources: list[str | Path],
    directory: Path,
    chosen: Mapping[str, Any],
    tokenizer: Tokenizer,
    fresh: Path,
) -> None:
    """Put what was prepared in the place of what is there: tokens, and settings with nothing left to choose."""
    clear_directory(directory)
    fresh.rename(directory / "training")
    content = {
        "corpus": {"sources": [str(source) for source in sources], **to_mapping(chosen["corpus"])},
        "tokenizer_settings": to_mapping(chosen["tokenizer"]),
        **({"training": to_mapping(chosen["training"])} if "training" in chosen else {}),
        "model": to_mapping(chosen["model"]),
        "tokenizer": tokenizer.to_mapping(),
    }
    write_settings(directory, kind, content)


def _prepare(
    kind: str,
    sources: list[str | Path],
    directory: Path,
    chosen: dict[str, Any],
    device: torch.device,
    say: Callable[[str], None],
) -> None:
    """Text to tokens on disk, settings settled and written; an older model there goes only when all this has worked."""
    check_support(chosen["training"], device)
    with _fresh_folder(directory) as fresh:
        streams, tokenizer = _read(kind, sources, chosen, fresh, say)
        train = streams["train"]
        model, training = settle(kind, chosen["model"], chosen["training"], train, tokenizer)
        with torch.device("meta"):  # without storage: sizes that do not fit are refused here
            count = KINDS[kind].model(model, tokenizer.vocabulary).parameters_count
        _check_rows(model, training)
        _batches(train, model, training, 0)  # a text that is too short is, too
        say(f"{_found(train, tokenizer)}; {KINDS[kind].title}: {_described(model)}, {count:,} parameters")
        _install(kind, sources, directory, {**chosen, "model": model, "training": training}, tokenizer, fresh)


def _count(
    kind: str,
    sources: list[str | Path],
    directory: Path,
    chosen: dict[str, Any],
    overwrite: bool,
    say: Callable[[str], None],
) -> Outcome:
    """Make a model by counting; an older one in its folder goes when the new one is there."""
    prepare_directory(directory, overwrite=overwrite, resume=False)
    with _fresh_folder(directory) as fresh:
        streams, tokenizer = _read(kind, sources, chosen, fresh, say)
        say(f"{_found(streams['train'], tokenizer)}; {KINDS[kind].title}")
        begun = time.perf_counter()
        model = KINDS[kind].model.estimate(chosen["model"], streams["train"], tokenizer.vocabulary, say=say)
        about = {"training_seconds": time.perf_counter() - begun, "training_tokens": len(streams["train"])}
        LanguageModel(model, tokenizer, kind).save_weights(fresh)
        del model
        _install(kind, sources, directory, chosen, tokenizer, fresh)
    (directory / "training" / WEIGHTS).replace(directory / WEIGHTS)
    lm = LanguageModel.load(directory, device="cpu")
    return Outcome(lm, _evaluated(directory, lm, streams, about, say))


def _found(train: TokenStream, tokenizer: Tokenizer) -> str:
    return f"{len(train):,} tokens ({tokenizer.kind}) to train on, vocabulary {len(tokenizer.vocabulary):,}"


def _described(model: Any) -> str:
    """The size of a model in a few words."""
    found = {name: value for name, value in vars(model).items() if value}
    parts = [f"{found['layers']} x {found['hidden_size']} {found['cell']}"] if "cell" in found else []
    parts += [f"window {found['window']}, {found['hidden_size']} units"] if "window" in found else []
    parts += [f"output {found['output']}"] if "output" in found else []
    parts += [f"n-grams up to {order}"] if (order := found.get("maxent_order") or found.get("order")) else []
    return ", ".join(parts)


def _update_limits(
    directory: Path, kind: str, sources: Sequence[str | Path], given: Iterable[str], chosen: Mapping[str, Any]
) -> None:
    """Take over the limits given for a resumed run; anything else must be as it was, or left to be chosen."""
    content = read_settings(directory, kind)
    if "corpus" not in content or not (directory / "training").is_dir():
        raise UserError(f"{directory}: the model was not trained there, or its tokens are gone; it cannot go on")
    named, before = [str(source) for source in sources], content["corpus"]["sources"]
    if named and named != before:
        raise UserError(f"a run that is resumed reads what it read before: {', '.join(before)}; name no other corpus")
    values = {section: to_mapping(settings) for section, settings in chosen.items()}
    for section, name in ((section, name) for name in given for section in values if name in values[section]):
        place = content["tokenizer_settings" if section == "tokenizer" else section]
        before, value = place.get(name), values[section][name]
        if name in LIMITS:
            place[name] = value
        elif value is not None and before != value:
            raise UserError(
                f"{name} cannot change in a run that is resumed: it was {before}, now {value}; leave it out"
            )
    from_mapping(TrainingSettings, content["training"], str(directory / SETTINGS)).check_end()
    write_json(directory / SETTINGS, content)


def _check_rows(model: Any, training: TrainingSettings) -> None:
    ranks, rows = distributed.world_size(), training.batch_size or 0
    if model.reset != "lines" and rows % ranks:
        raise UserError(f"batch_size {rows} cannot be shared out among {ranks} processes; choose a multiple of {ranks}")


def _train(
    directory: Path, kind: str, device: torch.device, resume: bool, watch: Watcher | None, say: Callable[[str], None]
) -> Outcome:
    """Train what stands prepared in a folder by gradient."""
    content, tokenizer, model_settings, streams = _prepared(directory, kind)
    settings = from_mapping(TrainingSettings, content["training"], str(directory / SETTINGS))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    _check_rows(model_settings, settings)
    torch.manual_seed(settings.seed)
    about: dict[str, Any] = {}
    counted = 0.0  # seconds
    model: NeuralLM = KINDS[kind].model(model_settings, tokenizer.vocabulary).to(device)
    if model.hashed is not None:
        begun = time.perf_counter()
        about["ngrams"] = found = model.assign_ngrams(streams["train"].tokens)
        assert found is not None
        counted = time.perf_counter() - begun
        say(
            f"n-grams: {found['rows_used']:,} of {found['rows']:,} rows of weights are used; of what was seen often"
            f" enough {found['crowded_out']:.1%} found its row taken ({counted:.1f} s)"
        )
    lm = LanguageModel(model, tokenizer, kind, content)
    trainer = Trainer(
        model,
        settings,
        lambda epoch: _batches(streams["train"], model_settings, settings, epoch),
        valid=_validation(streams.get("valid"), model_settings, settings),
        carry_state=model_settings.reset != "lines",
        directory=directory / "training",
        keep=lambda: lm.save_weights(directory),
        watch=watch,
    )
    trainer.run_state.seconds = counted  # it is a part of training
    if resume:
        say(
            f"resuming at step {trainer.run_state.step:,}"
            if trainer.resume()
            else "nothing was saved yet: starting from the beginning"
        )
    stopped = trainer.run()
    about |= {
        "steps": trainer.run_state.step,
        "training_seconds": trainer.run_state.seconds,
        "training_tokens": trainer.run_state.tokens,
    }
    distributed.barrier()
    del trainer, lm, model
    lm = LanguageModel.load(directory, device=str(device))
    return Outcome(lm, {} if stopped else _evaluated(directory, lm, streams, about, say), stopped)


def _prepared(directory: Path, kind: str) -> tuple[dict[str, Any], Tokenizer, Any, dict[str, TokenStream]]:
    """What :func:`_install` left in a folder: all settings, tokenizer, the model's settings, tokens of each split."""
    content = read_settings(directory, kind)
    tokenizer = tokenizer_from_mapping(content.pop("tokenizer"))
    model = from_mapping(KINDS[kind].settings, content.pop("model"), str(directory / SETTINGS))
    folder = directory / "training"
    streams = {split: TokenStream.open(folder / split) for split in SPLITS if (folder / split).exists()}
    if "train" not in streams:
        raise UserError(f"{folder}: the tokens of the run are gone, so it cannot go on; train again")
    return content, tokenizer, model, streams


def _evaluated(
    directory: Path,
    lm: LanguageModel,
    streams: Mapping[str, TokenStream],
    about: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, Evaluation]:
    """The exact evaluations of the splits set aside; written down together with what is known of the run."""
    evaluations: dict[str, Evaluation] = {}
    for split in ("valid", "test"):
        if split in streams and len(streams[split]):
            say(f"evaluating on {split}: {len(streams[split]):,} tokens")
            evaluations[split] = lm.evaluate(streams[split])
    if distributed.is_writer():
        results = {
            **about,
            "parameters": lm.model.parameters_count,
            **{split: evaluation.to_mapping() for split, evaluation in evaluations.items()},
        }
        write_json(directory / "results.json", results)
    return evaluations


def _batches(stream: TokenStream, model: Any, training: TrainingSettings, epoch: int) -> Sequence[Batch]:
    """The batches of one epoch, this rank's part: contiguous streams, or lines by themselves."""
    assert training.batch_size is not None
    place = {"rank": distributed.rank(), "ranks": distributed.world_size()}
    if model.reset == "lines":
        return LineBatches(stream, batch_size=training.batch_size, seed=training.seed, epoch=epoch, **place)
    with_resets = model.reset == "documents"
    return ContiguousStreams(stream, training.batch_size, training.chunk_length, resets=with_resets, **place)


def _validation(stream: TokenStream | None, model: Any, training: TrainingSettings) -> Sequence[Batch]:
    """Batches for the estimates made during training: beginnings of rows that start all over the validation text."""
    ranks = distributed.world_size()
    if stream is None or len(stream) < ranks:
        return ()
    rows = max(1, min(ROWS_OF_VALIDATION, len(stream)) // ranks) * ranks
    shape: dict[str, Any] = {"batch_size": rows, "chunk_length": min(100, len(stream) // rows)}
    batches = _batches(stream, model, dataclasses.replace(training, **shape), 0)
    share = min(1.0, training.evaluate_tokens / len(stream))
    return batches[: max(1, round(share * len(batches)))]


def settle(
    kind: str, model: Any, training: TrainingSettings, train: TokenStream, tokenizer: Tokenizer
) -> tuple[Any, TrainingSettings]:
    """Choose every setting that was left open, from the size of the corpus and the time there is.

    Training ends after 10 minutes or 50 epochs if no limit is given. The more often the text will be read, the larger
    the model and its dropout; the figures come from runs on WikiText-2 and tiny-shakespeare (docs/results.md).
    """
    tokens, vocabulary = len(train), len(tokenizer.vocabulary)
    characters = tokenizer.kind == "characters"
    if not (training.epochs or training.max_steps or training.max_minutes is not None):
        training = dataclasses.replace(training, max_minutes=10.0, epochs=50)
    # How often the text will be read, at the speed of two cores of a plain CPU.
    speed = 20_000 if characters else 25_000 if vocabulary < 10_000 else 12_000
    minutes = training.max_minutes if training.max_minutes is not None else math.inf
    steps = training.max_steps or math.inf
    per_step = (training.batch_size or 40) * training.chunk_length
    passes = min(training.epochs or math.inf, minutes * 60 * speed / tokens, steps * per_step / tokens, 50.0)
    read = passes * tokens
    if characters:
        hidden, batch_size, dropout, rate = (512 if read > 3e6 else 256), 32, min(0.4, 0.06 * passes), 6e-3
    elif read > 12e6:
        hidden, batch_size, dropout, rate = 512, 64, min(0.5, 0.04 * passes), 8e-3
    else:
        hidden, batch_size, dropout, rate = (384 if read > 6e6 else 256), 40, min(0.5, 0.04 * passes), 8e-3
    rate = min(rate, (CHARACTER_RATES if characters else WORD_RATES).get(getattr(model, "cell", ""), rate))
    if training.optimizer not in ("adam", "adamw"):
        rate = LEARNING_RATES[training.optimizer]
    batch_size = max(1, min(batch_size, tokens // (2 * training.chunk_length)))
    batch_size = max(1, batch_size // distributed.world_size()) * distributed.world_size()
    embedding = 128 if characters else 256
    if kind == "lm":
        sizes = (model.hidden_size,) if isinstance(model.hidden_size, int | None) else model.hidden_size
        if not sizes:
            raise UserError("hidden_size: expected a size, or one for each layer, got none")
        model = _fill(model, hidden_size=hidden, layers=len(sizes))
        last = model.projection_size or sizes[-1] or hidden
        model = _fill(model, embedding_size=min(embedding, last))
        model = _fill(model, tied=model.inputs == "words")
    ngram_dropout = min(0.5, 0.04 * max(0.0, passes - 4))  # they know the text by heart when it is read often
    if kind == "maxent":
        model = _fill(model, dropout=ngram_dropout)
    model = _fill(
        model,
        hidden_size=hidden,
        embedding_size=embedding,
        output="adaptive" if vocabulary > 5_000 else "full",
        samples=max(1, min(2048, vocabulary // 4)) if getattr(model, "output", None) in SAMPLED else None,
        input_dropout=0.0 if characters else dropout,
        dropout=dropout,
        output_dropout=dropout,
        maxent_dropout=ngram_dropout,
    )
    clip_norm = norm_limit(None, training.optimizer)
    training = _fill(training, batch_size=batch_size, learning_rate=rate, clip_norm=clip_norm)
    return model, training


def _fill(settings: Any, **chosen: Any) -> Any:
    """Settings with what is ``None`` in them, of the names given, chosen."""
    missing = {name: value for name, value in chosen.items() if getattr(settings, name, ...) is None}
    return dataclasses.replace(settings, **missing)

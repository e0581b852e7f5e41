"""Predictions as input arrives, in memory that does not grow: for models that read in one direction only."""

from __future__ import annotations

import codecs
import dataclasses
import io
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

from recurra.config import UserError
from recurra.models.classifier import Classifier
from recurra.models.tagger import Tagger
from recurra.models.transcriber import Transcriber
from recurra.text.columns import words_of
from recurra.text.examples import Encoded, collate
from recurra.text.features import Features, FeatureSettings, log_mel
from recurra.text.readers import Sentence

__all__ = ["FrameStream", "follow"]

CHUNK = 1 << 16  # bytes that are taken at a time, at most; fewer where no more are there yet
FULL_SCALE = 1 << 15  # of 16-bit samples
WAV = b"RIFF"  # what a .wav file begins with


def follow(model: Any, file: BinaryIO, *, encoding: str = "utf-8", errors: str = "strict") -> Iterator[str]:
    """Lines of predictions, each as soon as what it is of has arrived.

    A tagger reads words between white space and gives a line ``word<TAB>tag`` for each, and an empty one where a line
    ends. A classifier gives a line ``word<TAB>class<TAB>probability`` for each word, of the line so far. A transcriber
    reads samples of 16 bits, little-endian, of one channel, as many a second as it was trained on, without a header,
    and gives each symbol that it hears.

    Args:
        model: a tagger, classifier or transcriber.
        file: such as standard input.
        encoding: of text.
        errors: what to do with bytes that are not in it.

    Raises:
        UserError: the model is of another kind or needs what comes later; bytes that are not in the encoding; a .wav
            file in the place of samples.
    """
    for kind, reads in FOLLOWED.items():
        if isinstance(model, kind):
            return reads(model, file) if kind is Transcriber else reads(model, _words(file, encoding, errors))
    raise UserError(f"a {type(model).__name__.lower()} needs all of its input before it answers: leave out --stream")


def _words(file: BinaryIO, encoding: str, errors: str) -> Iterator[str | None]:
    """Words as they arrive, each when the white space behind it has; None where a line ends."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    rest, ended = "", True
    while True:
        block = _available(file)
        try:
            rest += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise UserError(f"standard input: not {encoding} ({error.reason}); name its --encoding") from error
        *whole, last = rest.split("\n")
        rest = ""
        for line, complete in [*((line, True) for line in whole), (last, False)]:
            words = words_of(line)
            if not complete and block and words and line[-1] not in " \t":
                rest = words.pop()
            yield from words
            ended = (ended and not words) or complete
            if complete:
                yield None
        if not block:
            if not ended:
                yield None
            return


def _available(file: BinaryIO) -> bytes:
    """Some bytes, as soon as there are any; none at the end."""
    read: Callable[[int], bytes] = getattr(file, "read1", file.read)
    return read(CHUNK)


@torch.no_grad()
def _tagged(model: Tagger, words: Iterator[str | None]) -> Iterator[str]:
    state, device = model.start(1), next(model.parameters()).device
    for word in words:
        if word is None:
            state = model.start(1)
            yield ""
            continue
        batch = collate([model.codec.encode(Sentence((word,)), targets=False)])
        tags, state = model.step(batch.to(device), state)
        yield f"{word}\t{tags[0]}"


@torch.no_grad()
def _classified(model: Classifier, words: Iterator[str | None]) -> Iterator[str]:
    state, device = model.start(1), next(model.parameters()).device
    between = ""  # what is read before a word; byte pairs have the space in them
    for word in words:
        if word is None:
            state, between = model.start(1), ""
            yield ""
            continue
        found: dict[str, Any] = {}
        for unit in model.codec.units(between + word):
            batch = collate([Encoded(model.codec.words.encode([unit]), 1, 0)])
            predictions, state = model.step(batch.to(device), state)
            found = predictions[0]
        between = " " if model.codec.kind == "characters" else ""
        if found:
            yield f"{word}\t{found['label']}\t{found['probabilities'][found['label']]:.4f}"


@torch.no_grad()
def _transcribed(model: Transcriber, file: BinaryIO) -> Iterator[str]:
    frames, rest, begun = FrameStream(model.codec.features), b"", False  # says all that is in the way
    state = model.start(1)
    while block := _available(file):
        rest += block
        if not begun and rest.startswith(WAV):
            raise UserError("standard input is a .wav file, not bare samples: name the file, and leave out --stream")
        if not begun and len(rest) < len(WAV):
            continue
        begun = True
        whole = len(rest) // 2 * 2
        features = frames.push(np.frombuffer(rest[:whole], "<i2") / FULL_SCALE)
        rest = rest[whole:]
        symbols, state = model.step(torch.from_numpy(features)[:, None], state)
        yield from symbols[0]
    frames_left = [frames.push(np.frombuffer(rest[: len(rest) // 2 * 2], "<i2") / FULL_SCALE), frames.finish()]
    symbols, state = model.step(torch.from_numpy(np.concatenate(frames_left))[:, None], state)
    yield from symbols[0]
    yield from model.finish(state)[0]


FOLLOWED: dict[type[Any], Callable[..., Iterator[str]]] = {
    Tagger: _tagged,
    Classifier: _classified,
    Transcriber: _transcribed,
}


class FrameStream:
    """The features of :func:`recurra.text.features.log_mel` of a sound that comes in pieces.

    Args:
        settings: of the features; with a rate.

    Raises:
        UserError: what they ask for needs all of the sound: ``normalize``, or joining frames.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        if settings.normalize or settings.stack != 1 or settings.skip != 1:
            raise UserError(
                "this model cannot answer as input arrives: its features are normalised over the whole recording, or"
                " joined; train with --no-bidirectional, --no-normalize, --stack 1 and --skip 1"
            )
        if settings.rate is None:
            raise UserError("the model was trained on features, not on sound: there is no stream of samples for it")
        self.settings = dataclasses.replace(settings, preemphasis=0.0)
        self._rate, self._preemphasis = settings.rate, settings.preemphasis
        self._window = max(1, round(settings.window * self._rate / 1000))
        self._hop = max(1, round(settings.hop * self._rate / 1000))
        self._waiting = np.zeros(0)
        self._skipped = 0  # samples yet to come that no frame reads, where frames are further apart than long
        self._last: float | None = None
        self._frameless = True  # whether there was no frame yet

    def push(self, samples: np.ndarray[Any, np.dtype[np.float64]]) -> Features:
        """The frames ``[frames, mels]``, none or more, that are whole with these samples ``[time]``."""
        if not len(samples):
            return np.zeros((0, self.settings.mels), np.float32)
        before = np.append(samples[0] if self._last is None else self._last, samples[:-1])
        self._last = float(samples[-1])
        emphasised = samples - self._preemphasis * before
        self._waiting = np.append(self._waiting, emphasised[self._skipped :])
        self._skipped = max(0, self._skipped - len(emphasised))
        frames = max(0, (len(self._waiting) - self._window) // self._hop + 1)
        if not frames:
            return np.zeros((0, self.settings.mels), np.float32)
        used, self._waiting = self._waiting, self._waiting[frames * self._hop :]
        self._skipped, self._frameless = max(0, frames * self._hop - len(used)), False
        return log_mel(used[: (frames - 1) * self._hop + self._window], self._rate, self.settings)

    def finish(self) -> Features:
        """The frame of a sound that was shorter than one, else none: ``[1 or 0, mels]``."""
        if self._frameless and len(self._waiting):
            self._frameless = False
            return log_mel(self._waiting, self._rate, self.settings)
        return np.zeros((0, self.settings.mels), np.float32)

"""Sounds and handwriting become sequences of feature vectors, [time, features]."""

from __future__ import annotations

import functools
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from recurra.config import UserError, setting

Features: TypeAlias = NDArray[np.float32]
Samples: TypeAlias = NDArray[np.floating[Any]]

# Power below which a sound is silence. Rounding to 16 bits is noise of variance 2^-30 / 12, which under a window of 200
# to 400 samples, and summed by a filter, has a power of 1e-8 to 1e-7. A lower floor would tell silence that is nothing
# but zeros from silence whose last bits flicker, by so much that it shifted and scaled all frames of a recording.
FLOOR = 1e-7
SMALLEST_DEVIATION = 1e-5  # what varies less is taken for constant
ZERO_CROSSINGS = 16  # of the resampling filter, on either side
STROKE_STEP = 0.05
STROKE_FEATURES = ("x", "y", "dx", "dy", "pen up")

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_DRAWING = re.compile(r"(?:.*/)?([^/]+)/([^/]+)/[0-9]+_([0-9]+)\.txt\Z")


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How recordings become features."""

    rate: int | None = setting(None, "samples a second; those of the first recording by default", minimum=1)
    resample: bool = setting(False, "convert recordings of another rate")
    mix_down: bool = setting(False, "take the mean of several channels")
    mels: int = setting(40, "filters of the mel filterbank", minimum=1)
    window: float = setting(25.0, "length of a frame in milliseconds", minimum=0.1)
    hop: float = setting(10.0, "milliseconds from one frame to the next", minimum=0.1)
    preemphasis: float = setting(
        0.97, "how much of the sample before is taken off each, against low tones", minimum=0, maximum=1
    )
    normalize: bool = setting(True, "shift and scale each feature of a recording to mean 0 and variance 1")
    stack: int = setting(1, "frames that are joined to one feature vector", minimum=1)
    skip: int = setting(1, "keep the first of so many frames", minimum=1)

    @property
    def size(self) -> int:
        """Features of a vector that :func:`log_mel` makes."""
        return self.mels * self.stack


def read_features(path: str | Path, settings: FeatureSettings) -> Features:
    """Return the features of a recording, [time, features].

    Of a .wav by :func:`log_mel`, of a .npy what is in it, of pen strokes in a .txt by :func:`strokes`, their lines as
    :func:`read_drawings` has them.

    Raises:
        UserError: the file is not there, not of its format, of another rate or of several channels, empty, or holds
            what is no finite number.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return load_array(path)
    return read_strokes(path) if suffix == ".txt" else log_mel(path, None, settings)


def load_array(path: str | Path) -> Features:
    """Return the array [time, features] of a .npy file; nothing that is pickled is read.

    Raises:
        UserError: the file cannot be read, is no such array, is empty, or holds what is no finite number.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not an array of numbers in .npy format: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: expected one array of real numbers, got {getattr(array, 'dtype', 'several arrays')}")
    if array.ndim != 2 or not array.size:
        raise UserError(f"{path}: expected an array [time, features], got shape {list(array.shape)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        features: Features = array.astype(np.float32)
    _check_finite(features, str(path))
    return features


# ---- sound ----------------------------------------------------------------------------------------------------------


def log_mel(sound: str | Path | Samples, rate: int | None, settings: FeatureSettings) -> Features:
    """Return log-mel filterbank features, [frames, mels], or [frames / skip, mels * stack].

    A frame is `window` ms of sound under a Hann window; its power spectrum is summed up by triangles that are equally
    wide on the mel scale, 2595 log10(1 + f / 700), from 0 Hz to half the rate (Davis and Mermelstein 1980); features
    are natural logarithms of that. Frames lie wholly inside the sound, which zeros fill up if it is shorter than one.

    Args:
        sound: A .wav file, or samples between -1 and 1, [time] or [time, channels].
        rate: Samples a second of samples; None for a file, which says so itself.
        settings: How; a `rate` of None is that of the sound.

    Raises:
        UserError: the file is not there or no .wav; of another rate without `resample`; of several channels without
            `mix_down`; empty; or holds what is no finite number; more `mels` than the window can tell apart.
    """
    if isinstance(sound, str | Path):
        name = str(sound)
        samples, rate = read_wav(sound)
    else:
        name = "samples"
        samples = np.asarray(sound, np.float64)
    assert rate is not None, "samples need their rate"
    samples = _one_channel(samples, name, settings)
    _check_finite(samples, name)
    wanted = settings.rate or rate
    if rate != wanted:
        if not settings.resample:
            raise UserError(f"{name}: expected {wanted} samples a second, got {rate}; convert it, or give --resample")
        samples = resample(samples, rate, wanted)
    window = max(1, round(settings.window * wanted / 1000))
    hop = max(1, round(settings.hop * wanted / 1000))
    samples = samples - settings.preemphasis * np.concatenate([samples[:1], samples[:-1]])
    samples = np.pad(samples, (0, max(0, window - len(samples))))
    frames = sliding_window_view(samples, window)[::hop]
    bins = 1 << (window - 1).bit_length()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = np.abs(np.fft.rfft(frames * hann, bins)) ** 2
    features = np.log(np.maximum(power @ mel_filters(settings.mels, bins, wanted).T, FLOOR))
    if settings.normalize:
        features = features - features.mean(axis=0)
        features /= np.maximum(features.std(axis=0), SMALLEST_DEVIATION)
    return stacked(features.astype(np.float32), settings.stack, settings.skip)


@functools.lru_cache(maxsize=8)
def mel_filters(mels: int, bins: int, rate: int) -> NDArray[np.float64]:
    """Return triangular filters over the power spectrum of `bins` samples, [mels, bins / 2 + 1], 1 at their tips.

    Raises:
        UserError: a filter lies between two lines of the spectrum.
    """
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + rate / 1400), mels + 2) / 2595) - 1)  # Hz
    low, tip, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    lines = np.arange(bins // 2 + 1) * rate / bins
    filters: NDArray[np.float64] = np.maximum(0, np.minimum((lines - low) / (tip - low), (high - lines) / (high - tip)))
    if not filters.any(axis=1).all():
        raise UserError(f"{mels} mel filters are too many for {bins} samples at {rate} a second; take fewer")
    filters.flags.writeable = False
    return filters


def stacked(features: Features, stack: int, skip: int) -> Features:
    """Join each frame with the `stack` - 1 after it, and keep the first of `skip`: [time / skip, features * stack].

    The time is rounded up, and after the end, the last frame is repeated.
    """
    if stack == skip == 1:
        return features
    first = np.arange(0, len(features), skip)
    frames = np.minimum(first[:, None] + np.arange(stack), len(features) - 1)
    joined: Features = features[frames].reshape(len(first), -1)
    return joined


def resample(samples: Samples, rate: int, new_rate: int) -> NDArray[np.float64]:
    """Return samples [time] at another rate, [ceil(time * new_rate / rate)].

    The filter is a sinc under a Hann window, symmetric, hence of linear phase, that passes what both rates can hold
    (Smith, "Digital Audio Resampling"); outside the samples there is silence.
    """
    divisor = math.gcd(rate, new_rate)
    down, up = rate // divisor, new_rate // divisor
    cutoff = 0.95 * min(1.0, up / down)  # of half the old rate; the rest is for the filter's slope
    reach = ZERO_CROSSINGS / cutoff
    half = math.ceil(reach)
    padded = np.pad(np.asarray(samples, np.float64), (half, half + down))
    result = np.empty(-(-len(samples) * up // down))
    # outputs n, n + up, n + 2 up, ... lie at the same place between two samples, and share their taps
    for phase in range(min(up, len(result))):
        whole, part = divmod(phase * down, up)
        distance = np.arange(-half, half + 1) - part / up
        taps = (
            cutoff
            * np.sinc(cutoff * distance)
            * np.where(np.abs(distance) < reach, 0.5 + 0.5 * np.cos(np.pi * distance / reach), 0)
        )
        count = len(result[phase::up])
        result[phase::up] = sliding_window_view(padded, 2 * half + 1)[whole::down][:count] @ taps
    return result


def read_wav(path: str | Path) -> tuple[NDArray[np.float64], int]:
    """Return a .wav file's samples between -1 and 1, [time, channels], and how many there are a second.

    It may hold PCM of 8, 16, 24 or 32 bits, or floating-point numbers of 32 or 64.

    Raises:
        UserError: the file cannot be read, is no .wav, is compressed, or ends before its time.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise UserError(f"{path}: not a .wav file: it does not begin with RIFF and WAVE")
    form: bytes | None = None
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        chunk = content[position + 8 : position + 8 + size]
        if name == b"data":
            # programs that write into a pipe cannot know the size, and say the largest there is
            if len(chunk) < size and size < 0xFFFFFF00:
                raise UserError(f"{path}: cut off: expected {size} bytes of sound, got {len(chunk)}")
            if form is None:
                break
            return _samples(chunk, form, str(path))
        if name == b"fmt ":
            form = chunk
        position += 8 + size + size % 2
    raise UserError(f"{path}: not a whole .wav file: no {'sound' if form else 'format'} in it")


def _samples(data: bytes, form: bytes, name: str) -> tuple[NDArray[np.float64], int]:
    """Decode the bytes of a data chunk as its format chunk says."""
    if len(form) < 16:
        raise UserError(f"{name}: not a whole .wav file: its format has {len(form)} bytes")
    code, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if code == _EXTENSIBLE and len(form) >= 26:
        (code,) = struct.unpack_from("<H", form, 24)
    if (code, bits) not in [(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)]:
        raise UserError(
            f"{name}: expected PCM of 8, 16, 24 or 32 bits or floating point, got format {code} of {bits} bits;"
            " convert it, e.g. ffmpeg -i FILE -c:a pcm_s16le NEW.wav"
        )
    if not channels or not rate or block != channels * bits // 8:
        raise UserError(f"{name}: not a .wav file: {channels} channels, {rate} samples a second, {block} bytes each")
    data = data[: len(data) // block * block]
    if code == _FLOAT:
        samples = np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    elif bits == 8:  # the only one without a sign
        samples = (np.frombuffer(data, np.uint8) - 128.0) / 128
    elif bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)  # the sign is the topmost bit of 32, then
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4")[:, 0] / 2.0**31
    else:
        samples = np.frombuffer(data, f"<i{bits // 8}") / 2.0 ** (bits - 1)
    return samples.reshape(-1, channels), rate


def _one_channel(samples: NDArray[np.float64], name: str, settings: FeatureSettings) -> NDArray[np.float64]:
    if samples.ndim not in (1, 2) or not samples.size:
        raise UserError(f"{name}: expected a sound, got shape {list(samples.shape)}; is it empty?")
    if samples.ndim == 1:
        return samples
    if samples.shape[1] > 1 and not settings.mix_down:
        raise UserError(f"{name}: expected one channel, got {samples.shape[1]}; convert it, or give --mix-down")
    mean: NDArray[np.float64] = samples.mean(axis=1)
    return mean


def _check_finite(array: NDArray[Any], name: str) -> None:
    if not np.isfinite(array).all():
        at = ", ".join(str(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise UserError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]} at [{at}]")


# ---- handwriting ----------------------------------------------------------------------------------------------------


class Drawing(NamedTuple):
    """A character that somebody drew.

    Attributes:
        alphabet: Name of the alphabet.
        character: Name of the character in it.
        drawer: Number of the person.
        features: Of :func:`strokes`, [points, 5].
    """

    alphabet: str
    character: str
    drawer: int
    features: Features


def strokes(lines: Sequence[NDArray[Any]], step: float = STROKE_STEP, name: str = "strokes") -> Features:
    """Return a drawing's features, [points, 5]: x, y, dx, dy, and whether the pen was up on the way there.

    The drawing is shifted and scaled so that its bounding box is centred on 0 and its longer side is 1. Points follow
    each other at equal distances along each line, the one nearest `step` that fits it a whole number of times. dx and
    dy are the unit vector from the point before; at the first point, and where that is the same, they are 0.

    Args:
        lines: The lines drawn without lifting the pen, in their order, [points, 2 or more]: x, y, and what else there
            is, such as the time, which does not matter.
        step: Distance of points, in longer sides of the bounding box.
        name: What messages call the drawing.

    Raises:
        UserError: no line, a line without points, x and y, or with what is no finite number.
    """
    arrays = [np.asarray(line, np.float64) for line in lines]
    if not arrays:
        raise UserError(f"{name}: expected a drawing, got no line")
    for index, line in enumerate(arrays, start=1):
        if line.ndim != 2 or line.shape[1] < 2 or not len(line):
            raise UserError(f"{name}, line {index}: expected points with x and y, got shape {list(line.shape)}")
        _check_finite(line[:, :2], f"{name}, line {index}")
    corners = np.concatenate([line[:, :2] for line in arrays])
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = (high - low).max() or 1.0  # a dot has no size
    even = [_evenly_spaced((line[:, :2] - (low + high) / 2) / scale, step) for line in arrays]
    points = np.concatenate(even)
    ways = np.diff(points, axis=0, prepend=points[:1])
    lengths = np.linalg.norm(ways, axis=1, keepdims=True)
    directions = np.divide(ways, lengths, out=np.zeros_like(ways), where=lengths > 0)
    pen_up = np.zeros((len(points), 1))
    pen_up[np.cumsum([0] + [len(line) for line in even[:-1]])] = 1
    return np.concatenate([points, directions, pen_up], axis=1).astype(np.float32)


def read_strokes(path: str | Path, step: float = STROKE_STEP) -> Features:
    """Read one drawing, lines ``x,y,time`` with a ``BREAK`` after each stroke, as :func:`strokes` makes features of it.

    Raises:
        UserError: no such file, a line of another form, or no stroke.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    return strokes(_omniglot_lines(text, str(path)), step, str(path))


def read_drawings(path: str | Path, step: float = STROKE_STEP) -> Iterator[Drawing]:
    """Read drawings from a .zip of Omniglot's strokes (Lake et al. 2015), sorted by alphabet, character and drawer.

    In it, ``ALPHABET/CHARACTER/NUMBER_DRAWER.txt`` has lines ``x,y,time`` between ``START`` and ``BREAK``, and a
    ``BREAK`` after each stroke.

    Raises:
        UserError: while reading: no .zip, a line that is not of that form, no drawing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            matches = [match for name in archive.namelist() if (match := _DRAWING.match(name))]
            matches = [match for match in matches if not match[0].startswith("__MACOSX/")]
            if not matches:
                raise UserError(f"{path}: expected drawings named ALPHABET/CHARACTER/NUMBER_DRAWER.txt, got none")
            for match in sorted(matches, key=lambda match: (match[1], match[2], int(match[3]))):
                name = f"{path}: {match[0]}"
                lines = _omniglot_lines(archive.read(match[0]).decode("utf-8", "replace"), name)
                yield Drawing(match[1], match[2], int(match[3]), strokes(lines, step, name))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: not a .zip file: {error}") from error


def _evenly_spaced(line: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    if not along[-1]:
        return line[:1]
    places = np.linspace(0, along[-1], max(1, round(along[-1] / step)) + 1)
    return np.stack([np.interp(places, along, line[:, axis]) for axis in (0, 1)], axis=1)


def _omniglot_lines(text: str, name: str) -> list[NDArray[np.float64]]:
    lines: list[list[list[float]]] = [[]]
    for number, row in enumerate(map(str.strip, text.split("\n")), start=1):
        if row in ("", "START"):
            continue
        if row == "BREAK":
            lines.append([])
            continue
        try:
            x, y, _ = map(float, row.split(","))
        except ValueError:
            raise UserError(f"{name}, line {number}: expected `x,y,time`, START or BREAK, got {row[:40]!r}") from None
        lines[-1].append([x, y])
    return [np.array(line) for line in lines if line]

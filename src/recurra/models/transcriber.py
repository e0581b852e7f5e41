"""Transcribers: sequences of feature vectors, sounds or handwriting, become text without an alignment between the two.

An encoder reads the frames, by default in both directions, after a few of them were made one if asked for. From each of
its states follow the scores of all symbols, and of the blank of connectionist temporal classification (Graves et al.
2006; for handwriting, Graves and Schmidhuber 2009).

Letters in shapes: T frames, N recordings, D features of a frame, U symbols of a transcript.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError, from_mapping, setting, to_mapping
from recurra.models.task import Codec, TaskModel
from recurra.nn.ctc import BLANK, ctc_loss, greedy, prefix_beam_search
from recurra.nn.encoder import Encoder, EncoderSettings, settle_encoder
from recurra.nn.pooling import valid_steps
from recurra.text.examples import Encoded, ExampleBatch
from recurra.text.features import SMALLEST_DEVIATION, Features, FeatureSettings, read_features, read_wav
from recurra.text.readers import Recording
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["Transcriber", "TranscriberCodec", "TranscriberSettings"]

SPACE = " "
WORDS_KEPT = 100_000  # beginnings of words, of which a search asks again and again
SKIPPED = -1  # frames needed by a transcript that is not learnt from
REDUCTIONS = (3, 2, 1)  # that are chosen from
FRAMES_PER_SYMBOL = 2  # that a reduction should leave
FITTING_SHARE = 0.99  # of the recordings that it should leave them: one odd transcript decides nothing
LONGEST_SHARE = 0.2  # of a recording that a time mask covers, at most (Park et al. 2019, section 2: p)
WIDEST_SHARE = 0.25  # of the features that a frequency mask covers, at most
# By --augment; neighbouring features are a band in sound only.
AUGMENTED = {"time_masks": 2, "frequency_masks": 2, "speed": 0.1, "noise": 0.1}


@dataclass(frozen=True, kw_only=True)
class TranscriberSettings(EncoderSettings, FeatureSettings):
    """What a transcriber is made of, and how it hears; ``None`` is settled from the data before the model is built."""

    hidden_size: int | tuple[int, ...] = setting(128, "units of a layer and direction, or of each layer", minimum=1)
    layers: int = setting(2, "layers of the stack", minimum=1)
    dropout: float = setting(
        0.1, "locked dropout between layers; in self-attention, dropout of weights and results", minimum=0, maximum=0.99
    )
    output_dropout: float = setting(0.1, "locked dropout on the encoder's states", minimum=0, maximum=0.99)
    units: str = setting("characters", "what transcripts are made of", choices=("characters", "words"))
    reduction: int | None = setting(
        None,
        f"frames that become one; auto is up to {REDUCTIONS[0]}, with {FRAMES_PER_SYMBOL} left for nearly all symbols",
        minimum=1,
    )
    reduce_by: str = setting(
        "stack", "joining them, or a convolution that sees as many before them", choices=("stack", "convolution")
    )
    skip_impossible: bool = setting(
        False, "leave out recordings with more symbols than frames, rather than refuse them"
    )
    augment: bool = setting(False, "vary recordings in training, for small data: turns on what is left at auto")
    time_masks: int | None = setting(None, "stretches of each recording that are hidden in training", minimum=0)
    time_mask: int = setting(20, "longest of them, in frames", minimum=1)
    frequency_masks: int | None = setting(
        None, "bands of neighbouring features that are hidden in training; --augment hides none but of sound", minimum=0
    )
    frequency_mask: int = setting(8, "widest of them, in features; a quarter of all at most", minimum=1)
    speed: float | None = setting(None, "largest change of speed in training, 0.1 for 10%", minimum=0, maximum=0.9)
    noise: float | None = setting(None, "noise in training, in standard deviations of each feature", minimum=0)


class TranscriberCodec(Codec[Recording]):
    """Symbols of transcripts, and how recordings become features.

    Args:
        symbols: of transcripts; their numbers begin with 1, after the blank.
        units: ``characters`` or ``words``.
        features: how recordings are read.
        mean: of each feature over all frames of the training recordings, ``[D]``.
        deviation: the standard deviation, likewise.
        reduction: frames that become one.
        skip_impossible: whether transcripts that do not fit into their frames are left out.

    Attributes:
        skipped: how many such transcripts there were in what was encoded so far.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        units: str,
        features: FeatureSettings,
        *,
        mean: Sequence[float],
        deviation: Sequence[float],
        reduction: int,
        skip_impossible: bool,
    ) -> None:
        self.symbols, self.units, self.features = list(symbols), units, features
        self.mean, self.deviation = list(mean), list(deviation)
        self.reduction, self.skip_impossible, self.skipped = reduction, skip_impossible, 0
        self._ids = {symbol: number for number, symbol in enumerate(self.symbols, start=BLANK + 1)}
        self._kept: dict[Path, Features] = {}  # what was read already

    @property
    def size(self) -> int:
        """D."""
        return len(self.mean)

    @classmethod
    def build(cls, examples: Sequence[Recording], settings: TranscriberSettings) -> Self:
        """As in :class:`~recurra.models.task.Codec`; reads all recordings.

        Raises:
            UserError: no recording, no transcript, or a recording that cannot be read or has other features.
        """
        if not examples:
            raise UserError("expected recordings with transcripts to learn from, got none")
        features = _feature_settings(examples, settings)
        kept: dict[Path, Features] = {}
        total: Any = 0.0
        squares: Any = 0.0
        frames = 0
        for example in examples:
            own = kept[example.path] = read_features(example.path, features)
            first = kept[examples[0].path]
            _check_size(own, first.shape[1], example, f"as {examples[0].path} has")
            precise = own.astype(np.float64)
            total, squares, frames = total + precise.sum(0), squares + (precise**2).sum(0), frames + len(own)
        mean = total / frames
        deviation = np.sqrt(np.maximum(squares / frames - mean**2, 0))
        deviation[deviation < SMALLEST_DEVIATION] = 1  # constant: it stays at 0
        transcripts = [_cut(_transcript(example), settings.units) for example in examples]
        counts = Counter(symbol for symbols in transcripts for symbol in symbols)
        if not counts:
            raise UserError("expected transcripts to learn from, got only empty ones")
        symbols = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        reduction = settings.reduction
        if reduction is None:
            pairs = [(len(kept[one.path]), _needed(own)) for one, own in zip(examples, transcripts, strict=True)]
            reduction = _reduction(pairs, settings.skip_impossible)
        codec = cls(
            symbols,
            settings.units,
            features,
            mean=mean.tolist(),
            deviation=deviation.tolist(),
            reduction=reduction,
            skip_impossible=settings.skip_impossible,
        )
        codec._kept = kept
        return codec

    def encode(self, example: Recording, *, targets: bool = True) -> Encoded:
        """Turn a recording into arrays: float32 ``features [time, D]`` as they were read.

        With targets, also int64 ``symbols [U]``, without those that training had not, and ``needed``, how many frames
        they need after reduction: one each, and one between equal ones.

        Raises:
            UserError: a recording that cannot be read, has other features, or a transcript that it is too short for.
        """
        features = self._kept.pop(example.path, None)
        if features is None:
            features = read_features(example.path, self.features)
        _check_size(features, self.size, example, "as in training")
        arrays: dict[str, Any] = {"features": features}
        if not targets:
            return Encoded(arrays, len(features), 0)
        symbols = [symbol for symbol in _cut(_transcript(example), self.units) if symbol in self._ids]
        needed, frames = _needed(symbols), -(-len(features) // self.reduction)
        if needed > frames:
            if not self.skip_impossible:
                left = f", {frames} once {self.reduction} are one" if self.reduction > 1 else ""
                raise UserError(
                    f"{example.path}: its transcript needs {needed} frames, and it has {len(features)}{left}; correct"
                    f" it, lower --reduction, or give --skip-impossible"
                )
            self.skipped += 1
            symbols, needed = [], SKIPPED
        arrays["symbols"] = np.array([self._ids[symbol] for symbol in symbols], np.int64)
        arrays["needed"] = np.array(needed)
        return Encoded(arrays, len(features), 0 if needed == SKIPPED else max(1, len(symbols)))

    def summary(self) -> str:
        """How many frames become one, and how many transcripts did not fit into theirs."""
        skipped = f"; {self.skipped:,} with more symbols than frames are left out" if self.skipped else ""
        return f"recordings: {self.reduction} of their frames become one{skipped}"

    def decode(self, symbols: Sequence[int]) -> str:
        """The text that symbols, by number, stand for, with single spaces between words."""
        joint = "" if self.units == "characters" else SPACE
        return SPACE.join(joint.join(self.symbols[number - BLANK - 1] for number in symbols).split())

    def symbol(self, text: str) -> int | None:
        """The number of a symbol; None where it is none."""
        return self._ids.get(text)

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "symbols": self.symbols,
            "units": self.units,
            "features": to_mapping(self.features),
            "mean": self.mean,
            "deviation": self.deviation,
            "reduction": self.reduction,
            "skip_impossible": self.skip_impossible,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        features = from_mapping(FeatureSettings, mapping["features"], "codec")
        numbers = {name: mapping[name] for name in ("mean", "deviation", "reduction", "skip_impossible")}
        return cls(mapping["symbols"], mapping["units"], features, **numbers)


def _feature_settings(examples: Sequence[Recording], settings: TranscriberSettings) -> FeatureSettings:
    """How recordings are read; the rate is that of the first sound."""
    own = FeatureSettings(
        **{field.name: getattr(settings, field.name) for field in dataclasses.fields(FeatureSettings)}
    )
    sounds = [example.path for example in examples if example.path.suffix.lower() != ".npy"]
    return replace(own, rate=read_wav(sounds[0])[1]) if own.rate is None and sounds else own


def _reduction(pairs: Sequence[tuple[int, int]], skip_impossible: bool) -> int:
    """How many frames may become one; from the frames that each recording has, and those that its symbols need.

    None that fits as it is becomes impossible by a reduction that nobody asked for, unless those are skipped.
    """
    for reduction in REDUCTIONS:
        frames = [(-(-have // reduction), have, need) for have, need in pairs]
        well = sum(left >= FRAMES_PER_SYMBOL * need for left, _, need in frames)
        lost = not skip_impossible and any(left < need <= have for left, have, need in frames)
        if well >= FITTING_SHARE * len(pairs) and not lost:
            return reduction
    return 1


def _check_size(features: Features, size: int, example: Recording, why: str) -> None:
    if features.shape[1] != size:
        raise UserError(f"{example.path}: expected {size} features a frame, {why}, got {features.shape[1]}")


def _transcript(example: Recording) -> str:
    if example.transcript is None:
        raise UserError(f"{example.path}: expected a transcript to learn from, got none")
    return example.transcript


def _cut(transcript: str, units: str) -> list[str]:
    """Its symbols; white space is one space between words."""
    words = transcript.split()
    return words if units == "words" else list(SPACE.join(words))


def _needed(symbols: Sequence[str]) -> int:
    """Frames that symbols need: one each, and one for the blank between equal ones."""
    return len(symbols) + sum(a == b for a, b in itertools.pairwise(symbols))


# ---- the network ----------------------------------------------------------------------------------------------------


class _Heard(NamedTuple):
    """What was heard of recordings that are heard as they are made."""

    frames: Tensor  # that wait for those they become one with, normalised, [less than the reduction, N, D]
    before: Tensor  # the last frames that became one, [N, reduction * D]
    encoder: Any  # its state
    last: Tensor  # symbol of the last path's step, [N]


class Transcriber(TaskModel):
    """A network that writes down what it hears or sees.

    A prediction is ``{"text": transcript, "log_prob": p}``, p being the natural log-probability of the likeliest path
    with a beam of 1, else that of the text, of all paths that the beam kept. Of a recording without a frame, the text
    is empty.

    Args:
        settings: with nothing left to choose.
        codec: of the training recordings.
    """

    codec_type: ClassVar[type[Codec[Any]]] = TranscriberCodec
    settings: TranscriberSettings
    codec: TranscriberCodec
    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: TranscriberSettings, codec: TranscriberCodec) -> None:
        super().__init__(settings, codec)
        self.register_buffer("mean", torch.tensor(codec.mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(codec.deviation), persistent=False)
        self.reduction = codec.reduction
        size = self.reduction * codec.size
        self.convolution: nn.Linear | None = None
        if settings.reduce_by == "convolution":
            width = max(codec.size, settings.hidden_size if isinstance(settings.hidden_size, int) else 0)
            self.convolution = nn.Linear(2 * size, width)
            size = width
        self.encoder = Encoder(settings, size)
        self.output = nn.Linear(self.encoder.output_size, 1 + len(codec.symbols))

    @classmethod
    def settle(
        cls, settings: TranscriberSettings, examples: Sequence[Recording], codec: TranscriberCodec
    ) -> TranscriberSettings:
        """Take reduction and rate from the codec, and what ``augment`` stands for."""
        wanted = AUGMENTED if settings.augment else {}
        if codec.features.rate is None:
            wanted = wanted | {"frequency_masks": 0}
        varied: dict[str, Any] = {name: wanted.get(name, 0) for name in AUGMENTED if getattr(settings, name) is None}
        return replace(settle_encoder(settings), reduction=codec.reduction, rate=codec.features.rate, **varied)

    def loss(self, batch: ExampleBatch) -> Tensor:
        """Summed -log p of the transcripts."""
        features, lengths = batch.arrays["features"], batch.lengths["features"]
        symbols, sizes, needed = batch.arrays["symbols"], batch.lengths["symbols"], batch.arrays["needed"]
        kept = (needed != SKIPPED).nonzero()[:, 0]
        if len(kept) < batch.size:
            here = kept.cpu()
            features, lengths = features[:, kept], lengths[here]
            symbols, sizes, needed = symbols[:, kept], sizes[here], needed[kept]
        if not len(kept) or not len(features):
            return self.output.bias.sum() * 0
        frames = self._normalised(features, lengths)
        if self.training:
            frames, lengths = self._varied(frames, lengths, needed)
        log_probs, lengths = self._log_probs(frames, lengths)
        return ctc_loss(log_probs, symbols, lengths, sizes)

    def predict(
        self,
        batch: ExampleBatch,
        *,
        beam: int = 1,
        n_best: int = 1,
        language_model: Any = None,
        lm_weight: float = 0.5,
        word_bonus: float = 0.0,
    ) -> list[Any]:
        """As in :class:`~recurra.models.task.TaskModel`.

        Args:
            batch: encoded without targets.
            beam: beginnings of a transcript that are kept; 1 is what the likeliest path stands for.
            n_best: with more than 1, each prediction also has ``"alternatives"``, that many transcripts, the best
                first, each with ``"text"``, ``"log_prob"``, ``"language_model"``, the log-probability by the language
                model, and ``"score"``, what they are ranked by.
            language_model: a :class:`recurra.LanguageModel` of characters or words, which is asked how likely each
                transcript is; see :func:`recurra.nn.ctc.prefix_beam_search`.
            lm_weight: what its log-probabilities are multiplied by.
            word_bonus: added for each word, as longer transcripts are less likely; without a language model of words,
                for each symbol.

        Raises:
            UserError: a language model whose tokens do not fit the symbols; a beam below 1, or below ``n_best``.
        """
        if beam < 1:
            raise UserError(f"beam: expected at least 1, got {beam}")
        if not 1 <= n_best <= beam:
            raise UserError(f"n_best: expected 1 to {beam}, the size of the beam, got {n_best}")
        fitted = self._fitted(language_model)
        lengths = batch.lengths["features"]
        log_probs, lengths = self._log_probs(self._normalised(batch.arrays["features"], lengths), lengths)
        if beam == 1 and language_model is None and not word_bonus:
            there = valid_steps(lengths, len(log_probs)).to(log_probs.device)
            shares = log_probs.amax(-1).masked_fill(~there, 0.0).double().sum(0).tolist()
            texts = [self.codec.decode(symbols) for symbols in greedy(log_probs, lengths)]
            return [{"text": text, "log_prob": share} for text, share in zip(texts, shares, strict=True)]
        predictions = []
        for column, length in enumerate(lengths.tolist()):
            found = prefix_beam_search(
                log_probs[:length, column], beam, **fitted, lm_weight=lm_weight, word_bonus=word_bonus
            )
            different: dict[str, dict[str, Any]] = {}
            for one in found:
                text = self.codec.decode(one.symbols)
                if text in different:  # it is there with other spaces
                    more = float(np.logaddexp(different[text]["log_prob"], one.ctc)) - different[text]["log_prob"]
                    different[text]["log_prob"] += more
                    different[text]["score"] += more
                    continue
                scores = {"log_prob": one.ctc, "language_model": one.language_model, "score": one.score}
                different[text] = {"text": text, **scores}
            listed = sorted(different.values(), key=lambda one: -one["score"])[:n_best]
            prediction: dict[str, Any] = {"text": listed[0]["text"], "log_prob": listed[0]["log_prob"]}
            predictions.append(prediction | ({"alternatives": listed} if n_best > 1 else {}))
        return predictions

    # ---- as it is heard -------------------------------------------------------------------------------------------

    def start(self, batch_size: int) -> _Heard:
        """Return the state of recordings of which nothing has been heard.

        Raises:
            UserError: the encoder needs what comes later.
        """
        state, nothing = self.encoder.start(batch_size), self.mean.new_zeros(0, batch_size, self.codec.size)
        before = self.mean.new_zeros(batch_size, self.reduction * self.codec.size)
        last = torch.full((batch_size,), BLANK, device=before.device)
        return _Heard(nothing, before, state, last)

    @torch.no_grad()
    def step(self, features: Tensor, state: _Heard) -> tuple[list[list[str]], _Heard]:
        """Hear some more frames of every recording; at the end, :meth:`finish`.

        Args:
            features: ``[T, N, D]``, as they are read from a file: not yet normalised. T may be any number.
            state: what was heard before.

        Returns:
            The symbols that were said in them, a list for each recording: what greedy decoding makes of the likeliest
            path; and the new state.
        """
        frames = torch.cat((state.frames, (features.to(self.mean) - self.mean) / self.deviation))
        whole = len(frames) // self.reduction * self.reduction
        return self._hear(frames[:whole], state._replace(frames=frames[whole:]))

    @torch.no_grad()
    def finish(self, state: _Heard) -> list[list[str]]:
        """Return what is said in the frames that waited for others."""
        missing = -len(state.frames) % self.reduction
        symbols, _ = self._hear(F.pad(state.frames, (0, 0, 0, 0, 0, missing)), state)
        return symbols

    def _hear(self, frames: Tensor, state: _Heard) -> tuple[list[list[str]], _Heard]:
        said: list[list[str]] = [[] for _ in range(len(state.last))]
        if not len(frames):
            return said, state
        vectors, before = self._reduced(frames, state.before)
        encoder, last = state.encoder, state.last
        for vector in vectors:
            found, encoder = self.encoder.step(vector, encoder)
            symbols = self.output(found).argmax(-1)
            for row in ((symbols != BLANK) & (symbols != last)).nonzero()[:, 0].tolist():
                said[row].append(self.codec.symbols[int(symbols[row]) - BLANK - 1])
            last = symbols
        return said, _Heard(state.frames, before, encoder, last)

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _normalised(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Features of mean 0 and deviation 1, ``[T, N, D]``; zeros in padding, which may be joined to last frames."""
        there = valid_steps(lengths.to(features.device), len(features))[..., None]
        return ((features.to(self.mean) - self.mean) / self.deviation).masked_fill(~there, 0.0)

    def _log_probs(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of blank and symbols ``[T, N, 1 + symbols]`` of reduced frames; how many there are."""
        if not len(frames):
            return frames.new_zeros(0, frames.shape[1], self.output.out_features), lengths
        frames = F.pad(frames, (0, 0, 0, 0, 0, -len(frames) % self.reduction))
        vectors, _ = self._reduced(frames, frames.new_zeros(frames.shape[1], self.reduction * frames.shape[2]))
        lengths = (lengths + self.reduction - 1) // self.reduction
        states, _ = self.encoder(vectors, lengths)
        return self.output(states).log_softmax(-1), lengths

    def _reduced(self, frames: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Each ``reduction`` frames become one; also returns the last of them joined, ``[N, reduction * D]``.

        A convolution with a kernel of twice the reduction and a stride of one: it needs nothing that comes later.
        """
        _, batch, size = frames.shape
        joined = frames.view(-1, self.reduction, batch, size).transpose(1, 2).reshape(-1, batch, self.reduction * size)
        if self.convolution is None:
            return joined, joined[-1]
        earlier = torch.cat((before[None], joined[:-1]))
        return F.relu(self.convolution(torch.cat((earlier, joined), 2))), joined[-1]

    def _varied(self, frames: Tensor, lengths: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
        """Recordings as they might be: at another speed, noisy, with parts hidden (SpecAugment: Park et al. 2019).

        A band is hidden in all frames that were joined. A stretch of time is one of joined frames: what they have in
        common with the frame before and after it stays to be seen, which is little beside the rest of the stretch.

        Args:
            frames: normalised, ``[T, N, D]``.
            lengths: of each recording, ``[N]``.
            needed: frames that each must keep after reduction, ``[N]``.
        """
        chosen, device, (_, batch, size) = self.settings, frames.device, frames.shape
        ends = lengths.to(device)
        if chosen.speed:
            fewest = torch.minimum(needed * self.reduction, ends)
            factors = 1 + chosen.speed * (2 * torch.rand(batch, device=device) - 1)
            news = torch.maximum((ends / factors).round().long(), fewest).clamp(min=1)
            news = torch.where(ends > 0, news, 0)
            steps = torch.arange(int(news.max()), device=device)[:, None]
            places = steps * (ends - 1).clamp(min=0) / (news - 1).clamp(min=1)
            first = torch.minimum(places.long(), (ends - 1).clamp(min=0))
            second = torch.minimum(first + 1, (ends - 1).clamp(min=0))
            columns = torch.arange(batch, device=device)
            share = (places - first).to(frames.dtype)[..., None]
            frames = frames[first, columns] * (1 - share) + frames[second, columns] * share
            ends = news
        if chosen.noise:
            frames = frames + chosen.noise * torch.randn_like(frames)
        sound = self.codec.features
        own = sound.mels if sound.rate is not None and size == sound.size else size  # features of a frame by itself
        widest = min(chosen.frequency_mask, int(own * WIDEST_SHARE))
        steps, bands = torch.arange(len(frames), device=device)[:, None], torch.arange(size, device=device) % own
        hidden = ~valid_steps(ends, len(frames))[..., None]
        for _ in range(chosen.time_masks or 0):
            width = torch.rand(batch, device=device) * (ends * LONGEST_SHARE).clamp(max=chosen.time_mask)
            begin = torch.rand(batch, device=device) * (ends - width)
            hidden = hidden | ((steps >= begin) & (steps < begin + width))[..., None]
        for _ in range(chosen.frequency_masks or 0):
            width = (torch.rand(batch, 1, device=device) * (widest + 1)).floor()
            begin = (torch.rand(batch, 1, device=device) * (own - width + 1)).floor()
            hidden = hidden | ((bands >= begin) & (bands < begin + width))
        return frames.masked_fill(hidden, 0.0), ends.cpu()

    def _fitted(self, language_model: Any) -> dict[str, Any]:
        """What prefix beam search has to know of a language model: its tokens by our symbols, or by words of them.

        Raises:
            UserError: they do not fit together.
        """
        if language_model is None:
            return {}
        tokenizer, units = language_model.tokenizer, self.codec.units
        given = {"language_model": language_model.model}
        if units == "words" and tokenizer.kind == "characters":
            raise UserError(
                "a language model of characters cannot judge transcripts made of words; give one of words or byte pairs"
            )
        if units == "words" or tokenizer.kind == "characters":
            return {**given, "tokens": [(), *(_tokens(tokenizer, symbol) for symbol in self.codec.symbols)]}
        separator = self.codec.symbol(SPACE)
        if separator is None:
            raise UserError(
                f"this model has learnt no spaces, and cannot tell a language model of {tokenizer.kind} where words"
                " end; give one of characters"
            )
        words = functools.lru_cache(WORDS_KEPT)(lambda symbols: _tokens(tokenizer, self.codec.decode(symbols)))
        return {**given, "separator": separator, "word_tokens": words}


def _tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of a language model for a symbol or a word; one that looks like the line's end is not the end."""
    ids = tokenizer.encode(text).tolist()
    return tuple(UNKNOWN if id == LINE_END else id for id in ids)

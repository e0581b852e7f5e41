"""From one text to another: an encoder that reads, attention that looks up, a decoder that writes.

Translation, summarisation and dialogue are this one model; what differs is the data (docs/translation.md). It is that
of Sutskever et al. (2014) without attention, that of Luong et al. (2015, "Effective Approaches to Attention-based
Neural Machine Translation") with it.

Letters in shapes: S steps of the source, T of the target, N examples, R rows of a search (several for each example), H
features of a decoder's state, W of the vector that the output layer sees, V tokens of the target vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.beam import Hypothesis, beam_search
from recurra.config import UserError, setting
from recurra.models.task import Codec, TaskModel
from recurra.nn.attention import ATTENTIONS, Attention, Memory
from recurra.nn.cells import LSTMState
from recurra.nn.dropout import locked_mask
from recurra.nn.embedding import AdaptiveEmbedding, Embedding
from recurra.nn.encoder import CELLS, RESIDUAL_FROM, Encoder, EncoderSettings
from recurra.nn.pooling import valid_steps
from recurra.nn.recurrent import StackState
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.text.documents import Document, Text
from recurra.text.examples import Encoded, ExampleBatch
from recurra.text.readers import Pair
from recurra.text.tokenizer import (
    Tokenizer,
    TokenizerSettings,
    build_tokenizer,
    join_words,
    split_words,
    tokenizer_from_mapping,
    word_kind,
)
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["Reading", "TranslationCodec", "Translator", "TranslatorSettings"]

UNITS = ("words", "byte-pairs", "characters")
ADAPTIVE_FROM = 30_000  # target tokens from which the output layer is adaptive, where it is chosen automatically
SMOOTHING = 0.1  # Vaswani et al. 2017, and most since
SCORES_AT_ONCE = 2**22  # log-probabilities of a step of the search: 16 MiB


@dataclass(frozen=True, kw_only=True)
class TranslatorSettings(EncoderSettings):
    """What a translator is made of; ``None`` is settled from the data before the model is built.

    Raises:
        UserError: settings that do not go together.
    """

    input_dropout: float = setting(0.1, "locked dropout on token vectors of both sides", minimum=0, maximum=0.99)
    dropout: float = setting(0.2, "locked dropout between layers", minimum=0, maximum=0.99)
    output_dropout: float = setting(
        0.2, "locked dropout on the encoder's states and before the output layer", minimum=0, maximum=0.99
    )
    units: str = setting("byte-pairs", "what a token is", choices=UNITS)
    vocabulary_size: int | None = setting(None, "most tokens in a vocabulary", minimum=3)
    min_count: int | None = setting(None, "least count of a token in the training text", minimum=1)
    lowercase: bool = setting(False, "make all letters small, on both sides")
    joint: bool = setting(False, "one vocabulary for source and target")
    embedding_size: int | None = setting(None, "size of a token's vector", minimum=1)
    decoder_size: int | None = setting(None, "units of a layer of the decoder", minimum=1)
    decoder_layers: int | None = setting(None, "layers of the decoder", minimum=1)
    attention: str = setting("general", "how the decoder looks up the source", choices=(*ATTENTIONS, "none"))
    input_feeding: bool = setting(False, "the decoder reads what it looked up a step before; slower to train")
    tie: str = setting(
        "output",
        "share the target's token vectors with the output layer, or the source's too",
        choices=("none", "output", "all"),
    )
    output: str | None = setting(None, "output layer", choices=("full", "adaptive"))
    label_smoothing: float | None = setting(
        None, "share of the probability that training spreads over all tokens", minimum=0, maximum=0.99
    )
    scheduled_sampling: float = setting(
        0.0, "chance that in training the decoder reads its own guess, not the truth; slower", minimum=0, maximum=1
    )
    copy_unknown: bool = setting(True, "write the source word looked up most in the place of an unknown word")
    longest_source: int = setting(1000, "tokens that are read of a source", minimum=1)
    longest_target: int = setting(500, "tokens of a target that are learnt from, or written", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tie == "all" and not self.joint:
            raise UserError("tie all shares the vectors of source and target, which needs one vocabulary: give --joint")
        if self.output == "adaptive" and self.label_smoothing:
            raise UserError(
                "label_smoothing needs the full output layer, the adaptive one never sees all tokens at once: give"
                " --label-smoothing 0, or --output full"
            )
        if self.output == "adaptive" and self.tie == "all":
            raise UserError("tie all needs the full output layer: give --output full, or --tie output")
        if self.input_feeding and self.attention == "none":
            raise UserError("input_feeding feeds what attention looked up, and there is none: choose an attention")


class TranslationCodec(Codec[Pair]):
    """A tokenizer for each side, or one for both. A source and a target both end with ``<eos>``.

    White space is one space between words, whatever it was. Of what is longer than the longest that is read, the rest
    is left out, and then a target has no end that could be learnt.

    Arrays: ``source`` and, with targets, ``target``: ids with their ``<eos>``. Without targets, where unknown words are
    to be copied, ``text``: the code points of the source.

    Attributes:
        source: tokenizer of sources.
        target: tokenizer of targets; the same object where the vocabulary is joint.
        longest_source: tokens read of a source.
        longest_target: tokens read of a target.
        copies: whether a prediction may copy words of the source.
    """

    def __init__(
        self, source: Tokenizer, target: Tokenizer, *, longest_source: int, longest_target: int, copies: bool
    ) -> None:
        self.source, self.target = source, target
        self.longest_source, self.longest_target = longest_source, longest_target
        self.copies = copies

    @property
    def joint(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @classmethod
    def build(cls, examples: Sequence[Pair], settings: TranslatorSettings) -> Self:
        """Count tokens and choose the vocabularies.

        Raises:
            UserError: there is no pair, or one without a target, or no word on one side.
        """
        if not examples:
            raise UserError("there is no pair of texts to learn from")
        sources = [_one_line(pair.source) for pair in examples]
        targets = [_one_line(_target(pair)) for pair in examples]
        for name, lines in (("source", sources), ("target", targets)):
            if not any(lines):
                raise UserError(f"every {name} text is empty: there is nothing to learn")
        source = _tokenizer([*sources, *targets] if settings.joint else sources, settings)
        return cls(
            source,
            source if settings.joint else _tokenizer(targets, settings),
            longest_source=settings.longest_source,
            longest_target=settings.longest_target,
            copies=settings.copy_unknown and settings.units == "words" and settings.attention != "none",
        )

    def encode(self, example: Pair, *, targets: bool = True) -> Encoded:
        """Turn a pair into ids.

        Raises:
            UserError: a target is asked for, and there is none.
        """
        text = _one_line(example.source)
        source = _ids(self.source, text)[: self.longest_source]
        arrays = {"source": np.append(source, LINE_END)}
        if targets:
            target = _ids(self.target, _one_line(_target(example)))
            whole = len(target) <= self.longest_target
            arrays["target"] = np.append(target, LINE_END) if whole else target[: self.longest_target]
        length, count = max(map(len, arrays.values())), len(arrays.get("target", ()))
        if self.copies and not targets:
            arrays["text"] = np.array([ord(character) for character in text], np.int64)
        return Encoded(arrays, length, count)

    def source_words(self, text: str) -> list[str]:
        """The words of a source, in the order of its ids, as they were written; for vocabularies of words."""
        chunks = text.split()
        return chunks if self.source.kind == "whitespace" else [word for chunk in chunks for word in split_words(chunk)]

    def decode(self, ids: Iterable[int], copied: Mapping[int, str] | None = None) -> str:
        """The text of a target's ids.

        Args:
            ids: without the end.
            copied: what to write in place of unknown words, by their position.
        """
        if not copied:
            return self.target.decode(ids)
        tokens = [copied.get(place, self.target.token(id)) for place, id in enumerate(ids)]
        return " ".join(tokens) if self.target.kind == "whitespace" else join_words(tokens)

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "source": None if self.joint else self.source.to_mapping(),
            "target": self.target.to_mapping(),
            "longest_source": self.longest_source,
            "longest_target": self.longest_target,
            "copies": self.copies,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        target = tokenizer_from_mapping(mapping["target"])
        return cls(
            target if mapping["source"] is None else tokenizer_from_mapping(mapping["source"]),
            target,
            longest_source=mapping["longest_source"],
            longest_target=mapping["longest_target"],
            copies=mapping["copies"],
        )


class Reading(NamedTuple):
    """What a search knows: sources that were read, and what R rows have written of their targets.

    Attributes:
        memory: what attention looks up, of each source; None without attention.
        sources: of each row, which source it belongs to, [R].
        hidden: state of the decoder, entries [layers, R, H].
        fed: what the decoder reads of the step before, [R, W]; None without input feeding.
    """

    memory: Memory | None
    sources: Tensor
    hidden: StackState
    fed: Tensor | None


class Translator(TaskModel):
    r"""A conditional language model, :math:`P(y_t \mid y_{<t}, x) = \mathrm{softmax}(U \tilde h_t + b)`.

    Each layer of the decoder begins with a linear map of the state in which the encoder's layer of the same height
    ended, or its last. The last layer's state :math:`h_t` asks for a context :math:`c_t` among the encoder's states,
    and :math:`\tilde h_t = \tanh(W [c_t; h_t])` (Luong et al. 2015, equation 5; :math:`\tanh(W h_t)` without
    attention). The context does not go back into the recurrence: so in training the decoder runs over all steps in one
    call, and attention is one product for all of them. With input feeding (section 3.3) the decoder reads
    :math:`[y_{t-1}; \tilde h_{t-1}]` and has to go step by step; so it has with scheduled sampling (Bengio et al.
    2015).

    A prediction is a list of the ``n_best`` likeliest targets, the best first, each a dictionary of

    - ``text``;
    - ``log_prob``: natural log-probability of its tokens, the end included;
    - ``score``: what they are ranked by, the log-probability over the length penalty;
    - with ``attention=True`` also ``attention``, a row for each token of the target over those of the source, and
      ``tokens`` and ``source_tokens``: which they are.

    An empty source has an empty target, with log-probability 0.

    Args:
        settings: with nothing left to choose.
        codec: the vocabularies.

    Raises:
        UserError: sizes that do not fit together.
    """

    codec_type = TranslationCodec
    settings: TranslatorSettings
    codec: TranslationCodec

    def __init__(self, settings: TranslatorSettings, codec: TranslationCodec) -> None:
        super().__init__(settings, codec)
        size, width, layers = settings.embedding_size, settings.decoder_size, settings.decoder_layers
        if size is None or width is None or layers is None or settings.output is None:
            raise ValueError("settings: there is something left to choose; see Translator.settle")
        counts = codec.target.vocabulary.counts
        vector = width if settings.tie == "none" else size  # W
        self.embedding: Embedding | AdaptiveEmbedding
        self.output: FullSoftmax | AdaptiveSoftmax
        if settings.output == "adaptive":
            self.output = AdaptiveSoftmax(vector, counts)
            tied = settings.tie != "none"
            self.embedding = AdaptiveEmbedding(self.output) if tied else Embedding(len(counts), size)
        else:
            self.embedding = Embedding(len(counts), size)
            self.output = FullSoftmax(vector, counts, weight=None if settings.tie == "none" else self.embedding.weight)
        self.source_embedding = (
            self.embedding if settings.tie == "all" else Embedding(len(codec.source.vocabulary), size)
        )
        self.encoder = Encoder(settings, size)
        stack = self.encoder.recurrent
        parts = len(stack.state_type._fields)
        beside = stack.hidden_sizes + stack.hidden_sizes[-1:] * layers  # of each layer of the decoder
        self.bridges = nn.ModuleList(
            nn.Linear(parts * stack.directions * size, parts * width) for size in beside[:layers]
        )
        connections = settings.connections or ("residual" if layers >= RESIDUAL_FROM else "plain")
        self.decoder: Any = CELLS[settings.cell](
            size + vector * settings.input_feeding,
            width,
            layers,
            connections=connections,
            layer_norm=settings.layer_norm,
            between_dropout=settings.dropout,
            recurrent_dropout=settings.recurrent_dropout,
            **({"forget_bias": 1.0} if settings.cell == "lstm" else {}),
        )
        self.attention = None
        if settings.attention != "none":
            self.attention = Attention(width, self.encoder.output_size, settings.attention)
        self.combine = nn.Linear(width + (self.encoder.output_size if self.attention else 0), vector)
        self._vector, self._lstm = vector, settings.cell == "lstm"

    @classmethod
    def settle(
        cls, settings: TranslatorSettings, examples: Sequence[Pair], codec: TranslationCodec
    ) -> TranslatorSettings:
        """Settings with nothing left to choose.

        Token vectors and decoder are as wide as the encoder's first layer, the decoder as wide as the encoder's states
        where attention is a dot product with them, and as deep as the encoder. The output layer is full below 30,000
        tokens, and labels are smoothed by 0.1 where it is.
        """
        sizes = settings.hidden_size if isinstance(settings.hidden_size, tuple) else (settings.hidden_size,)
        words = len(codec.target.vocabulary)
        output = settings.output
        if output is None:
            wanted = settings.label_smoothing or settings.tie == "all"  # what only the full one can do
            output = "full" if wanted or words < ADAPTIVE_FROM else "adaptive"
        smoothing = settings.label_smoothing
        if smoothing is None:
            smoothing = SMOOTHING if output == "full" else 0.0
        states = sizes[-1] * (2 if settings.bidirectional else 1)
        return dataclasses.replace(
            settings,
            vocabulary_size=settings.vocabulary_size or max(3, words, len(codec.source.vocabulary)),
            embedding_size=settings.embedding_size or sizes[0],
            decoder_size=settings.decoder_size or (states if settings.attention == "dot" else sizes[0]),
            decoder_layers=settings.decoder_layers or settings.layers,
            output=output,
            label_smoothing=smoothing,
        )

    # ---- learning from pairs --------------------------------------------------------------------------------------

    def loss(self, batch: ExampleBatch) -> Tensor:
        r"""Summed loss in nats over all target tokens, ends included.

        In training labels are smoothed (Szegedy et al. 2016, section 7): the truth is :math:`1 - \epsilon` of a
        target's own token and :math:`\epsilon / V` of every one. With scores :math:`s` of a row that loss is
        :math:`-\log p(y) + \epsilon (s_y - \frac1V \sum_v s_v)`, and what it costs beyond the usual one does not grow
        with rows times vocabulary.
        """
        vectors, targets, _ = self._teach(batch)
        nats = self.output.loss(vectors, targets)
        smoothing = self.settings.label_smoothing
        if self.training and smoothing and isinstance(self.output, FullSoftmax):
            weight, bias = self.output.weight, self.output.bias
            own = (vectors * F.embedding(targets, weight)).sum() + bias[targets].sum()
            mean = vectors.sum(0) @ weight.mean(0) + len(vectors) * bias.mean()
            nats = nats + smoothing * (own - mean)
        return nats

    def target_log_probs(self, batch: ExampleBatch) -> Tensor:
        """Natural log-probabilities of the targets' tokens, ends included, [T, N]; 0 beyond the end."""
        vectors, targets, _ = self._teach(batch)
        found = self.output.log_probs(vectors, targets)
        valid = self._valid(batch, "target")
        return found.new_zeros(valid.shape).masked_scatter(valid, found)

    @torch.no_grad()
    def align(self, batch: ExampleBatch) -> list[Tensor]:
        """What attention looked up when each target was read: for every pair the weights, [T, S], on the CPU.

        Rows are the target's tokens, ends included, columns the source's; a row sums to 1.

        Args:
            batch: encoded with targets.

        Raises:
            UserError: the model has no attention.
        """
        if self.attention is None:
            raise UserError("this model has no attention to show: train one with --attention general")
        _, _, weights = self._teach(batch)
        assert weights is not None
        lengths = zip(batch.lengths["target"].tolist(), batch.lengths["source"].tolist(), strict=True)
        return [weights[:rows, column, :steps].cpu() for column, (rows, steps) in enumerate(lengths)]

    def _teach(self, batch: ExampleBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read pairs: vectors [targets, W] for the output layer, the targets, and attention's weights [T, N, S]."""
        valid = self._valid(batch, "target")
        targets = batch.arrays["target"].masked_fill(~valid, LINE_END)
        inputs = F.pad(targets[:-1], (0, 0, 1, 0), value=LINE_END)  # [T, N]: each target's predecessor
        reading = self.encode_source(batch)
        if self.settings.input_feeding or (self.training and self.settings.scheduled_sampling):
            vectors, weights = self._step_by_step(inputs, reading)
            return vectors[valid], targets[valid], weights
        words = _times(self.embedding(inputs), self._mask(batch.size, self.encoder.input_size, "input_dropout"))
        states, _ = self.decoder(words, reading.hidden, lengths=batch.lengths["target"])
        context, weights = (None, None) if self.attention is None else self.attention(states, _held(reading.memory))
        rows, columns = valid.nonzero(as_tuple=True)
        vectors = self._combined(states[rows, columns], None if context is None else context[rows, columns])
        mask = self._mask(batch.size, self._vector, "output_dropout")
        return vectors if mask is None else vectors * mask[columns], targets[rows, columns], weights

    def _step_by_step(self, inputs: Tensor, reading: Reading) -> tuple[Tensor, Tensor | None]:
        """Read ``inputs [T, N]`` one after the other; vectors [T, N, W] and attention's weights [T, N, S]."""
        batch = inputs.shape[1]
        masks = (
            self._mask(batch, self.encoder.input_size, "input_dropout"),
            self._mask(batch, self._vector, "output_dropout"),
        )
        guesses = self.settings.scheduled_sampling if self.training else 0.0
        found: list[Tensor] = []
        weights: list[Tensor | None] = []
        for step, tokens in enumerate(inputs):
            if guesses and step:
                with torch.no_grad():
                    guessed = self.output.log_probs(found[-1]).exp().multinomial(1)[:, 0]
                    tokens = torch.where(torch.rand(batch, device=tokens.device) < guesses, guessed, tokens)
            vectors, reading, looked = self._advance(tokens, reading, *masks)
            found.append(vectors)
            weights.append(looked)
        looks = None if self.attention is None else torch.stack([_held(looked) for looked in weights])
        return torch.stack(found), looks

    def _advance(
        self, tokens: Tensor, reading: Reading, word_mask: Tensor | None = None, vector_mask: Tensor | None = None
    ) -> tuple[Tensor, Reading, Tensor | None]:
        """Read a token in every row, ``tokens [R]``: vectors [R, W], what is known now, attention's weights [R, S]."""
        words = _times(self.embedding(tokens), word_mask)
        if reading.fed is not None:
            words = torch.cat((words, reading.fed), -1)
        states, hidden = self.decoder(words[None], reading.hidden)
        context, weights = self._look_up(states[0], reading)
        vectors = _times(self._combined(states[0], context), vector_mask)
        fed = None if reading.fed is None else vectors
        return vectors, reading._replace(hidden=hidden, fed=fed), weights

    def _combined(self, states: Tensor, context: Tensor | None) -> Tensor:
        """The vectors that the output layer sees, [rows, W]."""
        known = states if context is None else torch.cat((context, states), -1)
        return torch.tanh(self.combine(known))

    # ---- writing --------------------------------------------------------------------------------------------------

    def encode_source(self, batch: ExampleBatch) -> Reading:
        """Read the sources of N examples: what is known before anything is written, of N rows."""
        valid, lengths = self._valid(batch, "source"), batch.lengths["source"]
        words = self.source_embedding(batch.arrays["source"].masked_fill(~valid, UNKNOWN))
        states, final = self.encoder(words, lengths)
        first = self._first_state(final)
        hidden = first[0].tanh()  # what a cell puts out is no larger than 1
        fed = hidden.new_zeros(batch.size, self._vector) if self.settings.input_feeding else None
        return Reading(
            None if self.attention is None else self.attention.prepare(states, lengths),
            torch.arange(batch.size, device=words.device),
            LSTMState(hidden, first[1]) if self._lstm else hidden,
            fed,
        )

    def _first_state(self, final: Any) -> list[Tensor]:
        """From the encoder's final state to h, and c of an LSTM, that the decoder begins with: [layers, N, H] each."""
        directions = self.encoder.directions
        entries = list(zip(*(final if self._lstm else (final,)), strict=True))  # of each layer and direction
        layers = [sum(entries[at : at + directions], ()) for at in range(0, len(entries), directions)]
        mapped = []
        for number, bridge in enumerate(self.bridges):
            mapped.append(bridge(torch.cat(layers[min(number, len(layers) - 1)], -1)))  # [N, parts * H]
        return list(torch.stack(mapped).chunk(2 if self._lstm else 1, -1))

    def step(
        self, tokens: Tensor, state: Reading, *, attention: bool = False
    ) -> tuple[Tensor, Reading] | tuple[Tensor, Reading, Tensor]:
        """Read a token in every row, ``<eos>`` before all others.

        Args:
            tokens: what the rows read, int64 [R].
            state: what they know.
            attention: return where they look, too.

        Returns:
            Log-probabilities of what follows, [R, V], what the rows know now, and if asked for attention's weights,
            [R, S].
        """
        vectors, state, weights = self._advance(tokens, state)
        log_probs = self.output.log_probs(vectors)
        return (log_probs, state, _held(weights)) if attention else (log_probs, state)

    def select(self, state: Reading, rows: Tensor) -> Reading:
        """Copies of some rows, int64 [K], in any order, each any number of times."""
        hidden: Any = state.hidden
        if isinstance(hidden, LSTMState):
            hidden = LSTMState(*(part.index_select(1, rows) for part in hidden))
        else:
            hidden = hidden.index_select(1, rows)
        memory, sources = state.memory, state.sources[rows]
        if memory is not None:
            kept, places = sources.unique(return_inverse=True)
            if len(kept) < len(memory.values):  # the others are done
                memory, sources = memory.select(kept), places
        return Reading(memory, sources, hidden, None if state.fed is None else state.fed[rows])

    def _look_up(self, states: Tensor, reading: Reading) -> tuple[Tensor | None, Tensor | None]:
        """What ``states [R, H]`` find: contexts [R, M] and weights [R, S]; None without attention.

        A source's memory is read by all its rows where it is: they ask as steps of a target would.
        """
        if self.attention is None:
            return None, None
        memory, sources = _held(reading.memory), reading.sources
        count, rows = len(memory.values), len(sources)
        each = rows // max(1, count)
        if rows == each * count and torch.equal(sources, _blocks(count, each, sources.device)):
            asked = states.view(count, each, -1).transpose(0, 1)  # [each, sources, H]
            context, weights = self.attention(asked, memory)
            return context.transpose(0, 1).reshape(rows, -1), weights.transpose(0, 1).reshape(rows, -1)
        found: tuple[Tensor, Tensor] = self.attention(states, memory.select(sources))
        return found

    def predict(
        self,
        batch: ExampleBatch,
        *,
        beam: int = 5,
        n_best: int = 1,
        length_penalty: float = 1.0,
        max_length: int | None = None,
        attention: bool = False,
        **options: Any,
    ) -> list[list[dict[str, Any]]]:
        """The likeliest targets of each example, found by beam search.

        Args:
            batch: encoded without targets.
            beam: beginnings that are kept; 1 is greedy.
            n_best: targets returned for each example, at most.
            length_penalty: the power of ((5 + tokens) / 6) that log-probabilities are divided by (Wu et al. 2016,
                equation 14); 0 for none, and the larger, the longer the targets.
            max_length: tokens of a target, end included, at most; None is twice the source and 10 more, and never more
                than ``longest_target``.
            attention: give attention's weights, too.
            options: there are no others.

        Raises:
            UserError: an option out of its bounds, or attention of a model that has none.
        """
        assert not options, options
        if attention and self.attention is None:
            raise UserError("this model has no attention to show: train one with --attention general")
        if not 0 <= length_penalty < math.inf:
            raise UserError(f"length_penalty: expected at least 0, got {length_penalty}")
        if max_length is not None and max_length < 1:
            raise UserError(f"max_length: expected at least 1, got {max_length}")
        lengths = batch.lengths["source"]
        copies = self.codec.copies and "text" in batch.arrays
        search = functools.partial(
            beam_search,
            functools.partial(self.step, attention=attention or copies),
            self.select,
            start=LINE_END,
            end=LINE_END,
            beam=beam,
            n_best=n_best,
            length_penalty="gnmt",
            alpha=length_penalty,
            forbidden=() if copies else (UNKNOWN,),
            device=self.combine.weight.device,
        )
        found: list[list[Hypothesis]] = [[] for _ in range(batch.size)]
        order = [place for place in lengths.argsort(descending=True).tolist() if lengths[place] > 1]
        at_once = max(1, SCORES_AT_ONCE // (len(self.codec.target.vocabulary) * max(1, beam)))
        for first in range(0, len(order), at_once):
            places = order[first : first + at_once]
            part = _columns(batch, places)
            longest = (part.lengths["source"] * 2 + 10).clamp(max=self.settings.longest_target).tolist()
            limits = longest if max_length is None else max_length
            hypotheses = search(self.encode_source(part), batch=part.size, max_lengths=limits)
            for place, own in zip(places, hypotheses, strict=True):
                found[place] = own
        return [self._predictions(batch, place, own, copies, attention) for place, own in enumerate(found)]

    def _predictions(
        self, batch: ExampleBatch, place: int, found: Sequence[Hypothesis], copies: bool, attention: bool
    ) -> list[dict[str, Any]]:
        """What a user reads of the outputs found for one example."""
        steps = int(batch.lengths["source"][place])
        ids = batch.arrays["source"][:steps, place].tolist()
        if steps <= 1:
            empty: dict[str, Any] = {"text": "", "score": 0.0, "log_prob": 0.0}
            return [{**empty, "attention": [], "tokens": [], "source_tokens": []} if attention else empty]
        words: list[str] = []
        if copies:
            codes = batch.arrays["text"][: int(batch.lengths["text"][place]), place].tolist()
            words = self.codec.source_words("".join(map(chr, codes)))
        predictions = []
        for output in found:
            copied = {}
            if copies and output.extra is not None:
                looked = output.extra[:, : steps - 1].argmax(1).tolist()  # at any word but the end
                copied = {
                    at: words[looked[at]]
                    for at, id in enumerate(output.content)
                    if id == UNKNOWN and looked[at] < len(words)
                }
            prediction = {
                "text": self.codec.decode(output.content, copied),
                "score": output.score,
                "log_prob": output.log_prob,
            }
            if attention and output.extra is not None:
                prediction["attention"] = output.extra[:, :steps].tolist()
                prediction["tokens"] = [self.codec.target.token(id) for id in output.tokens]
                prediction["source_tokens"] = [self.codec.source.token(id) for id in ids]
            predictions.append(prediction)
        return predictions

    # ---- small things ---------------------------------------------------------------------------------------------

    def _valid(self, batch: ExampleBatch, name: str) -> Tensor:
        """Which steps of an array are there, [time, N]."""
        array = batch.arrays[name]
        return valid_steps(batch.lengths[name].to(array.device), len(array))

    def _mask(self, batch: int, features: int, setting: str) -> Tensor | None:
        """What dropout multiplies by, the same at all steps, [N, features]; None where nothing is dropped."""
        p = getattr(self.settings, setting)
        return locked_mask(self.combine.weight.new_empty(batch, features), p) if self.training and p else None


def _times(vectors: Tensor, mask: Tensor | None) -> Tensor:
    return vectors if mask is None else vectors * mask


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _target(pair: Pair) -> str:
    if pair.target is None:
        raise UserError(f"a pair has no target to learn from: {pair.source[:60]!r}")
    return pair.target


def _tokenizer(lines: Sequence[str], settings: TranslatorSettings) -> Tokenizer:
    text = Text((Document("pairs", lambda: iter(lines)),))
    return build_tokenizer(
        text,
        TokenizerSettings(
            tokenizer=word_kind(text) if settings.units == "words" else settings.units,
            vocabulary_size=settings.vocabulary_size,
            min_count=settings.min_count,
            lowercase=settings.lowercase,
        ),
    )


def _ids(tokenizer: Tokenizer, line: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    ids = tokenizer.encode(line).astype(np.int64)
    ids[ids == LINE_END] = UNKNOWN  # a word that looks like the end is not the end
    return ids


def _columns(batch: ExampleBatch, places: Sequence[int]) -> ExampleBatch:
    """The sources of some examples as a batch of their own, no longer than the longest of them."""
    chosen = torch.tensor(places)
    lengths = batch.lengths["source"][chosen]
    array = batch.arrays["source"][: int(lengths.max())]
    return ExampleBatch({"source": array[:, chosen.to(array.device)]}, {"source": lengths}, len(places), 0)


def _blocks(count: int, each: int, device: torch.device) -> Tensor:
    """0, 0, ..., 1, 1, ...: ``each`` of every number below ``count``."""
    return torch.arange(count, device=device).repeat_interleave(each)


def _held(value: Any) -> Any:
    """A thing that is there where attention is."""
    assert value is not None
    return value

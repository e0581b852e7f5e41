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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.beam import Hypothesis, beam_search
from recurra.config import UserError, setting
from recurra.models.task import Look, TaskModel
from recurra.models.translation import TranslationCodec, TranslationSettings
from recurra.nn.attention import ATTENTIONS, Attention, Memory
from recurra.nn.cells import LSTMState
from recurra.nn.decoder import Decoder, Masks
from recurra.nn.dropout import locked_mask, masked
from recurra.nn.embedding import AdaptiveEmbedding, Embedding
from recurra.nn.encoder import Encoder, EncoderSettings, settle_encoder
from recurra.nn.pooling import valid_steps
from recurra.nn.recurrent import StackState
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.text.examples import ExampleBatch, collate
from recurra.text.readers import Pair
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["Reading", "Translator", "TranslatorSettings"]

ADAPTIVE_FROM = 30_000  # target tokens from which the output layer is adaptive, where it is chosen automatically
SMOOTHING = 0.1  # Vaswani et al. 2017, and most since
DECODER_LAYERS = 2  # one that asks what to look up, one that reads what was found
SCORES_AT_ONCE = 2**22  # log-probabilities of a step of the search: 16 MiB


@dataclass(frozen=True, kw_only=True)
class TranslatorSettings(EncoderSettings, TranslationSettings):
    """What a translator is made of; ``None`` is settled from the data before the model is built.

    Raises:
        UserError: settings that do not go together.
    """

    layers: int = setting(2, "layers of the encoder", minimum=1)
    input_dropout: float = setting(0.1, "locked dropout on token vectors of both sides", minimum=0, maximum=0.99)
    dropout: float = setting(
        0.2, "locked dropout between layers; in self-attention, dropout of weights and results", minimum=0, maximum=0.99
    )
    output_dropout: float = setting(
        0.2, "locked dropout on the encoder's states and before the output layer", minimum=0, maximum=0.99
    )
    word_dropout: float = setting(
        0.05, "chance that a token's vector is left out, all over a batch, on both sides", minimum=0, maximum=0.99
    )
    embedding_size: int | None = setting(None, "size of a token's vector", minimum=1)
    decoder_size: int | None = setting(None, "units of a layer of the decoder", minimum=1)
    decoder_layers: int | None = setting(
        None, f"layers of the decoder; auto is {DECODER_LAYERS} with attention, else as many as the encoder", minimum=1
    )
    attention: str = setting("general", "how the decoder looks up the source", choices=(*ATTENTIONS, "none"))
    input_feeding: bool = setting(False, "the decoder reads what it looked up a step before; slower to train")
    tie: str | None = setting(
        None,
        "share the target's token vectors with the output layer, or the source's too; auto is all of one vocabulary",
        choices=("none", "output", "all"),
    )
    output: str | None = setting(None, "output layer", choices=("full", "adaptive"))
    label_smoothing: float | None = setting(
        None, "share of the probability that training spreads over all tokens", minimum=0, maximum=0.99
    )
    scheduled_sampling: float = setting(
        0.0,
        "chance, the same all through training, that the decoder reads its own guess, not the truth; slower",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tie == "all" and self.joint is False:
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


# ---- the model ------------------------------------------------------------------------------------------------------


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
    ended, or its last. The first layer reads target tokens; its states :math:`h^1_t` ask for contexts :math:`c_t` among
    the encoder's states, and the layers above read :math:`[h^{k-1}_t; c_t]`: the wiring of Wu et al. (2016, section
    3), but that there the context is the one asked for a step before. The output layer sees :math:`\tilde h_t =
    \tanh(W [c_t; h_t])` with the last layer's state :math:`h_t` (Luong et al. 2015, equation 5; :math:`\tanh(W h_t)`
    without attention). So what was found goes into a recurrence, and yet no layer waits for one above it: in training
    each runs over all steps in one call, and attention is one product for all of them. A decoder of one layer asks with
    that, and nothing of the context goes back.

    With input feeding (Luong et al. 2015, section 3.3) the last layer asks, and the first reads
    :math:`[y_{t-1}; \tilde h_{t-1}]`: it has to go step by step. So it has where the decoder reads its own guesses in
    training (scheduled sampling, Bengio et al. 2015, though their chance grows in the course of training, and here it
    stays).

    A prediction is a list of the ``n_best`` likeliest targets, the best first, each a dictionary of

    - ``text``;
    - ``log_prob``: natural log-probability of its tokens, the end included;
    - ``score``: what they are ranked by, the log-probability over the length penalty;
    - ``ended``: whether it came to its end, or was cut where it was as long as it may be;
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
        dropout = settings.word_dropout
        if None in (size, width, layers, settings.output, settings.tie):
            raise ValueError("settings: there is something left to choose; see Translator.settle")
        assert size is not None
        assert width is not None
        assert layers is not None
        counts = codec.target.vocabulary.counts
        vector = width if settings.tie == "none" else size  # W
        self.embedding: Embedding | AdaptiveEmbedding
        self.output: FullSoftmax | AdaptiveSoftmax
        if settings.output == "adaptive":
            self.output = AdaptiveSoftmax(vector, counts)
            tied = settings.tie != "none"
            self.embedding = (
                AdaptiveEmbedding(self.output, dropout=dropout)
                if tied
                else Embedding(len(counts), size, dropout=dropout)
            )
        else:
            self.embedding = Embedding(len(counts), size, dropout=dropout)
            self.output = FullSoftmax(vector, counts, weight=None if settings.tie == "none" else self.embedding.weight)
        self.source_embedding = (
            self.embedding if settings.tie == "all" else Embedding(len(codec.source.vocabulary), size, dropout=dropout)
        )
        self.encoder = Encoder(settings, size)
        stack = self.encoder.recurrent
        parts = len(stack.state_type._fields)
        beside = stack.hidden_sizes + stack.hidden_sizes[-1:] * layers  # of each layer of the decoder
        self.bridges = nn.ModuleList(
            nn.Linear(parts * stack.directions * size, parts * width) for size in beside[:layers]
        )
        found = 0  # features that attention finds
        self.attention = None
        if settings.attention != "none":
            self.attention, found = Attention(width, self.encoder.output_size, settings.attention), stack.output_size
        self._first_asks = found > 0 and layers > 1 and not settings.input_feeding
        read = size + vector * settings.input_feeding
        self.decoder = Decoder(
            settings.cell,
            read,
            width,
            layers,
            context_size=found if self._first_asks else 0,
            connections=_held(settings.connections),
            layer_norm=settings.layer_norm,
        )
        self.combine = nn.Linear(width + found, vector)
        self._vector, self._lstm = vector, settings.cell == "lstm"

    @classmethod
    def settle(
        cls, settings: TranslatorSettings, examples: Sequence[Pair], codec: TranslationCodec
    ) -> TranslatorSettings:
        """Settings with nothing left to choose.

        Token vectors and decoder are as wide as the encoder's first layer, the decoder as wide as the encoder's states
        where attention is a dot product with them, of two layers with attention, and as deep as the encoder without.
        The output layer is full below 30,000 tokens, and labels are smoothed by 0.1 where it is. Where there is one
        vocabulary, and all of the output layer, all vectors are shared.
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
        deep = settings.layers if settings.attention == "none" else DECODER_LAYERS
        return dataclasses.replace(
            settle_encoder(settings),
            vocabulary_size=settings.vocabulary_size or max(3, words, len(codec.source.vocabulary)),
            embedding_size=settings.embedding_size or sizes[0],
            decoder_size=settings.decoder_size or (states if settings.attention == "dot" else sizes[0]),
            decoder_layers=settings.decoder_layers or deep,
            joint=codec.joint,
            tie=settings.tie or ("all" if codec.joint and output == "full" else "output"),
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

    @torch.no_grad()
    def look(self, example: Pair) -> Look:
        """Where each token of the target looks: that of the example, or else the best that is found."""
        if example.target is None:
            [[best]] = self.predict(self._one(example), attention=True)
            return Look(best["tokens"], best["source_tokens"], best["attention"])
        batch = self._one(example)
        [weights] = self.align(batch)
        rows, columns = (
            [codec.piece(id) for id in batch.arrays[name][:, 0].tolist()]
            for codec, name in ((self.codec.target, "target"), (self.codec.source, "source"))
        )
        return Look(rows, columns, weights.tolist())

    def _one(self, example: Pair) -> ExampleBatch:
        encoded = self.codec.encode(example, targets=example.target is not None)
        return collate([encoded]).to(self.combine.weight.device)

    def _teach(self, batch: ExampleBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read pairs: vectors [targets, W] for the output layer, the targets, and attention's weights [T, N, S]."""
        valid = self._valid(batch, "target")
        targets = batch.arrays["target"].masked_fill(~valid, LINE_END)
        inputs = F.pad(targets[:-1], (0, 0, 1, 0), value=LINE_END)  # [T, N]: each target's predecessor
        reading = self.encode_source(batch)
        masks = self._masks(batch.size) if self.training else None
        words = self.embedding(inputs)
        if self.settings.input_feeding or (self.training and self.settings.scheduled_sampling):
            vectors, weights = self._step_by_step(words, reading, masks)
            return vectors[valid], targets[valid], weights
        vectors, _, weights = self._advance(words, reading, masks, batch.lengths["target"], valid)
        return vectors, targets[valid], weights

    def _step_by_step(self, words: Tensor, reading: Reading, masks: Masks | None) -> tuple[Tensor, Tensor | None]:
        """Read ``words [T, N, E]`` one after the other; vectors [T, N, W] and attention's weights [T, N, S]."""
        guesses = self.settings.scheduled_sampling if self.training else 0.0
        found: list[Tensor] = []
        weights: list[Tensor | None] = []
        for step, word in enumerate(words):
            if guesses and step:
                with torch.no_grad():
                    guessed = self.output.log_probs(found[-1][0]).exp().multinomial(1)[:, 0]
                    taken = torch.rand(len(guessed), 1, device=guessed.device) < guesses
                word = torch.where(taken, self.embedding(guessed), word)
            vectors, reading, looked = self._advance(word[None], reading, masks)
            found.append(vectors)
            weights.append(looked)
        looks = None if self.attention is None else torch.cat([_held(looked) for looked in weights])
        return torch.cat(found), looks

    def _advance(
        self,
        words: Tensor,
        reading: Reading,
        masks: Masks | None = None,
        lengths: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, Reading, Tensor | None]:
        """Read tokens in every row: of all steps of a target, or one step of a search.

        Args:
            words: the tokens' vectors, [T, R, E].
            reading: what is known.
            masks: what is dropped.
            lengths: steps of each row, if there are several.
            wanted: which steps vectors are wanted of, [T, R]; None for all.

        Returns:
            The vectors that the output layer sees, [T, R, W], or those wanted, [wanted, W]; what is known now; and
            attention's weights [T, R, S].
        """
        words = masked(words, masks and masks.words)
        if reading.fed is not None:
            words = torch.cat((words, reading.fed[None]), -1)
        found: list[tuple[Tensor, Tensor]] = []

        def look(states: Tensor) -> Tensor:
            found.append(self._look_up(states, reading))
            return found[0][0]

        states, hidden = self.decoder(
            words, reading.hidden, masks, look=look if self._first_asks else None, lengths=lengths
        )
        if self.attention is not None and not found:
            look(states)
        known = torch.cat((found[0][0], states), -1) if found else states
        mask = masks and masks.vectors
        if wanted is not None:
            known = known[wanted]
            mask = None if mask is None else mask.expand(len(wanted), -1, -1)[wanted]
        vectors = masked(torch.tanh(self.combine(known)), mask)
        fed = None if reading.fed is None else vectors[-1]
        return vectors, reading._replace(hidden=hidden, fed=fed), found[0][1] if found else None

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
        vectors, state, weights = self._advance(self.embedding(tokens)[None], state)
        log_probs = self.output.log_probs(vectors[0])
        return (log_probs, state, _held(weights)[0]) if attention else (log_probs, state)

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

    def _look_up(self, states: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        """What ``states [T, R, H]`` find: contexts [T, R, M] and weights [T, R, S].

        A source's memory is read by all its rows where it is: they ask as steps of a target would.
        """
        attention, memory, sources = _held(self.attention), _held(reading.memory), reading.sources
        count, (steps, rows, _) = len(memory.values), states.shape
        each = rows // max(1, count)
        found: tuple[Tensor, Tensor]
        if rows == each * count and torch.equal(sources, _blocks(count, each, sources.device)):
            if each == 1:
                found = attention(states, memory)
                return found
            asked = states.reshape(steps, count, each, -1).transpose(1, 2).flatten(0, 1)  # [T * each, sources, H]
            context, weights = (
                part.unflatten(0, (steps, each)).transpose(1, 2).flatten(1, 2) for part in attention(asked, memory)
            )
            return context, weights
        found = attention(states, memory.select(sources))
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
    ) -> list[list[dict[str, Any]]]:
        """The likeliest targets of each example, found by beam search.

        Args:
            batch: encoded without targets.
            beam: beginnings that are kept; 1 is greedy.
            n_best: targets returned for each example, at most.
            length_penalty: the power of ((5 + tokens) / 6) that log-probabilities are divided by (Wu et al. 2016,
                equation 14); 0 for none, and the larger, the longer the targets.
            max_length: tokens of a target, end included, at most; None is what targets of training hardly ever were
                longer than, by their sources (:meth:`TranslationCodec.limit`).
            attention: give attention's weights, too.

        Raises:
            UserError: an option out of its bounds, or attention of a model that has none.
        """
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
            limits = [max_length or self.codec.limit(source) for source in part.lengths["source"].tolist()]
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
            empty: dict[str, Any] = {"text": "", "score": 0.0, "log_prob": 0.0, "ended": True}
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
                "ended": output.ended,
            }
            if attention and output.extra is not None:
                prediction["attention"] = output.extra[:, :steps].tolist()
                prediction["tokens"] = [self.codec.target.piece(id) for id in output.tokens]
                prediction["source_tokens"] = [self.codec.source.piece(id) for id in ids]
            predictions.append(prediction)
        return predictions

    # ---- small things ---------------------------------------------------------------------------------------------

    def _valid(self, batch: ExampleBatch, name: str) -> Tensor:
        """Which steps of an array are there, [time, N]."""
        array = batch.arrays[name]
        return valid_steps(batch.lengths[name].to(array.device), len(array))

    def _masks(self, rows: int) -> Masks:
        """Draw what is dropped of the decoder, for targets to be read from beginning to end."""
        settings, decoder = self.settings, self.decoder

        def drawn(features: int, p: float) -> Tensor | None:
            return locked_mask(self.combine.weight.new_empty(rows, features), p) if p else None

        return Masks(
            words=drawn(self.encoder.input_size, settings.input_dropout),
            between=[drawn(features, settings.dropout) for features in decoder.below[1:]],
            recurrent=[drawn(_held(settings.decoder_size), settings.recurrent_dropout) for _ in decoder.layers],
            vectors=drawn(self._vector, settings.output_dropout),
        )


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

"""Readers: answers to questions about a text, a part of it (SQuAD) or a word from a list (bAbI).

One encoder reads the question and the text. What it makes of the text becomes a memory that attention looks things up
in, again and again if need be: what was found the first time says what to look for the second time (Weston et al. 2014,
"Memory Networks"; Sukhbaatar et al. 2015, "End-To-End Memory Networks"; Kumar et al. 2016, "Ask Me Anything: Dynamic
Memory Networks"). The memory is of one of two kinds.

*Sentences*: each is read by itself and becomes one vector; a second encoder reads these (Xiong et al. 2016, "Dynamic
Memory Networks for Visual and Textual Question Answering", section 3.1, the input fusion layer).

*Tokens*: the whole text is read at once. Each token's state is put beside what it finds in the question, and the
question's most similar token's share of the text, and a second encoder reads that (Seo et al. 2017, "Bidirectional
Attention Flow for Machine Comprehension", section 2).

Letters in shapes: T tokens of the text, J of the question, S places of the memory, N examples, F features of a state.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError, setting
from recurra.models.task import Codec, Look, TaskModel
from recurra.models.words import WordReader, Words, WordSettings, settle_words
from recurra.nn.attention import Attention
from recurra.nn.encoder import Encoder
from recurra.nn.pooling import Pooling, valid_steps
from recurra.nn.softmax import FullSoftmax
from recurra.text.examples import Encoded, ExampleBatch, collate
from recurra.text.questions import Question
from recurra.text.vocabulary import LINE_END, SPECIAL

__all__ = ["Reader", "ReaderCodec", "ReaderSettings"]

TOKEN = re.compile(r"\w+|[^\w\s]")
SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)")
LONGEST_SENTENCE = 64  # tokens; a longer one is cut: what is read side by side should be of about one length
OTHER = 0  # the answer that stands for all that training did not have
SKIPPED = -1  # token where an answer begins that is not learnt from
EXAMINED = 1000  # examples that the kind of memory is chosen by


@dataclass(frozen=True, kw_only=True)
class ReaderSettings(WordSettings):
    """What a reader is made of; ``None`` is settled from the data before the model is built."""

    hidden_size: int | tuple[int, ...] = setting(96, "units of a layer and direction, or of each layer", minimum=1)
    cell: str = setting("gru", "recurrent cell", choices=("rnn", "lstm", "gru"))
    word_dropout: float = setting(0.0, "chance that a word is taken for an unknown one", minimum=0, maximum=0.99)
    answer: str | None = setting(
        None, "a part of the text, or a word from a list; auto is what training has", choices=("span", "word")
    )
    memory: str | None = setting(
        None,
        "what attention looks things up in; auto is sentences where the answer is a word and texts have several",
        choices=("sentences", "tokens"),
    )
    hops: int | None = setting(
        None, "how often it looks something up before it answers; auto is 3 for words, 1 for spans", minimum=1
    )
    longest_answer: int | None = setting(None, "tokens of a span, at most; auto is the longest of training", minimum=1)


# ---- text ------------------------------------------------------------------------------------------------------------


class _Tokens(NamedTuple):
    """A text, cut up."""

    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]  # of each in the text: first character, and the one after the last
    ends: tuple[int, ...]  # of sentences, in tokens


@functools.lru_cache(maxsize=1024)  # the same text comes with one question after the other
def _tokens(text: str) -> _Tokens:
    """Cut a text into words, signs, and sentences: lines, and what ends with a full stop or the like."""
    found = list(TOKEN.finditer(text))
    ends, begin = [], 0
    for number, match in enumerate(found, start=1):
        after = found[number].start() if number < len(found) else len(text)
        done = number == len(found) or "\n" in text[match.end() : after] or SENTENCE_END.match(text, match.start())
        if done or number - begin == LONGEST_SENTENCE:
            ends.append(number)
            begin = number
    return _Tokens(tuple(match[0] for match in found), tuple(match.span() for match in found), tuple(ends))


class ReaderCodec(Codec[Question]):
    """Words, and answers where they are words.

    Question and text are words and single signs, with an end mark, ``<eos>``, after the last: a sentence of its own,
    and the place of the answer of a question that has none.

    Args:
        words: which there are.
        answers: counts of those to choose from, by their text; None where answers are spans.
        longest_answer: tokens of the longest span in training.
        unanswerable: whether training had questions without an answer.

    Attributes:
        skipped: how many answers that were encoded so far are not where they are said to be.
    """

    def __init__(
        self, words: Words, answers: Mapping[str, int] | None, *, longest_answer: int, unanswerable: bool
    ) -> None:
        self.words, self.longest_answer, self.unanswerable = words, longest_answer, unanswerable
        self.skipped = 0
        self.answers = None if answers is None else dict(answers)
        self.choices = [""] if answers is None else ["", *answers]  # by id; the first is OTHER
        self._ids = {answer: number for number, answer in enumerate(self.choices)}

    @property
    def answer(self) -> str:
        """What an answer is: ``span`` or ``word``."""
        return "span" if self.answers is None else "word"

    @classmethod
    def build(cls, examples: Sequence[Question], settings: ReaderSettings) -> Self:
        """As in :class:`~recurra.models.task.Codec`. Answers are spans if most have a place in the text.

        Raises:
            UserError: there are no answers, or answers are to be spans and none is where it is said to be.
        """
        given = [answer for example in examples for answer in example.answers]
        if not given:
            raise UserError("expected questions with answers to learn from, got none")
        spans = sum(answer.start is not None for answer in given) * 2 > len(given)
        spans = spans if settings.answer is None else settings.answer == "span"
        words = Words.build(_texts(examples), settings)
        if not spans:
            counts = Counter(example.answers[0].text for example in examples if example.answers)
            answers = {
                answer: counts[answer] for answer in sorted(counts, key=lambda answer: (-counts[answer], answer))
            }
            return cls(words, answers, longest_answer=1, unanswerable=False)
        asked = [example for example in examples if example.answers]
        sizes = [span[1] - span[0] + 1 for span in map(_span, asked) if span is not None]
        if not sizes:
            text, start = asked[0].answers[0]
            raise UserError(
                f"question {asked[0].id}: expected an answer with its place in the text, got {text[:40]!r} at"
                f" {start}; give --answer word if answers are words from a list"
            )
        return cls(words, None, longest_answer=max(sizes), unanswerable=any(not one.answers for one in examples))

    def encode(self, example: Question, *, targets: bool = True) -> Encoded:
        """Turn a question into arrays.

        They are those of :meth:`Words.encode` for both texts, under ``question.`` and ``context.``; for each token
        whether the other text has it too, ``matches``; where sentences end, in tokens, ``sentences``. With targets,
        ``answer``, or ``begin`` and ``end``, the tokens between which it lies. Without, the places of the context's
        tokens, ``places [time, 2]``, and its code points, ``text``, which a span is cut from.

        Raises:
            UserError: targets are asked for, and an answer is needed that is not there.
        """
        question, context = _tokens(example.question), _tokens(example.context)
        arrays: dict[str, Any] = {}
        for name, own, other in (("question", question, context), ("context", context, question)):
            theirs = {word.lower() for word in other.words}
            for array, values in self.words.encode([*own.words, SPECIAL[LINE_END]]).items():
                arrays[f"{name}.{array}"] = values
            arrays[f"{name}.matches"] = np.array([*(word.lower() in theirs for word in own.words), False], np.float32)
        size = len(context.words) + 1
        arrays["sentences"] = np.array([*context.ends, size], np.int64)
        if targets and self.answers is None:
            span = _span(example) if example.answers else (size - 1, size - 1)
            self.skipped += span is None
            begin, end = span or (SKIPPED, SKIPPED)
            arrays |= {"begin": np.array(begin), "end": np.array(end)}
            targets = span is not None
        elif targets:
            if not example.answers:
                raise UserError(f"question {example.id}: expected an answer to learn from, got none")
            arrays["answer"] = np.array(self._ids.get(example.answers[0].text, OTHER))
        else:
            arrays["places"] = np.array([*context.places, (0, 0)], np.int64)
            if self.answers is None:
                codes = example.context.encode("utf-32-le", "surrogatepass")
                arrays["text"] = np.frombuffer(codes, np.int32)
        return Encoded(arrays, max(size, len(question.words) + 1), int(targets))

    def reload(self, settings: ReaderSettings) -> None:
        """As in :class:`~recurra.models.task.Codec`."""
        self.words.reload(settings)

    def summary(self) -> str | None:
        """How many answers are not learnt from."""
        return (
            f"questions passed over, their answers not where they are said to be: {self.skipped:,}"
            if self.skipped
            else None
        )

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "words": self.words.to_mapping(),
            "answers": None if self.answers is None else list(self.answers.items()),
            "longest_answer": self.longest_answer,
            "unanswerable": self.unanswerable,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        answers = None if mapping["answers"] is None else dict(mapping["answers"])
        sizes = {name: mapping[name] for name in ("longest_answer", "unanswerable")}
        return cls(Words.from_mapping(mapping["words"]), answers, **sizes)


def _texts(examples: Sequence[Question]) -> Iterator[Sequence[str]]:
    """The words of all questions and of each context, once, each with its end mark."""
    seen: set[str] = set()
    for example in examples:
        yield (*_tokens(example.question).words, SPECIAL[LINE_END])
        if example.context not in seen:
            seen.add(example.context)
            yield (*_tokens(example.context).words, SPECIAL[LINE_END])


def _span(example: Question) -> tuple[int, int] | None:
    """The first and the last token of a question's first answer, which may begin and end within a token.

    None where it is not in its place, or has neither word nor sign in it.
    """
    text, start = example.answers[0]
    if start is None or start < 0 or not example.context.startswith(text, start):
        return None
    places = _tokens(example.context).places
    touched = [k for k, (begin, end) in enumerate(places) if begin < start + len(text) and end > start]
    return (touched[0], touched[-1]) if touched else None


# ---- the network -----------------------------------------------------------------------------------------------------


class _Flow(nn.Module):
    """Tokens of the text beside what they find in the question, and the question in them (Seo et al. 2017, layer 4)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.of_context = nn.Linear(features, 1)
        self.of_question = nn.Linear(features, 1, bias=False)
        self.of_both = nn.Parameter(torch.randn(features) * features**-0.5)
        self.merged = nn.Linear(4 * features, features)

    def forward(self, context: Tensor, valid: Tensor, question: Tensor, asked: Tensor) -> Tensor:
        """Return ``[T, N, F]``.

        Args:
            context: states ``[T, N, F]``.
            valid: which of them are there, ``[T, N]``.
            question: states ``[J, N, F]``.
            asked: which of them are there, ``[J, N]``.
        """
        own, other = context.transpose(0, 1), question.transpose(0, 1)
        scores = torch.bmm(own * self.of_both, other.transpose(1, 2))  # [N, T, J]
        scores = scores + self.of_context(own) + self.of_question(other).transpose(1, 2)
        scores = scores.masked_fill(~asked.t()[:, None], -torch.inf)  # there is an end mark at least
        found = torch.bmm(scores.softmax(2).to(other.dtype), other)
        shares = scores.amax(2).masked_fill(~valid.t(), -torch.inf).softmax(1)
        asked_for = torch.bmm(shares[:, None].to(own.dtype), own)  # [N, 1, F]
        merged = torch.cat((own, found, own * found, own * asked_for), 2)
        return F.relu(self.merged(merged)).transpose(0, 1)


class _Found(NamedTuple):
    """What was looked up."""

    memory: Tensor  # [S, N, F]
    places: Tensor  # which of it is there, bool [S, N]
    asked: Tensor  # the question's vector, [N, F]
    found: Tensor  # after the last hop, [N, F]
    weights: list[Tensor]  # of each hop, [N, S]


class Reader(TaskModel):
    """A network that answers questions about a text.

    A prediction is ``{"answer": text, "start": character of the context where it begins, "probability": p}``. ``start``
    is None where answers are words, and where a span is empty: the question has no answer, which is said only if
    training had such questions, or the text has no words. A span stands in the context exactly as it is written.

    Args:
        settings: with nothing left to choose.
        codec: of the training examples.
    """

    codec_type: ClassVar[type[Codec[Any]]] = ReaderCodec
    settings: ReaderSettings
    codec: ReaderCodec

    def __init__(self, settings: ReaderSettings, codec: ReaderCodec) -> None:
        super().__init__(settings, codec)
        assert settings.hops is not None
        assert settings.longest_answer is not None
        self.words = WordReader(settings, codec.words)
        self.encoder = Encoder(settings, self.words.output_size + 1)
        size = self.encoder.output_size
        self.question = Pooling("attention", size)
        if settings.memory == "sentences":
            self.sentence = Pooling("attention", size)
        else:
            self.flow = _Flow(size)
        self.second = Encoder(settings, size)
        self.attention = Attention(2 * size, size, "additive", hidden_size=size)
        self.update = nn.GRUCell(size, size)
        if codec.answers is not None:
            self.output = FullSoftmax(2 * size, [0, *codec.answers.values()])
        else:
            self.begin, self.end, self.begun = nn.Linear(size, size), nn.Linear(size, size), nn.GRUCell(size, size)

    @classmethod
    def settle(cls, settings: ReaderSettings, examples: Sequence[Question], codec: ReaderCodec) -> ReaderSettings:
        """Choose the answer from the codec, and memory, hops and sizes by it.

        Raises:
            UserError: spans are to be found in a memory of sentences.
        """
        spans = codec.answer == "span"
        memory = settings.memory
        if memory is None:
            several = fmean(len(_tokens(example.context).ends) for example in examples[:EXAMINED]) >= 2
            memory = "sentences" if several and not spans else "tokens"
        if spans and memory == "sentences":
            raise UserError("a memory of sentences cannot say where a span begins; use memory tokens")
        return replace(
            settle_words(settings, codec.words),
            answer=codec.answer,
            memory=memory,
            hops=settings.hops or (1 if spans else 3),
            longest_answer=settings.longest_answer or codec.longest_answer,
        )

    def loss(self, batch: ExampleBatch) -> Tensor:
        """Summed -log p of the answers; a span's is that of its first token and that of its last."""
        found = self._look_up(batch)
        if self.codec.answers is not None:
            return self.output.loss(torch.cat((found.found, found.asked), 1), batch.arrays["answer"])
        kept = (batch.arrays["begin"] != SKIPPED).nonzero()[:, 0]
        parts = zip(self._spans(found), ("begin", "end"), strict=True)
        return torch.stack([-scores[batch.arrays[name][kept], kept].sum() for scores, name in parts]).sum()

    def predict(self, batch: ExampleBatch, *, attention: bool = False) -> list[Any]:
        """As in :class:`~recurra.models.task.TaskModel`.

        Args:
            batch: encoded without targets.
            attention: add to each prediction ``"places"``, where sentences or tokens of the context begin and end, in
                characters, and ``"attention"``, a list for each hop of how much it took from each; what is missing to 1
                is what it took from the end mark.
        """
        found = self._look_up(batch)
        predictions = self._best_words(found) if self.codec.answers is not None else self._best_spans(found, batch)
        if attention:
            for column, prediction in enumerate(predictions):
                places = self._places(batch, column)
                prediction["places"] = places
                prediction["attention"] = [weights[column, : len(places)].tolist() for weights in found.weights]
        return predictions

    @torch.no_grad()
    def look(self, example: Question) -> Look:
        """Where each hop looks in the context: at which sentences, or tokens, or at the mark of its end."""
        batch = collate([self.codec.encode(example, targets=False)]).to(next(self.parameters()).device)
        [prediction] = self.predict(batch, attention=True)
        return Look(
            [f"hop {hop}" for hop in range(1, len(prediction["attention"]) + 1)],
            [*(example.context[begin:end] for begin, end in prediction["places"]), SPECIAL[LINE_END]],
            [[*shares, max(0.0, 1 - sum(shares))] for shares in prediction["attention"]],
        )

    # ---- reading --------------------------------------------------------------------------------------------------

    def _look_up(self, batch: ExampleBatch) -> _Found:
        lengths = batch.lengths["question.words"]
        states, _ = self.encoder(self._vectors(batch, "question"), lengths)
        asked = self.question(states, lengths)
        if self.settings.memory == "sentences":
            ends = batch.lengths["sentences"]
            memory, _ = self.second(self._sentences(batch), ends)
        else:
            ends = batch.lengths["context.words"]
            context, _ = self.encoder(self._vectors(batch, "context"), ends)
            valid, other = (
                valid_steps(each.to(asked.device), len(x)) for each, x in ((ends, context), (lengths, states))
            )
            memory, _ = self.second(self.flow(context, valid, states, other), ends)
        prepared = self.attention.prepare(memory, ends)
        found, weights = asked, []
        for _ in range(self.settings.hops or 0):
            context, shares = self.attention(torch.cat((found, asked), 1), prepared)
            found = self.update(context, found)
            weights.append(shares)
        return _Found(memory, prepared.valid.t(), asked, found, weights)

    def _vectors(self, batch: ExampleBatch, name: str) -> Tensor:
        """Word vectors of question or context, and whether the other has the word, ``[T, N, E + 1]``."""
        own = f"{name}."
        arrays = {key.removeprefix(own): array for key, array in batch.arrays.items() if key.startswith(own)}
        lengths = {key.removeprefix(own): ends for key, ends in batch.lengths.items() if key.startswith(own)}
        matches = arrays.pop("matches")
        vectors = self.words(ExampleBatch(arrays, lengths, batch.size, batch.tokens))
        return torch.cat((vectors, matches[..., None].to(vectors.dtype)), 2)

    def _sentences(self, batch: ExampleBatch) -> Tensor:
        """A vector for each sentence, ``[S, N, F]``, zeros in padding; all those of the batch are read side by side."""
        vectors, ends = self._vectors(batch, "context"), batch.arrays["sentences"]
        valid = valid_steps(batch.lengths["sentences"].to(ends.device), len(ends))
        numbers, columns = valid.nonzero(as_tuple=True)
        ends = ends.masked_fill(~valid, 0)
        begins = ends.roll(1, 0).index_fill(0, ends.new_zeros(1), 0)[numbers, columns]
        sizes = ends[numbers, columns] - begins
        steps = torch.arange(int(sizes.max()), device=ends.device)[:, None]
        places = (begins + steps).clamp(max=len(vectors) - 1)  # what lies behind a sentence's end is not read
        states, _ = self.encoder(vectors[places, columns], sizes.cpu())
        found: Tensor = self.sentence(states, sizes.cpu())
        return found.new_zeros(*valid.shape, found.shape[1]).index_put((numbers, columns), found)

    # ---- answering ------------------------------------------------------------------------------------------------

    def _spans(self, found: _Found) -> tuple[Tensor, Tensor]:
        """Log-probabilities of each token to be the answer's first, and its last, ``[T, N]``: -inf in padding.

        The last is asked for knowing of the first what attention would find there (Wang and Jiang 2017, "Machine
        Comprehension Using Match-LSTM and Answer Pointer", equations 7 and 8).
        """
        begins = self._pointed(self.begin, found, found.found)
        first = torch.einsum("tn,tnf->nf", begins.exp().to(found.memory.dtype), found.memory)
        return begins, self._pointed(self.end, found, self.begun(first, found.found))

    def _pointed(self, layer: nn.Linear, found: _Found, query: Tensor) -> Tensor:
        scores: Tensor = (layer(found.memory) * query).sum(2).masked_fill(~found.places, -torch.inf)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(0)

    def _best_words(self, found: _Found) -> list[Any]:
        log_probs = self.output.log_probs(torch.cat((found.found, found.asked), 1))
        best = log_probs[:, OTHER + 1 :].max(1)
        answers = [self.codec.choices[OTHER + 1 + number] for number in best.indices.tolist()]
        shares = best.values.exp().tolist()
        return [{"answer": a, "start": None, "probability": p} for a, p in zip(answers, shares, strict=True)]

    def _best_spans(self, found: _Found, batch: ExampleBatch) -> list[Any]:
        begins, ends = self._spans(found)
        lengths = batch.lengths["context.words"].to(begins.device)
        columns = torch.arange(batch.size, device=begins.device)
        marks = (lengths - 1, columns)  # of the end: the place of no answer
        without = begins[marks] + ends[marks]
        begins, ends = (scores.index_put(marks, scores.new_tensor(-torch.inf)) for scores in (begins, ends))
        best = begins.new_full((batch.size,), -torch.inf)
        first, last = torch.zeros_like(columns), torch.zeros_like(columns)
        assert self.settings.longest_answer is not None
        for more in range(min(self.settings.longest_answer, len(begins))):  # tokens beyond the first
            highest = (begins[: len(begins) - more] + ends[more:]).max(0)
            better = highest.values > best
            best = torch.where(better, highest.values, best)
            first = torch.where(better, highest.indices, first)
            last = torch.where(better, highest.indices + more, last)
        empty = best == -torch.inf
        if self.codec.unanswerable:
            empty = empty | (without > best)
        shares = torch.where(empty, without, best).exp().tolist()
        places, text = batch.arrays["places"].cpu(), batch.arrays["text"].cpu().numpy()
        start = places[first.cpu(), columns.cpu(), 0].tolist()
        stop = places[last.cpu(), columns.cpu(), 1].tolist()
        predictions = []
        for column, (nothing, share) in enumerate(zip(empty.tolist(), shares, strict=True)):
            place = None if nothing else start[column]
            codes = text[:0] if nothing else text[start[column] : stop[column], column]
            answer = np.ascontiguousarray(codes, "<i4").tobytes().decode("utf-32-le", "surrogatepass")
            predictions.append({"answer": answer, "start": place, "probability": share})
        return predictions

    def _places(self, batch: ExampleBatch, column: int) -> list[list[int]]:
        """Where each place of the memory begins and ends in the context, in characters; without the end mark."""
        tokens = batch.arrays["places"][: int(batch.lengths["places"][column]) - 1, column].tolist()
        if self.settings.memory == "tokens":
            return tokens
        ends = batch.arrays["sentences"][: int(batch.lengths["sentences"][column]) - 1, column].tolist()
        return [[tokens[begin][0], tokens[end - 1][1]] for begin, end in zip([0, *ends], ends, strict=False)]

"""Every kind of model that is no language model: what it reads, what it is measured by, what it writes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from recurra import metrics
from recurra.config import UserError, setting
from recurra.models.classifier import Classifier, ClassifierSettings
from recurra.models.reader import Reader, ReaderSettings
from recurra.models.tagger import Tagger, TaggerSettings
from recurra.models.task import TaskModel
from recurra.models.transcriber import Transcriber, TranscriberSettings
from recurra.models.translation import one_line
from recurra.models.translator import Translator, TranslatorSettings
from recurra.text import tag_schemes
from recurra.text.readers import (
    Labelled,
    Pair,
    Question,
    Recording,
    Sentence,
    held_out,
    read_labelled,
    read_pairs,
    read_questions,
    read_recordings,
    read_sentences,
    write_sentences,
)

__all__ = ["TASKS", "Say", "Task", "several"]

Say = Callable[[str], None]
Tagged = Iterable[tuple[Any, Any]]  # examples with their predictions


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How examples are read and split."""

    encoding: str = setting("utf-8", "encoding of the files")
    errors: str = setting(
        "strict", "what to do with bytes that are not in the encoding", choices=("strict", "replace", "ignore")
    )
    valid: str | None = setting(None, "examples to validate on; a part of the training data by default")
    test: str | None = setting(None, "examples to test on; a part of the training data by default")
    valid_fraction: float = setting(0.1, "part of the data set aside for validation", minimum=0, maximum=0.5)
    test_fraction: float = setting(0.1, "part of the data set aside as test", minimum=0, maximum=0.5)


@dataclass(frozen=True, kw_only=True)
class TaggerData(DataSettings):
    """Sentences in columns."""

    format: str | None = setting(None, "of the data", choices=("conllu", "columns", "lines"))
    word_column: str | None = setting(None, "column of the words, by number or CoNLL-U name; the first by default")
    tag_column: str | None = setting(
        None, "column of the tags, by number or CoNLL-U name; upos, or the last, by default"
    )


@dataclass(frozen=True, kw_only=True)
class ClassifierData(DataSettings):
    """Texts with their classes."""

    format: str | None = setting(None, "of the data", choices=("tsv", "csv", "jsonl", "lines", "classes"))
    text_column: str | None = setting(None, "column or key of the text, by name or number")
    label_column: str | None = setting(None, "column or key of the class, by name or number")
    header: bool | None = setting(None, "whether the first row names the columns")


@dataclass(frozen=True, kw_only=True)
class TranslatorData(DataSettings):
    """Pairs of texts; of parallel files, name both: `--valid dev.en,dev.fr`."""

    format: str | None = setting(None, "of the data", choices=("tsv", "csv", "jsonl", "parallel"))
    source_column: str | None = setting(None, "column or key of the source, by name or number")
    target_column: str | None = setting(None, "column or key of the target, by name or number")
    header: bool | None = setting(None, "whether the first row names the columns")


@dataclass(frozen=True, kw_only=True)
class ReaderData(DataSettings):
    """Questions on texts."""

    format: str | None = setting(None, "of the data", choices=("squad", "babi", "jsonl"))


@dataclass(frozen=True, kw_only=True)
class TranscriberData(DataSettings):
    """Recordings and what they say."""

    path_column: str | None = setting(None, "column or key of the recording's path, by name or number")
    transcript_column: str | None = setting(None, "column or key of the transcript, by name or number")
    header: bool | None = setting(None, "whether the manifest's first row names the columns")


class Task(NamedTuple):
    """A kind of model.

    Attributes:
        title: what it is, in a few words.
        unit: what it predicts, many of it: words, texts.
        data: the dataclass of how its examples are read.
        settings: that of the model.
        model: its class.
        open: reads examples from sources; see :meth:`read`.
        key: what an example is known by where a part is held out: examples of one key stay together.
        example: what a user gives in Python, as an example; a UserError where it cannot be one.
        known: whether an example has what is to be predicted.
        reads: what the prediction depends on; examples that share it are predicted once where models are evaluated.
        score: how near predictions come to the examples, as JSON has it; named as in the field.
        check: refuses examples that could not be scored because something is not installed.
        metric: which of the scores the best model is chosen by, the first that there is; a minus before one that is
            better when lower. Empty: by the loss.
        write: writes predictions in a form that its users know; the number is how many were asked for of each example.
        training: how it is trained where that is left open (None).
        quick: options of decoding while it trains.
        decoding: names of the options of decoding that it takes.
        names: what a prediction's JSON says of which example it is of.
    """

    title: str
    unit: str
    data: type[Any]
    settings: type[Any]
    model: type[TaskModel]
    open: Callable[..., Iterator[Any]]
    key: Callable[[Any], str]
    example: Callable[[Any], Any]
    known: Callable[[Any], bool]
    reads: Callable[[Any], Hashable]
    score: Callable[[Sequence[Any], Sequence[Any]], dict[str, Any]]
    metric: tuple[str, ...]
    write: Callable[[Tagged, TextIO, int], None]
    training: Mapping[str, Any]
    check: Callable[[Sequence[Any]], None] = lambda examples: None
    quick: Mapping[str, Any] = {}
    decoding: tuple[str, ...] = ()
    names: Callable[[Any], Mapping[str, str]] = lambda example: {}

    def read(
        self, sources: Sequence[str], settings: Any, *, labelled: bool = True, say: Say = lambda _: None
    ) -> Iterator[Any]:
        """Examples, one by one.

        Args:
            sources: files, folders, globs or ``-``.
            settings: of :attr:`data`.
            labelled: whether what is to be predicted must be there.
            say: is told at the end what was passed over.

        Raises:
            UserError: while reading: what is wrong with which file, in which line.
        """
        tally: Counter[str] = Counter()
        common = {"labelled": labelled, "encoding": settings.encoding, "errors": settings.errors, "tally": tally}
        yield from self.open(list(sources), settings, common)
        for what, count in tally.items():
            say(f"{', '.join(sources)}: {count:,} {what}")

    def write_json(self, predicted: Tagged, file: TextIO, _: int = 1) -> None:
        """A line of JSON for each prediction, with :attr:`names` of its example."""
        for example, prediction in predicted:
            names = self.names(example)
            print(
                json.dumps({**names, **prediction} if names else prediction, ensure_ascii=False), file=file, flush=True
            )

    def splits(self, sources: Sequence[str], settings: Any, say: Say = lambda _: None) -> dict[str, list[Any]]:
        """The examples of ``train``, ``valid`` and ``test``.

        Parts that have no file of their own are held out from the training data by a hash of each example, so that they
        are the same every time.
        """
        train = list(self.read(sources, settings, say=say))
        found = {}
        for part in ("test", "valid"):
            source, fraction = getattr(settings, part), getattr(settings, f"{part}_fraction")
            if source is not None:
                found[part] = list(self.read(several(source), settings, say=say))
            elif fraction:
                train, found[part] = held_out(train, fraction, self.key, part=part)
        return {"train": train, "valid": found.get("valid", []), "test": found.get("test", [])}

    def chosen_by(self, scores: Mapping[str, Any]) -> tuple[str, float]:
        """What the best model has most of: its name in :attr:`metric`, and how much."""
        for name in self.metric:
            if scores.get(name.removeprefix("-")) is not None:
                return name, -float(scores[name[1:]]) if name.startswith("-") else float(scores[name])
        raise AssertionError(f"none of {self.metric} is in {list(scores)}")


def several(text: str) -> list[str]:
    """Paths between commas; a comma that is part of a name which is there is none of these."""
    parts = text.split(",")
    end = next((end for end in range(len(parts), 0, -1) if Path(",".join(parts[:end])).exists()), 1)
    return [",".join(parts[:end]), *(several(",".join(parts[end:])) if parts[end:] else ())]


def _column(name: str | None) -> str | int | None:
    """A column's number or name."""
    return int(name) if name is not None and name.removeprefix("-").isdecimal() else name


# ---- tagger ---------------------------------------------------------------------------------------------------------


def _open_sentences(sources: list[str], settings: TaggerData, common: dict[str, Any]) -> Iterator[Sentence]:
    columns: dict[str, Any] = {"word": _column(settings.word_column), "tag": _column(settings.tag_column)}
    return read_sentences(sources, format=settings.format, **columns, **common)


def _sentence(given: Any) -> Sentence:
    if isinstance(given, Sentence):
        return given
    words = given.split() if isinstance(given, str) else given
    if isinstance(words, list | tuple) and all(isinstance(word, str) for word in words):
        return Sentence(tuple(words))
    raise _unfit("a sentence, or a list of its words", given)


def _unfit(expected: str, given: Any) -> UserError:
    return UserError(f"expected {expected}, got {type(given).__name__}")


def _tags(examples: Sequence[Sentence]) -> list[Sequence[str]]:
    return [example.tags or () for example in examples]


def _check_tags(examples: Sequence[Sentence]) -> None:
    if tag_schemes.detect_scheme(_tags(examples)) is not None:
        metrics.require("seqeval")


def _score_tags(examples: Sequence[Sentence], predictions: Sequence[list[str]]) -> dict[str, Any]:
    """Spans as conlleval counts them, whatever the schemes of the two sides, if either has spans; else accuracy."""
    sides = (_tags(examples), predictions)
    if all(tag_schemes.detect_scheme(side) is None for side in sides):
        gold, guessed = ([tag for tags in side for tag in tags] for side in sides)
        return {"accuracy": metrics.accuracy(gold, guessed), "words": len(gold)}
    gold_tags, guessed_tags = ([list(tag_schemes.convert(tags, "bio")) for tags in side] for side in sides)
    return dataclasses.asdict(metrics.spans(gold_tags, guessed_tags))


def _write_tags(predicted: Tagged, file: TextIO, _: int) -> None:
    write_sentences(predicted, file)


# ---- classifier -----------------------------------------------------------------------------------------------------


def _open_labelled(sources: list[str], settings: ClassifierData, common: dict[str, Any]) -> Iterator[Labelled]:
    columns: dict[str, Any] = {"text": _column(settings.text_column), "label": _column(settings.label_column)}
    return read_labelled(sources, format=settings.format, header=settings.header, **columns, **common)


def _labelled(given: Any) -> Labelled:
    if isinstance(given, Labelled):
        return given
    if isinstance(given, str):
        return Labelled(given)
    if _are_texts(given):
        return Labelled(*given)
    raise _unfit("a text, or a pair of text and class", given)


def _are_texts(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and all(isinstance(one, str) for one in given)


def _score_labels(examples: Sequence[Labelled], predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gold = [str(example.label) for example in examples]
    return dataclasses.asdict(metrics.classification(gold, [each["label"] for each in predictions]))


def _write_labels(predicted: Tagged, file: TextIO, _: int) -> None:
    """A line for each text: its class, and the probability of every class, the likeliest first."""
    for _, prediction in predicted:
        ranked = sorted(prediction["probabilities"].items(), key=lambda item: -item[1])
        print(prediction["label"], *(f"{label} {p:.4f}" for label, p in ranked), sep="\t", file=file, flush=True)


# ---- translator -----------------------------------------------------------------------------------------------------


def _open_pairs(sources: list[str], settings: TranslatorData, common: dict[str, Any]) -> Iterator[Pair]:
    columns: dict[str, Any] = {"source": _column(settings.source_column), "target": _column(settings.target_column)}
    return read_pairs(sources, format=settings.format, header=settings.header, **columns, **common)


def _pair(given: Any) -> Pair:
    if isinstance(given, Pair):
        return given
    if isinstance(given, str):
        return Pair(given)
    if _are_texts(given):
        return Pair(*given)
    raise _unfit("a text, or a pair of source and target", given)


def _score_translations(examples: Sequence[Pair], predictions: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    """BLEU and chrF line by line, as sacrebleu has them of two files.

    Where sources come more than once, also with each source once, and all of its targets as references: ``bleu_multi``
    and ``chrf_multi``.
    """
    texts = [prediction[0]["text"] for prediction in predictions]
    found = dataclasses.asdict(metrics.translation(texts, [str(example.target) for example in examples]))
    references: dict[str, list[str]] = {}
    hypotheses: dict[str, str] = {}
    for example, text in zip(examples, texts, strict=True):
        references.setdefault(example.source, []).append(str(example.target))
        hypotheses.setdefault(example.source, text)
    if len(references) < len(examples):
        multi = metrics.translation(list(hypotheses.values()), list(references.values()))
        found |= {"bleu_multi": multi.bleu, "chrf_multi": multi.chrf}
        found |= {"bleu_multi_signature": multi.bleu_signature, "chrf_multi_signature": multi.chrf_signature}
    return {**found, "sources": len(references), "pairs": len(examples)}


def _write_translations(predicted: Tagged, file: TextIO, n_best: int) -> None:
    """The best translation of each line; where several are asked for, number, text and score in columns."""
    for number, (_, found) in enumerate(predicted):
        if n_best == 1:
            print(found[0]["text"], file=file, flush=True)
            continue
        for each in found:
            print(number, each["text"], f"{each['score']:.4f}", sep="\t", file=file, flush=True)


# ---- reader ---------------------------------------------------------------------------------------------------------


def _open_questions(sources: list[str], settings: ReaderData, common: dict[str, Any]) -> Iterator[Question]:
    return read_questions(sources, format=settings.format, **common)


def _question(given: Any) -> Question:
    if isinstance(given, Question):
        return given
    if _are_texts(given):
        return Question("", *given)
    if isinstance(given, str):
        raise UserError("expected a pair of question and context, got a text alone: say what the question is about")
    raise _unfit("a question, or a pair of question and context", given)


def _score_answers(examples: Sequence[Question], predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    gold = [[answer.text for answer in example.answers] for example in examples]
    return dataclasses.asdict(metrics.reading(gold, [each["answer"] for each in predictions]))


def _write_answers(predicted: Tagged, file: TextIO, _: int) -> None:
    """A line for each question: its id and the answer, in which white space is one space."""
    for question, prediction in predicted:
        print(question.id, one_line(prediction["answer"]), sep="\t", file=file, flush=True)


# ---- transcriber ----------------------------------------------------------------------------------------------------


def _open_recordings(sources: list[str], settings: TranscriberData, common: dict[str, Any]) -> Iterator[Recording]:
    columns: dict[str, Any] = {"path": _column(settings.path_column), "transcript": _column(settings.transcript_column)}
    return read_recordings(sources, header=settings.header, **columns, **common)


def _recording(given: Any) -> Recording:
    if isinstance(given, Recording):
        return given
    path, transcript = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if isinstance(path, str | Path) and isinstance(transcript, str | None):
        return Recording(str(path), Path(path), transcript)
    raise _unfit("the path of a recording, or a pair of path and transcript", given)


def _score_transcripts(examples: Sequence[Recording], predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = metrics.transcription([each["text"] for each in predictions], [str(each.transcript) for each in examples])
    return dataclasses.asdict(found)


def _write_transcripts(predicted: Tagged, file: TextIO, n_best: int) -> None:
    """A line for each recording: its name and what it says; where several are asked for, the score as well."""
    for recording, prediction in predicted:
        if n_best == 1:
            print(recording.name, prediction["text"], sep="\t", file=file, flush=True)
            continue
        for each in prediction.get("alternatives") or [{"text": prediction["text"], "score": prediction["log_prob"]}]:
            print(recording.name, each["text"], f"{each['score']:.4f}", sep="\t", file=file, flush=True)


TASKS = {
    "tagger": Task(
        title="tagger",
        unit="words",
        data=TaggerData,
        settings=TaggerSettings,
        model=Tagger,
        open=_open_sentences,
        key=lambda example: " ".join(example.words),
        example=_sentence,
        known=lambda example: example.tags is not None,
        reads=lambda example: example.words,
        score=_score_tags,
        check=_check_tags,
        metric=("f1", "accuracy"),
        write=_write_tags,
        training={"batch_size": 32, "batch_tokens": 4096, "learning_rate": 3e-3},
    ),
    "classifier": Task(
        title="classifier",
        unit="texts",
        data=ClassifierData,
        settings=ClassifierSettings,
        model=Classifier,
        open=_open_labelled,
        key=lambda example: one_line(example.text),
        example=_labelled,
        known=lambda example: example.label is not None,
        reads=lambda example: example.text,
        score=_score_labels,
        metric=("accuracy",),
        write=_write_labels,
        training={"batch_size": 32, "batch_tokens": 8192, "learning_rate": 2e-3},
    ),
    "translator": Task(
        title="translator",
        unit="tokens",
        data=TranslatorData,
        settings=TranslatorSettings,
        model=Translator,
        open=_open_pairs,
        key=lambda example: one_line(example.source),
        example=_pair,
        known=lambda example: example.target is not None,
        reads=lambda example: example.source,
        score=_score_translations,
        check=lambda examples: metrics.require("sacrebleu"),
        metric=(),
        write=_write_translations,
        training={"batch_size": 128, "batch_tokens": 4096, "learning_rate": 2e-3},
        decoding=("beam", "n_best", "length_penalty", "max_length"),
    ),
    "reader": Task(
        title="reader",
        unit="questions",
        data=ReaderData,
        settings=ReaderSettings,
        model=Reader,
        open=_open_questions,
        key=lambda example: example.story or example.context,
        example=_question,
        known=lambda example: bool(example.answers or example.id),  # what is read has an id, and no answer is one, too
        reads=lambda example: (example.question, example.context),
        score=_score_answers,
        metric=("exact_match",),
        write=_write_answers,
        names=lambda example: {"id": example.id},
        training={"batch_size": 32, "batch_tokens": 16384, "learning_rate": 3e-3},
    ),
    "transcriber": Task(
        title="transcriber",
        unit="symbols",
        data=TranscriberData,
        settings=TranscriberSettings,
        model=Transcriber,
        open=_open_recordings,
        key=lambda example: example.name,
        example=_recording,
        known=lambda example: example.transcript is not None,
        reads=lambda example: example.path,
        score=_score_transcripts,
        metric=("-cer",),
        write=_write_transcripts,
        names=lambda example: {"path": example.name},
        training={"batch_size": 32, "batch_tokens": 20000, "learning_rate": 3e-3},
        decoding=("beam", "n_best", "language_model", "lm_weight", "word_bonus"),
    ),
}

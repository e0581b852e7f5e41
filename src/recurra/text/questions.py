"""Questions about a text: SQuAD's JSON, the same a question a line (.jsonl), and bAbI's stories."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recurra.config import UserError
from recurra.text.corpora import Sources
from recurra.text.documents import Document
from recurra.text.tables import nonempty, open_documents, parsed_json, rows, suffix, table_format

EMPTY_QUESTIONS = "questions skipped that were empty"
MOVED = "answers moved to where their text stands in the context"
FORMATS = ("squad", "jsonl", "babi")

_STORY_LINE = re.compile(r"([0-9]+) (.*)\Z", re.DOTALL)


class Answer(NamedTuple):
    """An answer's text and the index of the context's character at which it begins; None if it is no part of it."""

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        id: What the answer is handed in under.
        question: The question.
        context: The text it is about; the lines of a story, a sentence each.
        answers: All that are right; none where there is none in the context, or none is known.
        supports: Indices of the context's lines that the answer follows from, where the file tells them.
        story: What questions have in common whose contexts are one story; empty where the context says it itself.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    supports: tuple[int, ...] = ()
    story: str = ""


def read_questions(
    sources: Sources,
    *,
    format: str | None = None,
    labelled: bool = True,
    encoding: str = "utf-8",
    errors: str = "strict",
    tally: Counter[str] | None = None,
) -> Iterator[Question]:
    """Read questions one by one; a file of SQuAD's is one JSON document and has to be held whole.

    ``squad`` is SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018); a question that ``is_impossible`` has no answers,
    whatever answers stand there. ``jsonl`` has an object a line with ``question``, ``context``, and, where known,
    ``id`` and ``answers`` like SQuAD's. ``babi`` (Weston et al. 2015) has numbered lines of stories: a question's
    context is the story up to it, its one answer a word that need not be in there. Ids are made from file, as it was
    given, and line where there are none.

    An answer that does not stand at its place is moved, and counted, if its text is in the context exactly once. Empty
    questions are skipped and counted, if `labelled`.

    Args:
        sources: Files, folders, globs or ``-``.
        format: One of the three. None tells it from each file: ``jsonl`` and ``squad`` (.json) by the suffix, else
            ``squad`` if the file begins as JSON does, with ``{`` or ``[``, else ``babi``.
        labelled: Whether a question about whose answers nothing is said is an error.
        encoding: The files' encoding.
        errors: What to do with bytes that are not in it: ``strict``, ``replace``, ``ignore``.
        tally: Counts, by what happened, the answers that were moved and the questions that were passed over.

    Raises:
        UserError: while reading: a source is not there, empty or not text; not JSON, or not of this form; an answer
            that is not in its context; two questions of one id; a story line without a number; no question.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"expected a format of questions out of {', '.join(FORMATS)}, got {format!r}")
    documents = open_documents(sources, encoding, errors)

    def read() -> Iterator[Question]:
        seen: dict[str, str] = {}  # the file that each id is in
        for document in documents:
            for question in _questions(document, format, labelled, tally):
                if first := seen.get(question.id):
                    other = f", one of them in {first}" if first != document.name else ""
                    raise UserError(
                        f"{document.name}: two questions have the id {question.id!r}{other}; answers are handed in by"
                        " id, so make them differ"
                    )
                seen[question.id] = document.name
                if question.question.strip() or not labelled:
                    yield question
                elif tally is not None:
                    tally[EMPTY_QUESTIONS] += 1

    return nonempty(read(), sources, "question")


def _questions(
    document: Document, format: str | None, labelled: bool, tally: Counter[str] | None
) -> Iterator[Question]:
    kind = format or ("jsonl" if table_format(document) == "jsonl" else None)
    if kind is None:
        first = next((line for line in document.lines() if line.strip()), "")
        is_json = suffix(document.name) == ".json" or first.lstrip().startswith(("{", "["))
        kind = "squad" if is_json else "babi"
    if kind == "squad":
        return _squad(document, labelled, tally)
    return _json_lines(document, labelled, tally) if kind == "jsonl" else _stories(document, labelled)


# ---- spans ----------------------------------------------------------------------------------------------------------


def _squad(document: Document, labelled: bool, tally: Counter[str] | None) -> Iterator[Question]:
    name = document.name
    try:
        value = parsed_json("\n".join(document.lines()), name)
    except UserError as error:
        raise UserError(f"{error}; expected SQuAD's JSON (with a question a line: --format jsonl)") from None
    if not isinstance(value, Mapping) or "data" not in value:
        there = f"no key 'data'; there are {', '.join(map(repr, value)) or 'none'}"
        found = there if isinstance(value, Mapping) else f"got {json.dumps(value)[:40]}"
        raise UserError(f"{name}: expected SQuAD's JSON, an object with 'data': {found}")
    content = _Part(value, name)
    for article in content.parts("data"):
        for paragraph in article.parts("paragraphs"):
            context = paragraph.text("context")
            for entry in paragraph.parts("qas"):
                identifier = str(number) if isinstance(number := entry.value.get("id"), int) else entry.text("id")
                where = f"{name}, question {identifier!r}"
                yield _question(_Part(entry.value, where), identifier, context, labelled, tally)


def _json_lines(document: Document, labelled: bool, tally: Counter[str] | None) -> Iterator[Question]:
    columns = dict.fromkeys(("question", "context", "id", "answers", "is_impossible"))
    needed = ["question", "context", "answers"] if labelled else ["question", "context"]
    for row in rows(document, "jsonl", columns, needed=needed):
        identifier = row.optional_text("id", numbers=True) or f"{document.name}:{row.line}"
        entry = {name: value for name, value in row.fields.items() if value is not None}
        where = f"{row.where}, question {identifier!r}"
        yield _question(_Part(entry, where), identifier, row.text("context"), labelled, tally)


class _Part:
    """A JSON object, and where it stands for messages."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected a JSON object, got {str(value)[:40]!r}")
        self.value = value
        self.where = where

    def text(self, key: str) -> str:
        value = self._field(key)
        if not isinstance(value, str):
            raise UserError(f"{self.where}: expected {key!r} to be text, got {str(value)[:40]!r}")
        return value

    def parts(self, key: str) -> Iterator[_Part]:
        value = self._field(key)
        if not isinstance(value, list):
            raise UserError(f"{self.where}: expected {key!r} to be a list, got {str(value)[:40]!r}")
        return (_Part(item, f"{self.where}, {key}[{index}]") for index, item in enumerate(value))

    def _field(self, key: str) -> Any:
        if key not in self.value:
            there = ", ".join(map(repr, self.value)) or "none"
            raise UserError(f"{self.where}: no key {key!r}; there are {there}")
        return self.value[key]


def _question(entry: _Part, identifier: str, context: str, labelled: bool, tally: Counter[str] | None) -> Question:
    asked = entry.text("question")
    impossible = entry.value.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise UserError(f"{entry.where}: expected 'is_impossible' to be true or false, got {str(impossible)[:40]!r}")
    if impossible or ("answers" not in entry.value and not labelled):
        return Question(identifier, asked, context)
    answers = tuple(_answer(part, context, tally) for part in entry.parts("answers"))
    return Question(identifier, asked, context, answers)


def _answer(part: _Part, context: str, tally: Counter[str] | None) -> Answer:
    text = part.text("text")
    start = part.value.get("answer_start")
    if not text:
        raise UserError(f'{part.where}: the answer is empty; a question without an answer has "answers": []')
    if not isinstance(start, int) or isinstance(start, bool):
        raise UserError(f"{part.where}: expected 'answer_start' to be a whole number, got {str(start)[:40]!r}")
    if start >= 0 and context.startswith(text, start):
        return Answer(text, start)
    found = context.find(text)
    if found < 0:
        raise UserError(f"{part.where}: the answer {text[:60]!r} is not in the context")
    if context.find(text, found + 1) >= 0:
        raise UserError(
            f"{part.where}: the answer {text[:60]!r} is not at character {start} of the context, but in several places"
        )
    if tally is not None:
        tally[MOVED] += 1
    return Answer(text, found)


# ---- stories --------------------------------------------------------------------------------------------------------


def _stories(document: Document, labelled: bool) -> Iterator[Question]:
    sentences: list[str] = []
    places: dict[int, int] = {}  # the sentences' indices by their numbers in the story, in which questions count too
    last = first = 0
    for line_number, line in enumerate(document.lines(), start=1):
        if not line.strip():
            continue
        where = f"{document.name}, line {line_number}"
        match = _STORY_LINE.match(line)
        if match is None:
            raise UserError(f"{where}: expected a story's line, such as `1 Mary went home.`, got {line[:40]!r}")
        number, text = int(match[1]), match[2]
        if number == 1:
            sentences, places, first = [], {}, line_number
        elif number != last + 1:
            raise UserError(f"{where}: expected line {last + 1} of the story, or 1 for the next one, got {number}")
        last = number
        asked, tab, rest = text.partition("\t")
        if not tab and (labelled or not asked.rstrip().endswith("?")):
            places[number] = len(sentences)
            sentences.append(text.strip(" "))
            continue
        answer, _, facts = rest.partition("\t")
        if labelled and not answer.strip():
            raise UserError(f"{where}: the question has no answer")
        if not sentences:
            raise UserError(f"{where}: a question before the first line of its story")
        yield Question(
            f"{document.name}:{line_number}",
            asked.strip(" "),
            "\n".join(sentences),
            (Answer(answer.strip(), None),) if answer.strip() else (),
            _supports(facts, places, where),
            f"{Path(document.name).name}:{first}",
        )


def _supports(facts: str, places: Mapping[int, int], where: str) -> tuple[int, ...]:
    try:
        return tuple(places[int(fact)] for fact in facts.split())
    except (ValueError, KeyError):
        raise UserError(f"{where}: expected the numbers of story lines before it, got {facts[:40]!r}") from None

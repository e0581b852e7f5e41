"""Made-up texts in which a word comes a second time, so many tokens after the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError

__all__ = ["Batches", "CopyTask", "RecallBatch", "SentenceTask", "Task", "draw_batch", "example", "task_of"]

Ids = NDArray[np.int64]

EPOCH = 1_000  # batches; all of them are new, in every epoch
ITEM_WORDS = """
    tickets letter photographs recipe map poem report invitations essay drawings notes contract song diary receipt novel
    speech card list calendar form article script thesis passport plan lecture story booklet address poster label
"""
FILLER_WORDS = """
    and then but so while because the a it was in on at of to with there again very slow old new quiet late long morning
    evening day rain street shop door window office machine queue waited walked looked said came
"""
ITEMS, FILLER = tuple(ITEM_WORDS.split()), tuple(FILLER_WORDS.split())
PEOPLE = (("she", "her"), ("he", "his"))
WANTED = ("wanted", "tried", "hoped", "went")


class SentenceTask:
    """An item is named, other things happen, the item is said again.

        she wanted to print her TICKETS ... filler ... at last she printed her TICKETS

    Nothing between the two mentions says anything about the item; the person is the same in both.

    Args:
        distance: tokens between the mentions, the five before the second among them.
        items: how many there are to choose from.

    Attributes:
        vocabulary: every token; the items come first.
        items: how many of them are items.
        distance: as given.

    Raises:
        UserError: there is no room for the sentence's end, or there are not so many items.
    """

    least: ClassVar[int] = 5
    most_items: ClassVar[int] = len(ITEMS)

    def __init__(self, distance: int, items: int) -> None:
        _check_task(self, distance, items)
        self.distance, self.items = distance, items
        others = [word for person in PEOPLE for word in person] + [*WANTED, "last", "print", "printed", *FILLER]
        self.vocabulary = (*ITEMS[:items], *dict.fromkeys(others))
        self._ids = {word: i for i, word in enumerate(self.vocabulary)}
        self._filler = np.array([self._ids[word] for word in FILLER])

    def draw(self, examples: int, random: np.random.Generator) -> Ids:
        """Return texts [time, examples], time being distance + 7; the last token is the item."""
        item = random.integers(self.items, size=examples)
        subject, owner = np.array([[self._ids[word] for word in person] for person in PEOPLE])[
            random.integers(2, size=examples)
        ].T
        wanted = np.array([self._ids[word] for word in WANTED])[random.integers(len(WANTED), size=examples)]
        filler = random.choice(self._filler, (self.distance - self.least, examples))
        fixed = {word: np.full(examples, self._ids[word]) for word in ("to", "print", "at", "last", "printed")}
        opening = [subject, wanted, fixed["to"], fixed["print"], owner, item]
        closing = [fixed["at"], fixed["last"], subject, fixed["printed"], owner, item]
        return np.stack([*opening, *filler, *closing])


class CopyTask:
    """A symbol, noise, a mark, the symbol again: recall and nothing else.

    Args:
        distance: tokens between the mentions, the mark among them.
        items: how many symbols there are.

    Attributes:
        vocabulary: every token; the symbols come first.
        items: how many of them are symbols.
        distance: as given.

    Raises:
        UserError: there is no room for the mark, or more symbols are wanted than there are letters.
    """

    least: ClassVar[int] = 1
    most_items: ClassVar[int] = 26

    def __init__(self, distance: int, items: int) -> None:
        _check_task(self, distance, items)
        self.distance, self.items = distance, items
        self.vocabulary = (*(chr(ord("A") + i) for i in range(items)), "?", *map(str, range(10)))

    def draw(self, examples: int, random: np.random.Generator) -> Ids:
        """Return texts [time, examples], time being distance + 2; the last token is the symbol."""
        symbol = random.integers(self.items, size=(1, examples))
        noise = random.integers(self.items + 1, len(self.vocabulary), size=(self.distance - 1, examples))
        return np.concatenate([symbol, noise, np.full((1, examples), self.items), symbol])


Task = SentenceTask | CopyTask


def _check_task(task: Task, distance: int, items: int) -> None:
    if distance < task.least:
        raise UserError(f"distance: this task needs at least {task.least} tokens between the mentions, got {distance}")
    if not 2 <= items <= task.most_items:
        raise UserError(f"items: this task has from 2 to {task.most_items} of them, got {items}")


def task_of(name: str, distance: int, items: int) -> Task:
    """Return the task ``sentence`` or ``copy`` of a distance."""
    return (SentenceTask if name == "sentence" else CopyTask)(distance, items)


def example(task: Task) -> str:
    """Return a text of a task as it is read, with a gap for the item, and the item after it."""
    *words, item = (task.vocabulary[i] for i in task.draw(1, np.random.default_rng(0))[:, 0])
    return f"{' '.join(words)} ___ ({item})"


class RecallBatch(NamedTuple):
    """Texts side by side.

    Attributes:
        inputs: all tokens but the last, [time, examples].
        targets: what follows each of the last so many inputs, [1 or time, examples]; the item is the last of them.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens are to be predicted."""
        return self.targets.numel()

    def to(self, device: torch.device) -> RecallBatch:
        """Return it on a device."""
        return RecallBatch(self.inputs.to(device), self.targets.to(device))


def draw_batch(task: Task, examples: int, seed: Sequence[int], *, every_token: bool = False) -> RecallBatch:
    """Draw texts, the same ones for the same seed, of which the item alone is to be predicted, or every token."""
    texts = torch.from_numpy(task.draw(examples, np.random.default_rng(seed)))
    return RecallBatch(texts[:-1], texts[1:] if every_token else texts[-1:])


class Batches(Sequence[RecallBatch]):
    """The batches of an epoch, each drawn when it is asked for.

    Args:
        tasks: what they are of, each of one task.
        examples: of a batch.
        seed: numbers that tell these batches from all others.
        every_token: as for :func:`draw_batch`.
    """

    def __init__(self, tasks: Sequence[Task], examples: int, seed: Sequence[int], *, every_token: bool = False) -> None:
        self._tasks, self._examples, self._seed, self._every_token = tasks, examples, seed, every_token

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: Any) -> Any:
        seed = (*self._seed, index)
        task = self._tasks[0]
        if len(self._tasks) > 1:
            task = self._tasks[int(np.random.default_rng((*seed, 1)).integers(len(self._tasks)))]
        return draw_batch(task, self._examples, seed, every_token=self._every_token)

"""Made-up texts: what they are, and that none is drawn twice."""

from __future__ import annotations

import numpy as np
import pytest

from recurra.config import UserError
from recurra.probing import CopyTask, SentenceTask, example
from recurra.probing.made_up_texts import Batches, draw_batch


@pytest.mark.parametrize("task", [SentenceTask(d, 12) for d in (5, 6, 50)] + [CopyTask(d, 8) for d in (1, 2, 50)])
def test_an_item_comes_twice_so_many_tokens_apart_and_no_other_does(task):
    texts = task.draw(300, np.random.default_rng(0))
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    assert 0 <= texts.min() <= texts.max() < len(task.vocabulary)
    is_item = texts < task.items
    assert (is_item.sum(0) == 2).all()
    first, second = is_item.argmax(0), len(texts) - 1
    assert is_item[second].all()
    assert (second - first - 1 == task.distance).all()
    assert (texts[first, np.arange(300)] == texts[second]).all()
    assert set(texts[second]) == set(range(task.items))


def test_texts_depend_on_the_seed_alone():
    task = SentenceTask(20, 8)
    draws = [task.draw(4, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


def test_the_sentence_is_about_one_person():
    task = SentenceTask(9, 8)
    for text in task.draw(50, np.random.default_rng(0)).T:
        words = [task.vocabulary[i] for i in text]
        assert words[0] == words[-4]
        assert (words[0], words[-2]) in {("she", "her"), ("he", "his")}
        assert words[4] == words[-2]
        assert [words[2], words[3], *words[-6:-4], words[-3]] == ["to", "print", "at", "last", "printed"]


def test_the_copied_symbol_is_asked_for_by_a_mark():
    task = CopyTask(5, 4)
    words = [task.vocabulary[i] for i in task.draw(1, np.random.default_rng(0))[:, 0]]
    assert words[-2] == "?"
    assert all(word.isdecimal() for word in words[1:-2])
    assert example(task) == f"{' '.join(words[:-1])} ___ ({words[-1]})"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SentenceTask(4, 8), "at least 5 tokens between the mentions, got 4"),
        (lambda: SentenceTask(10, 1000), "from 2 to .* of them, got 1000"),
        (lambda: CopyTask(0, 8), "at least 1 tokens"),
        (lambda: CopyTask(5, 27), "from 2 to 26"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_batch_asks_for_the_item_or_for_every_token():
    task = CopyTask(3, 4)
    item, every = (draw_batch(task, 6, (1,), every_token=every) for every in (False, True))
    assert (item.tokens, every.tokens) == (6, 24)
    assert item.inputs.shape == (4, 6)
    assert (item.inputs == every.inputs).all()
    assert (item.targets[0] == item.inputs[0]).all()
    assert (every.targets[:-1] == every.inputs[1:]).all()


def test_batches_are_new_ones_and_of_all_tasks():
    tasks = [CopyTask(distance, 4) for distance in (2, 5)]
    batches = Batches(tasks, 8, (1, 0))
    drawn = [batches[index].inputs for index in range(20)]
    assert {len(each) for each in drawn} == {3, 6}
    assert len({each.numpy().tobytes() for each in drawn}) == 20
    assert (Batches(tasks, 8, (1, 0))[7].inputs == drawn[7]).all()
    later = Batches(tasks, 8, (1, 1))
    assert any(later[i].inputs.shape != drawn[i].shape or (later[i].inputs != drawn[i]).any() for i in range(3))

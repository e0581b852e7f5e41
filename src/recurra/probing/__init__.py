"""What a model has learnt: how far back it remembers, and whether its verbs agree with their subjects.

**Recall**, in made-up texts in which a word comes back, and in real ones. In the made-up texts everything depends on
one early word: a network that has forgotten it when it is asked guesses. The distance is the number of tokens between
its two mentions, so that the gradient has to find its way back through one step more. Tasks of this form go back to
Hochreiter and Schmidhuber 1997; "her tickets ... she printed her ___" is how Stanford's lectures on language models
put it. In real texts, what is measured is how much likelier a rare word is when it comes again (compare Khandelwal et
al. 2018). A distance is the number of tokens between two mentions, in both.

**Agreement** (:mod:`recurra.probing.agreement`), in pairs of sentences.
"""

from recurra.probing import agreement
from recurra.probing.made_up_recall import (
    RecallModel,
    RecallResult,
    RecallRow,
    RecallSettings,
    draw_recall,
    gradient_left,
    recall,
    recall_table,
)
from recurra.probing.made_up_texts import CopyTask, SentenceTask, example, task_of
from recurra.probing.real_texts import (
    RepeatedRow,
    RepeatedSettings,
    RepeatedWords,
    draw_repeated,
    repeated_table,
    repeated_words,
)

__all__ = [
    "CopyTask",
    "RecallModel",
    "RecallResult",
    "RecallRow",
    "RecallSettings",
    "RepeatedRow",
    "RepeatedSettings",
    "RepeatedWords",
    "SentenceTask",
    "agreement",
    "draw_recall",
    "draw_repeated",
    "example",
    "gradient_left",
    "recall",
    "recall_table",
    "repeated_table",
    "repeated_words",
    "task_of",
]

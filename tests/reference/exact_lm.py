"""Language models small enough to be checked by enumeration: oracles for evaluation and generation.

They follow the protocol to the letter, and one point further: a state that went in is made useless, so that code which
goes on from a state twice fails.
"""

import itertools
import math

import torch

LINE_END = 1
SPENT = 10**9


class HistoryLM:
    """Every token ever read matters: the distribution is the row of a table that a checksum of the history names.

    Reading token w takes the checksum c to (31 c + w + 1) mod H.

    Args:
        table: Log-probabilities, [H, V].
    """

    def __init__(self, table):
        self.table = table
        self.vocabulary_size = table.shape[1]
        self.steps = 0  # calls of step
        self.cells = 0  # positions scored

    @classmethod
    def random(cls, vocabulary_size, seed=0, histories=20011, spread=1.5):
        generator = torch.Generator().manual_seed(seed)
        scores = spread * torch.randn(histories, vocabulary_size, generator=generator, dtype=torch.float64)
        return cls(scores.log_softmax(-1))

    def start(self, batch_size):
        return torch.zeros(batch_size, dtype=torch.long)

    def step(self, tokens, state):
        self.steps += 1
        new = (31 * state + tokens + 1) % len(self.table)
        state.fill_(SPENT)
        return self.table[new], new

    def score(self, inputs, targets, state):
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == len(state)
        self.cells += inputs.numel()
        log_probs = []
        for read, target in zip(inputs, targets, strict=True):
            now, state = HistoryLM.step(self, read, state)
            log_probs.append(now.gather(-1, target[:, None])[:, 0])
        return torch.stack(log_probs), state

    def select(self, state, rows):
        return state[rows]

    def next(self, history):
        """The oracle: log-probabilities after a history, as a list; the line end before it is implied."""
        checksum = 0
        for token in [LINE_END, *history]:
            checksum = (31 * checksum + int(token) + 1) % len(self.table)
        return self.table[checksum].tolist()

    def log_prob(self, ids, prompt=()):
        """The oracle: log-probability of a sequence after a prompt."""
        history = list(prompt)
        total = 0.0
        for token in ids:
            total += self.next(history)[token]
            history.append(token)
        return total


class ScriptLM:
    """Knows one text by heart: after any prompt, gives each next token of its script probability 1, over and over."""

    def __init__(self, script, vocabulary_size):
        self.script = torch.tensor(script)
        self.vocabulary_size = vocabulary_size

    def start(self, batch_size):
        return torch.zeros(batch_size, dtype=torch.long)

    def step(self, tokens, state):
        log_probs = torch.full((len(tokens), self.vocabulary_size), -math.inf)
        log_probs.scatter_(1, self.script[state % len(self.script)][:, None], 0.0)
        new = state + 1
        state.fill_(SPENT)
        return log_probs, new

    def score(self, inputs, targets, state):
        return torch.zeros(inputs.shape), state

    def select(self, state, rows):
        return state[rows]


def enumerate_texts(lm, prompt, max_tokens, *, end_token=None, forbidden=()):
    """All sequences that end with `end_token`, or have `max_tokens` tokens and no such token before the last."""
    allowed = [token for token in range(lm.vocabulary_size) if token not in forbidden]
    for length in range(1, max_tokens + 1):
        for ids in itertools.product(allowed, repeat=length):
            ended = ids[-1] == end_token
            if (ended or length == max_tokens) and end_token not in ids[:-1]:
                yield list(ids), lm.log_prob(ids, prompt)

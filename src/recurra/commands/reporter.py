"""How long work shows that it goes on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from recurra.training import Progress

__all__ = ["Reporter"]


class Reporter:
    """Progress in the terminal: a bar where there is a terminal, lines elsewhere.

    Args:
        quiet: say nothing.
        unit: what is predicted, many of it.
        perplexity: whether the validation loss is one of a language model, and is shown as its perplexity.
    """

    def __init__(self, quiet: bool, *, unit: str = "tokens", perplexity: bool = True) -> None:
        self.quiet, self.unit, self.perplexity = quiet, unit, perplexity
        self.bar: Bar | None = None
        self.last = 0.0

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def watch(self, progress: Progress) -> None:
        """A line of the log: to the bar; a validation stays on the screen."""
        if self.quiet:
            return
        import math

        left = progress.seconds * (1 / progress.fraction - 1) if progress.fraction else math.inf
        text = f"step {progress.step:,}  epoch {progress.epoch}"
        if progress.loss is not None:
            text += f"  loss {progress.loss:.3f}  {progress.tokens_per_second:,.0f} {self.unit}/s"
        if progress.valid is not None:
            shown = (
                f"perplexity {math.exp(min(progress.valid, 50)):.2f}"
                if self.perplexity
                else f"loss {progress.valid:.4f}"
            )
            if progress.score is not None:
                name = progress.score_name.removeprefix("-")
                shown += f", {name} {-progress.score if name != progress.score_name else progress.score:.4f}"
            self.say(f"{text}  validation {shown} (estimate)")
        if sys.stderr.isatty():
            self._bar().update(self._task, completed=progress.fraction, description=text)
        elif progress.seconds - self.last > 15 and progress.valid is None:
            self.last = progress.seconds
            self.say(f"{text}  {100 * progress.fraction:.0f} %  {_duration(left)} left")

    def _bar(self) -> Bar:
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self._task = self.bar.add_task("", total=1.0)
            self.bar.start()
        return self.bar


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

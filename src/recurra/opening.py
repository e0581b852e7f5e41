"""What every kind of model is called, is made with and opens as: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recurra import recipes, supervised
from recurra.checkpoint import CheckpointError, read_settings
from recurra.language_model import MIXTURE, LanguageModel
from recurra.models.kinds import KINDS
from recurra.predictor import Predictor
from recurra.tasks import TASKS

__all__ = ["About", "about"]


@dataclass(frozen=True)
class About:
    """What there is to know of a model before it is opened.

    Attributes:
        directory: its folder, or its ARPA file.
        kind: as ``settings.json`` has it.
        title: what it is, in a few words.
        unit: what its loss is the mean over: ``token`` or ``target``.
        sections: the settings classes by section; none of a mixture, which is made of models that have them.
        trained: by gradient, step by step; otherwise it was made in one go.
        predicts: it is no language model, but one of :data:`recurra.tasks.TASKS`.
    """

    directory: Path
    kind: str
    title: str
    unit: str
    sections: Mapping[str, type[Any]]
    trained: bool
    predicts: bool

    def open(self, *, device: str | None = None) -> LanguageModel | Predictor:
        """Load the model.

        Args:
            device: ``cpu``, ``cuda`` or ``mps``; what there is if not given.

        Raises:
            UserError: a file of it is missing or damaged.
        """
        if self.predicts:
            return Predictor.load(self.directory, device=device)
        return LanguageModel.load(self.directory, device=device)


def about(directory: str | Path) -> About:
    """What a model's folder, or an ARPA file, holds.

    Raises:
        UserError: no model, or one of a kind that there is not.
    """
    directory = Path(directory)
    kind = "ngram" if directory.is_file() else str(read_settings(directory)["kind"])
    if kind in TASKS:
        return About(directory, kind, TASKS[kind].title, "target", supervised.sections(kind), True, True)
    if kind in KINDS:
        of = KINDS[kind]
        return About(directory, kind, of.title, "token", recipes.sections(kind), not of.counted, False)
    if kind == MIXTURE:
        return About(directory, kind, "mixture of language models", "token", {}, False, False)
    known = ", ".join((*KINDS, MIXTURE, *TASKS))
    raise CheckpointError(f"{directory}: holds a model of kind {kind!r}, expected one of {known}")

"""Recurra: recurrent neural networks for language.

    import recurra

    lm = recurra.load("demo")
    print(lm.perplexity("It is a truth universally acknowledged"))

Importing this package is cheap: what needs torch is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import gradients, nn, probing
    from .comparison import compare
    from .config import UserError
    from .language_model import LanguageModel, load
    from .mixing import mix
    from .planning import plan
    from .predictor import Predictor
    from .recipes import train_lm
    from .reporting import report
    from .supervised import train_task
    from .text.corpora import open_corpus
    from .tracing import trace

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "Predictor",
    "UserError",
    "compare",
    "gradients",
    "load",
    "mix",
    "nn",
    "open_corpus",
    "plan",
    "probing",
    "report",
    "trace",
    "train_lm",
    "train_task",
]

# Each public name's module; a name that is a module itself stands for the module of that name.
_HOMES = {
    "LanguageModel": "recurra.language_model",
    "Predictor": "recurra.predictor",
    "UserError": "recurra.config",
    "compare": "recurra.comparison",
    "gradients": "recurra.gradients",
    "load": "recurra.language_model",
    "mix": "recurra.mixing",
    "nn": "recurra.nn",
    "open_corpus": "recurra.text.corpora",
    "plan": "recurra.planning",
    "probing": "recurra.probing",
    "report": "recurra.reporting",
    "trace": "recurra.tracing",
    "train_lm": "recurra.recipes",
    "train_task": "recurra.supervised",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'recurra' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = module if _HOMES[name] == f"recurra.{name}" else getattr(module, name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

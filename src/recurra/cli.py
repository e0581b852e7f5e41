"""The command line: ``recurra COMMAND``.

Nothing here imports torch until a command that needs it runs, so that ``recurra --help`` answers at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Sequence

from recurra import __version__
from recurra.commands import attention, data, evaluate, explain, generate, predict, systems, train
from recurra.commands.command import complain
from recurra.config import ArgumentParser, UserError

__all__ = ["main"]

COMMANDS = {
    **train.COMMANDS,
    **predict.COMMANDS,
    **evaluate.COMMANDS,
    **generate.COMMANDS,
    **systems.COMMANDS,
    **data.COMMANDS,
    **attention.COMMANDS,
    **explain.COMMANDS,
}
TWO_WORDS = ("train", "explain")  # the first words of commands that have two


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0; 1 for a failed run; 2 for a mistake of the user; 128 + signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = " ".join(words[:2]) if words and words[0] in TWO_WORDS else "".join(words[:1])
    if name not in COMMANDS:
        return _no_command(words)
    command = COMMANDS[name]
    parser = ArgumentParser(prog=f"recurra {name}", description=command.help)
    try:
        command.flags(parser)
        return command.run(parser.parse_args(words[len(name.split()) :]))
    except UserError as error:
        return complain(str(error), 2)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return complain("interrupted", 128 + signal.SIGINT)
    except RuntimeError as error:
        if type(error).__name__ != "Diverged":
            raise
        return complain(str(error), 1)


def _no_command(words: Sequence[str]) -> int:
    """Help, version, or a word that is no command."""
    width = max(map(len, COMMANDS)) + 2
    listing = "\n".join(f"  {name:<{width}}{command.help}" for name, command in COMMANDS.items())
    parser = ArgumentParser(
        prog="recurra",
        usage="recurra COMMAND ...",
        description="Recurrent neural networks that read and write language.",
        epilog=f"commands:\n{listing}\n\n`recurra COMMAND --help` tells the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"recurra {__version__}")
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    given = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if not given or {"-h", "--help"} & set(words):
        parser.parse_args(words)  # --help, --version, and flags that are none
        parser.print_help()
        return 0
    import difflib

    typed = " ".join(given[:2])
    near = (
        [name for name in COMMANDS if name.startswith(f"{typed} ")]  # only the first word of two was given
        or difflib.get_close_matches(typed, COMMANDS, n=1)
        or difflib.get_close_matches(given[0], COMMANDS, n=1)
    )
    unknown = typed if given[0] in TWO_WORDS else given[0]
    return parser.error(f"unknown command {unknown!r}{f'; did you mean {near[0]!r}?' if near else ''}")

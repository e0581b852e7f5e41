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
from recurra.commands import (
    attention,
    data,
    evaluate,
    explain,
    generate,
    gradients,
    predict,
    probe,
    report,
    systems,
    trace,
    train,
)
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
    **trace.COMMANDS,
    **gradients.COMMANDS,
    **probe.COMMANDS,
    **report.COMMANDS,
}
TWO_WORDS = {name.partition(" ")[0] for name in COMMANDS if " " in name}  # the first words of commands that have two


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
    """Help, version, or a word that is no command; of commands of two words, what the first one leaves to choose."""
    first = words[0] if words and words[0] in TWO_WORDS else None
    listed = {name: command for name, command in COMMANDS.items() if first is None or name.startswith(f"{first} ")}
    width = max(map(len, listed))
    listing = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in listed.items())
    parser = ArgumentParser(
        prog="recurra",
        usage=f"recurra {first or 'COMMAND'} ...",
        description="Recurrent neural networks that read and write language.",
        epilog=f"commands:\n{listing}\n\n`recurra COMMAND --help` tells the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"recurra {__version__}")
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    given = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if not given or given == [first] or {"-h", "--help"} & set(words):
        if not given:
            parser.parse_args(words)  # --help, --version, and flags that are none
        parser.print_help()
        return 0
    import difflib

    if first is not None:
        known = [name.removeprefix(f"{first} ") for name in listed]
        near = difflib.get_close_matches(given[1], known, n=1)
        hint = f"did you mean '{first} {near[0]}'?" if near else f"after {first} comes one of {', '.join(known)}"
        return parser.error(f"unknown command '{first} {given[1]}'; {hint}")
    typed = " ".join(given[:2])
    near = difflib.get_close_matches(typed, COMMANDS, n=1) or difflib.get_close_matches(given[0], COMMANDS, n=1)
    return parser.error(f"unknown command {given[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")

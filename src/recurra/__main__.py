"""``python -m recurra`` is ``recurra``; torchrun starts it so."""

import os
import sys

from recurra.cli import main
from recurra.distributed import world_size

if __name__ == "__main__":
    status = main()
    if world_size() > 1:
        # Gloo's threads may outlive the process group, and one that does aborts the process when the interpreter takes
        # its memory apart. Everything has been written and closed by now: leave without taking anything apart.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)

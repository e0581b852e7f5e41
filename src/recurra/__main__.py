"""``python -m recurra`` is ``recurra``; torchrun starts it so."""

from recurra.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

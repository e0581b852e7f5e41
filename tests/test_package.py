"""What `import recurra` gives, and what it costs."""

import subprocess
import sys

import pytest

import recurra
from recurra.config import UserError


def test_importing_is_cheap():
    """None of the large libraries is imported before it is used."""
    heavy = {"torch", "numpy", "tokenizers", "rich", "pooch", "matplotlib"}
    program = f"import recurra, recurra.config, sys; print(*sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_public_names():
    assert recurra.UserError is UserError
    assert all(getattr(recurra, name) is not None for name in recurra.__all__)
    assert set(recurra.__all__) <= set(dir(recurra))
    with pytest.raises(AttributeError, match="'recurra' has no attribute 'lod'"):
        recurra.lod  # noqa: B018

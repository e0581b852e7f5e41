"""Building the compiled loops: without a compiler, with one that fails, and where the result may lie."""

import os
import stat
import subprocess
import sys

import pytest

from recurra.nn import native

ASK = "from recurra.nn import native; print(native.available(), native.why_not())"


def ask(tmp_path, **environment):
    """What a process says that has an empty cache of its own."""
    own = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True, text=True, check=True, env={**os.environ, **own, **environment},
    )  # fmt: skip
    return done.stdout.strip()


def test_without_a_compiler_it_says_so(tmp_path):
    assert ask(tmp_path, CXX="no-such-compiler") == "False no C++ compiler (no-such-compiler) was found"


def test_a_compiler_that_fails_is_named(tmp_path):
    assert ask(tmp_path, CXX="false --of-course").startswith("False false failed")
    assert not list((tmp_path / "cache" / "recurra").iterdir())


def test_it_can_be_turned_off(tmp_path):
    assert ask(tmp_path, RECURRA_NATIVE="0") == "False RECURRA_NATIVE is 0"


@pytest.mark.skipif(not native.available(), reason="compiles nothing")
def test_it_is_built_once_and_is_the_users_alone(tmp_path):
    assert ask(tmp_path) == "True"
    (built,) = (tmp_path / "cache" / "recurra").iterdir()
    assert not built.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    before = built.stat().st_mtime_ns
    assert ask(tmp_path) == "True"
    assert built.stat().st_mtime_ns == before


@pytest.mark.skipif(not native.available() or os.name == "nt", reason="compiles nothing, or has no such folders")
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    shared = tmp_path / "cache" / "recurra"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    assert ask(tmp_path) == "True"
    assert not list(shared.iterdir())
    assert list(tmp_path.glob("recurra-*/native-*.so"))

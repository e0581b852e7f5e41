"""Whatever happens while a file is written, a reader finds the old content or the new."""

import errno
import json
import math
import os
import signal
import subprocess
import sys

import pytest

from recurra.files import finite, json_text, remove_leftovers, written_whole


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(b"old")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_replace_what_was_there(old):
    with written_whole(old) as file:
        file.write("größer\n")
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == "größer\n".encode()
    with written_whole(old, "wb") as file:
        file.write(b"\xff\r\n")
    assert old.read_bytes() == b"\xff\r\n"
    with written_whole(old, encoding="latin-1") as file:
        file.write("größer\n")
    assert old.read_bytes() == "größer\n".encode("latin-1")
    assert names(old.parent) == ["model.json"]


def test_an_error_in_the_block_keeps_the_old_file(old):
    def interrupted():
        with written_whole(old) as file:
            file.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["model.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(old, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left on device"), written_whole(old) as file:
        file.write("new")
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["model.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a file as Linux does")
def test_a_write_that_meets_a_full_disk_keeps_the_old_file(old):
    """The write itself fails, in another process, whose files may not grow beyond 4096 bytes."""
    program = f"""
import resource, signal
from recurra.files import written_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with written_whole({str(old)!r}, "wb") as file:
    file.write(bytes(100_000))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "File too large" in result.stderr
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["model.json"]


def test_a_kill_keeps_the_old_file_and_its_leftover_can_be_removed(old):
    program = f"""
import os, signal
from recurra.files import written_whole
with written_whole({str(old)!r}) as file:
    file.write("new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"
    assert len(names(old.parent)) == 2
    remove_leftovers(old.parent)
    assert names(old.parent) == ["model.json"]


def test_two_writers_of_one_file_do_not_mix(old):
    with written_whole(old) as first, written_whole(old) as second:
        first.write("first")
        second.write("second")
    assert old.read_text() == "first"  # the outer block ends last


def test_permissions_are_the_usual_ones(old):
    old.chmod(0o640)
    with written_whole(old) as file:
        file.write("new")
    assert old.stat().st_mode & 0o777 == 0o640
    plain, whole = old.with_name("plain"), old.with_name("whole")
    plain.write_text("")
    with written_whole(whole) as file:
        file.write("")
    assert whole.stat().st_mode == plain.stat().st_mode


def test_a_link_stays_a_link(old):
    link = old.with_name("link")
    link.symlink_to(old)
    with written_whole(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert old.read_text() == "new"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with written_whole(pipe) as file:
            file.write("through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "absent" / "file") as file:
        file.write("new")


def test_json_has_no_number_that_is_not_finite():
    assert finite({"a": [1.5, math.nan], "b": (math.inf, "x", None, True)}) == {
        "a": [1.5, None], "b": [None, "x", None, True]
    }  # fmt: skip


def test_json_has_an_entry_a_line_but_numbers_on_one():
    content = {
        "numbers": [1, 2.5, None, True],
        "words": ["a", 'é "'],
        "nested": {"1": (), 2: {}, "rows": [[1, 2], [3]]},
        "nothing": [],
        "last": "x",
    }
    text = json_text(content)
    assert json.loads(text) == json.loads(json.dumps(content))
    assert text.splitlines() == [
        "{",
        ' "numbers": [1, 2.5, null, true],',
        ' "words": [',
        '  "a",',
        '  "é \\""',
        " ],",
        ' "nested": {',
        '  "1": [],',
        '  "2": {},',
        '  "rows": [',
        "   [1, 2],",
        "   [3]",
        "  ]",
        " },",
        ' "nothing": [],',
        ' "last": "x"',
        "}",
    ]
    assert [json_text(plain) for plain in ("a", 1, None, [], {})] == ['"a"', "1", "null", "[]", "{}"]

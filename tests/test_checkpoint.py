"""What is read of a training log."""

from __future__ import annotations

import pytest

from recurra.checkpoint import read_log
from recurra.config import UserError


def log_of(folder, content):
    path = folder / "log.jsonl"
    path.write_bytes(content)
    return path


def test_a_line_is_a_mapping(tmp_path):
    assert read_log(tmp_path / "log.jsonl") is None
    assert read_log(log_of(tmp_path, b"")) == []
    content = '{"step": 1, "loss": 2.5}\n{"step": 2, "valid": 1e3, "text": "a\u2028ß"}\r\n'.encode()
    assert read_log(log_of(tmp_path, content)) == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "valid": 1000.0, "text": "a\u2028ß"},
    ]


@pytest.mark.parametrize("rest", [b'{"step": 2, "lo', b'{"step": 2, "text": "\xc3', b"{"])
def test_the_last_line_of_a_run_that_was_killed_is_passed_over(rest, tmp_path):
    assert read_log(log_of(tmp_path, b'{"step": 1}\n' + rest)) == [{"step": 1}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"step": 1}\nnonsense\n{"step": 2}\n', r"log\.jsonl:2: damaged"),
        (b'{"step": 1}\n{"step": "\xff"}\n{"step": 2}\n', r"log\.jsonl:2: damaged \('utf-8' codec"),
        (b'\xff\xfe{\x00}\x00\n{"step": 2}\n', r"log\.jsonl:1: damaged"),
        (b'{"step": 1}\n[1, 2]\n', r"log\.jsonl:2: damaged \(expected names and numbers\)"),
        (b"3\n", r"log\.jsonl:1: damaged \(expected names and numbers\)"),
    ],
)
def test_damage_is_told_with_its_line(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_log(log_of(tmp_path, content))


def test_what_is_no_file_is_told(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(UserError, match=r"log\.jsonl: cannot be read"):
        read_log(tmp_path / "log.jsonl")

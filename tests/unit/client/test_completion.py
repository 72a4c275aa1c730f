"""What the shell offers after TAB."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.examples import few

from .fake import Fake

COMPLETE = "from loramux.cli.app import app; app(prog_name='loramux')"


def offered(line: str, address: str = "") -> list[str]:
    """The words that bash gets for the last word of a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_LORAMUX_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    if address:
        environment["LORAMUX_ADDRESS"] = address
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    few(
        [
            ("loramux adapters show ", ["acme", "birch", "cedar"]),
            ("loramux generate hi -a ", ["acme", "birch", "cedar"]),
            ("loramux jobs watch ", ["job-1"]),
            ("loramux train --recipe ", ["facts", "style"]),
            ("loramux serve --cpu-w", ["--cpu-weights"]),
            ("loramux serve --cpu-weights ", ["auto", "packed", "unpacked"]),
            ("loramux config show --metrics-l", ["--metrics-listen"]),
        ],
        2,
    ),
)
def test_field_c_completion_knows_names_and_flags(fake: Fake, line: str, expected: list[str]) -> None:
    assert offered(line, fake.address) == expected


def test_field_c_completion_without_a_server_offers_nothing() -> None:
    assert offered("loramux adapters show ", "127.0.0.1:1") == []

"""How a server begins: a line at once, refusals before anything slow, whatever user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loramux_server.telemetry.opening import SILENCE, Opening, wants_json
from tests.examples import few

from .server_process import environment

pytestmark = pytest.mark.e2e
LORAMUX = Path(sys.executable).with_name("loramux")
NOBODY = 12345
"""A user id without a line in the user database."""


def heavy_modules(home: Path, *flags: str) -> tuple[list[str], list[str], int]:
    """What a start imports of the things that take seconds, what it says, and its exit code."""
    command = [sys.executable, "-X", "importtime", "-m", "loramux_server", *flags]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=60, check=False)
    lines = done.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    heavy = {"torch", "transformers", "grpc", "sqlalchemy", "tokenizers", "bitsandbytes", "huggingface_hub"}
    return sorted(imported & heavy), said, done.returncode


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    few(
        [
            (("--model", "/no/such/model"), 1, "/no/such/model"),
            (("--state-dir", "/dev/null/s"), 1, "--state-dir"),
            (("--listen", "203.0.113.1:1"), 1, "203.0.113.1:1"),
            (("--metrics-listen", "203.0.113.1:1"), 1, "--metrics-listen"),
            (("--bootstrap-key", "/no/such/file"), 1, "--bootstrap-key"),
            (("--max-running", "0"), 2, "--max-running"),
            (("--no-such-flag",), 2, "--no-such-flag"),
        ]
    ),
)
def test_field_c_refusals_import_nothing_heavy(flags: tuple[str, ...], code: int, named: str, tmp_path: Path) -> None:
    fixed = ("--state-dir", str(tmp_path / "s"), "--listen", "127.0.0.1:0", "--metrics-listen", "off")
    heavy, said, exit_code = heavy_modules(tmp_path, *fixed, *flags)
    assert (heavy, exit_code) == ([], code)
    assert named in said[-1]
    assert len([line for line in said if line and "starts" not in line]) == 1


def test_a_base_that_only_the_hub_could_have_is_missed_without_torch(tmp_path: Path) -> None:
    flags = ("--state-dir", str(tmp_path / "s"), "--listen", "127.0.0.1:0", "--metrics-listen", "off")
    heavy, said, code = heavy_modules(tmp_path, *flags, "--model", "no-such/model")
    assert (heavy, code) == (["huggingface_hub"], 1)
    assert "no-such/model is not in the hub's cache" in said[-1]


def test_field_c_the_command_says_something_before_it_imports_much(tmp_path: Path) -> None:
    """From the installed command on. The bound leaves room for a busy machine; silence used to last 12 to 19 s."""
    command = [str(LORAMUX), "serve", "--state-dir", str(tmp_path / "s"), "--listen", "127.0.0.1:0"]
    began = time.monotonic()
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        seconds = time.monotonic() - began
        server.terminate()
        rest = server.stderr.read()
        assert server.wait(30) == 0
    assert line.startswith("loramux ")
    assert line.endswith(" starts.\n")
    assert seconds < 4
    assert "Traceback" not in rest


def test_silence_is_broken_before_the_settings_are_known(capfd: pytest.CaptureFixture[str]) -> None:
    opening = Opening("9.9", ["--log-format", "json"], silence=0.01)
    opening._timer.join(10)
    opening.say()  # said already
    line = capfd.readouterr().err
    assert json.loads(line)["event"] == "loramux 9.9 starts"
    helped = Opening("9.9", ["--help"], silence=0.01)
    helped._timer.join(10)
    helped.say()
    assert capfd.readouterr().err == ""
    refused = Opening("9.9", [], silence=60)
    refused.silence()
    refused.say()
    assert capfd.readouterr().err == ""
    assert SILENCE < 1


def test_lines_for_programs_are_asked_for_in_four_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAMUX_CONFIG", "LORAMUX_LOG__FORMAT"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "l.toml"
    file.write_text('[log]\nformat = "json"\n')
    assert not wants_json(["--log-format"])
    assert not wants_json(["--config", str(tmp_path / "none")])
    assert wants_json(["--log-format", "json"])
    assert wants_json(["--log-format=json"])
    assert wants_json(["--config", str(file)])
    monkeypatch.setenv("LORAMUX_CONFIG", str(file))
    assert wants_json([])
    monkeypatch.setenv("LORAMUX_LOG__FORMAT", "console")
    assert not wants_json([])


def as_nobody(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without an environment, as a user that nobody has heard of."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv")
    # It may read what root may: the interpreter can lie in a folder of root's own.
    may = "+dac_override,+dac_read_search"
    become = (setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={may}")
    return subprocess.run(
        [*become, f"--ambient-caps={may}", *words],
        env={"HF_HUB_OFFLINE": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_field_14_no_home_and_no_user(tmp_path: Path) -> None:
    """What flags and variables say is used; only what is needed and cannot be known is asked for."""
    loramux = str(LORAMUX)
    assert "--state-dir" in as_nobody(loramux, "serve", "--help").stdout
    shown = as_nobody(loramux, "config", "show", "--state-dir", "/x")
    assert (shown.returncode, "/x" in shown.stdout) == (0, True), shown.stderr
    shown = as_nobody(loramux, "config", "show", LORAMUX_STATE_DIR="/y")
    assert (shown.returncode, "/y" in shown.stdout) == (0, True), shown.stderr
    for command in (["serve"], ["config", "show"], ["doctor"]):
        refused = as_nobody(loramux, *command)
        assert refused.returncode == 2
        last = refused.stderr.splitlines()[-1]
        assert last == "loramux: --state-dir: must be given: there is no home folder here (HOME is not set)"
    doors_off = ("--http-listen", "off", "--metrics-listen", "off")
    for flags in (["--state-dir", "~/s"], ["--state-dir", str(tmp_path / "s"), "--model", "~nobody-at-all/m"]):
        refused = as_nobody(loramux, "serve", "--listen", "127.0.0.1:0", *doors_off, *flags)
        assert refused.returncode in (1, 2)
        assert "write it out" in refused.stderr.splitlines()[-1]
    assert "no server answers" in as_nobody(loramux, "info", "--address", "127.0.0.1:1").stderr

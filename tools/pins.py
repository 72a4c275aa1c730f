"""Write what is pinned: the exact version of everything that loramux needs here, with the hashes of its files.

``constraints.txt`` is what the server needs; beside that ``requirements/development.txt`` is what is needed to develop
it, and ``requirements/ray.txt`` what replicas on Ray need.
Versions are those of this environment, without local labels (torch 2.13.0+cpu), so that a pin fits the CPU and the
CUDA build alike. Hashes are of the wheels for the Pythons and platforms that loramux runs on, as the package index
tells them; those of a version that was pinned before are kept. loramux itself and the default base, which has its own
hash-checked file, are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterable
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
SERVER, DEVELOPMENT = ROOT / "constraints.txt", ROOT / "requirements" / "development.txt"
RAY = ROOT / "requirements" / "ray.txt"
HEADERS = {
    SERVER: "# What loramux[server,curves,compare,oidc,otel] is developed and tested with, by content:\n"
    "#   pip install --no-deps --require-hashes -r constraints.txt && pip install --no-deps loramux\n"
    "# torch names libraries of CUDA beside it: pip install torch adds these. Written by `make pins`; siblings of the\n"
    "# grpcio family are not in step, so never set them equal by hand.",
    RAY: "# What deploy/ray.Dockerfile installs beside constraints.txt. Written by `make pins`.",
    DEVELOPMENT: "# What `make setup` installs beside constraints.txt. Written by `make pins`.",
}
IMAGE = ("server", "curves", "compare", "oidc", "otel")
"""Extras that the container image has."""
BUILD = ("hatchling", "editables")
PYTHONS = {"cp311", "cp312", "cp313", "py3"}
PLATFORM = re.compile(r"any|manylinux.*_(x86_64|aarch64)|macosx_.*_(arm64|x86_64|universal2)")
PIN = re.compile(r"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)? \\\n((?: +--hash=sha256:\w+(?: \\)?\n)+)", re.MULTILINE)


def needed(extras: tuple[str, ...], also: tuple[str, ...] = ()) -> set[NormalizedName]:
    """Canonical names of all distributions that loramux with ``extras`` needs, as installed here, and ``also``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own: list[str] = project["dependencies"]
    options: dict[str, list[str]] = project["optional-dependencies"]
    seen: set[tuple[NormalizedName, str]] = set()
    todo = [Requirement(f"loramux[{','.join(extras)}]"), *map(Requirement, also)]
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        for extra in {"", *asked.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            if name == "loramux":
                texts = options[extra] if extra else own
            else:
                texts = distribution(name).requires or []
            todo += [each for each in map(Requirement, texts) if _holds(each, extra)]
    return {name for name, _ in seen} - {canonicalize_name("loramux")}


def _holds(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def pinned(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Name -> (version, SHA-256 of its files), as a file has them."""
    text = path.read_text() if path.exists() else ""
    return {name: (version, re.findall(r"sha256:(\w+)", hashes)) for name, version, hashes in PIN.findall(text)}


def is_wanted(filename: str, version: str) -> bool:
    """Whether a file is a wheel of this version (whatever its local label) that loramux can be installed with."""
    try:
        _, found, _, tags = parse_wheel_filename(filename)
    except ValueError:
        return False
    usable = (tag for tag in tags if tag.interpreter in PYTHONS or tag.abi == "abi3")
    return found.public == version and any(PLATFORM.fullmatch(tag.platform) for tag in usable)


def markers() -> dict[NormalizedName, str]:
    """Where what loramux asks for only on some platforms is installed: name -> marker, as a pin has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(text) for texts in project["optional-dependencies"].values() for text in texts]
    return {canonicalize_name(each.name): f" ; {each.marker}" for each in asked if each.marker}


def hashes_of(name: str, version: str) -> list[str]:
    """SHA-256 of the wheels of a version: those that the index has, and those in pip's folders of wheels."""
    request = urllib.request.Request(
        f"{_index()}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json", "User-Agent": "loramux-pins"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    found = {file["hashes"]["sha256"] for file in files if is_wanted(file["filename"], version)}
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in Path(folder).glob(f"{name.replace('-', '_')}-{version}*.whl"):
            if is_wanted(wheel.name, version):
                with wheel.open("rb") as file:
                    found.add(hashlib.file_digest(file, "sha256").hexdigest())
    if not found:
        raise SystemExit(f"{name} {version}: the index has no wheel that loramux can be installed with")
    return sorted(found)


def _index() -> str:
    """The package index that pip is set up with."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return (os.environ.get("PIP_INDEX_URL") or done.stdout.strip() or "https://pypi.org/simple").rstrip("/")


def write(path: Path, names: Iterable[NormalizedName]) -> None:
    """Write a file of pins, keeping the hashes of versions that were pinned before, wherever."""
    versions = {canonicalize_name(d.name): d.version.partition("+")[0] for d in distributions()}
    known = {**pinned(SERVER), **pinned(DEVELOPMENT)}
    lines, where = [HEADERS[path]], markers()
    for name in sorted(names):
        version, hashes = known.get(name, ("", []))
        if version != versions[name]:
            version = versions[name]
            hashes = hashes_of(name, version)
        pin = f"{name}=={version}{where.get(name, '')}"
        lines.append(" \\\n".join([pin, *(f"    --hash=sha256:{hash}" for hash in hashes)]))
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(path)


def main() -> None:
    server, everything = needed(IMAGE), needed(("dev",), BUILD)
    write(DEVELOPMENT, everything - server)
    write(RAY, needed((*IMAGE, "ray")) - server)
    write(SERVER, server)


if __name__ == "__main__":
    main()

"""Fetch the console's two libraries from npm as modules that a browser loads as they are: ``python -m tools.vendor``.

Lit's modules import each other by package names, which only bundlers resolve: those become paths. uPlot's smallest file
is a script, which becomes a module by one line. ``versions.json`` beside the files says what they are made of; a test
compares it with them. Needs ``npm``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

VENDOR = Path(__file__).parent.parent / "server/loramux_server/http/console/static/vendor"
PACKAGES = {
    "lit": ("3.3.3", "sha512-fycuvZg/hkpozL00lm1pEJH5nN/lr9ZXd6mJI2HSN4+Bzc+LDNdEApJ6HFbPkdFNHLvOplIIuJvxkS4XUxqirw=="),
    "@lit/reactive-element": (
        "2.1.2",
        "sha512-pbCDiVMnne1lYUIaYNN5wrwQXDtHaYtg7YEFPeW+hws6U47WeFvISGUWekPGKWOP1ygrs0ef0o1VJMk1exos5A==",
    ),
    "lit-element": (
        "4.2.2",
        "sha512-aFKhNToWxoyhkNDmWZwEva2SlQia+jfG0fjIWV//YeTaWrVnOxD89dPKfigCUspXFmjzOEUQpOkejH5Ly6sG0w==",
    ),
    "lit-html": (
        "3.3.3",
        "sha512-el8M6jK2o3RXBnrSHX3ZKrsN8zEV63pSExTO1wYJz7QndGYZ8353e2a5PPX+qHe2aGayfnchQmkAojaWAREOIA==",
    ),
    "uplot": (
        "1.6.32",
        "sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
    ),
}
"""Each with its version and npm's digest of it, so that another file under the same version is refused."""
FILES = {
    "lit": ("index.js", "LICENSE"),
    "@lit/reactive-element": ("reactive-element.js", "css-tag.js"),
    "lit-element": ("lit-element.js",),
    "lit-html": (
        "lit-html.js",
        "is-server.js",
        "directive.js",
        "directive-helpers.js",
        "directives/live.js",
        "directives/repeat.js",
    ),
    "uplot": ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE"),
}
NAMES = {"dist/uPlot.iife.min.js": "uplot/uPlot.js", "dist/uPlot.min.css": "uplot/uPlot.css"}
SPECIFIER = re.compile(r"""(?<=\bfrom)"([@\w][^"]*)"|(?<=\bimport)"([@\w][^"]*)\"""")


def main() -> None:
    """Fetch, rewrite, write down."""
    record: dict[str, Any] = {"packages": {}, "files": {}}
    for package, (version, integrity) in PACKAGES.items():
        record["packages"][package] = {"version": version, "integrity": integrity}
        for name, content in fetch(package, version, integrity).items():
            target = place(package, name)
            path = VENDOR / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_module(target, content))
            record["files"][str(target)] = hashlib.sha256(path.read_bytes()).hexdigest()
    (VENDOR / "versions.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def fetch(package: str, version: str, integrity: str) -> dict[str, bytes]:
    """The files that are wanted of a package. Raises ``SystemExit`` when it is not the one that is pinned."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, text=True)
        (archive,) = Path(folder).glob("*.tgz")
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != integrity:
            raise SystemExit(f"{package}@{version} has the digest {found}, not the pinned {integrity}")
        with tarfile.open(archive) as files:
            return {name: _member(files, f"package/{name}") for name in FILES[package]}


def _member(files: tarfile.TarFile, name: str) -> bytes:
    file = files.extractfile(name)
    assert file is not None, name
    return file.read()


def place(package: str, name: str) -> PurePosixPath:
    """Where a file of a package lies below ``VENDOR``."""
    return PurePosixPath(NAMES.get(name, f"{package.removeprefix('@lit/')}/{name}"))


def as_module(target: PurePosixPath, content: bytes) -> bytes:
    """The file as browsers load it: imports by path, no source map."""
    if target.suffix != ".js":
        return content
    text = re.sub(r"\n?//# sourceMappingURL=\S+\n?", "\n", content.decode())
    if target.parts[0] == "uplot":
        return f"{text.rstrip()}\nexport default uPlot;\n".encode()
    return SPECIFIER.sub(lambda found: f'"{path_of(target, found[1] or found[2])}"', text).encode()


def path_of(importer: PurePosixPath, specifier: str) -> str:
    """The path from one file to what it imports as ``package`` or ``package/file``."""
    package = next(name for name in PACKAGES if specifier == name or specifier.startswith(f"{name}/"))
    name = specifier.removeprefix(package).removeprefix("/") or FILES[package][0]
    name = name if name.endswith(".js") else f"{name}.js"
    if name not in FILES[package]:
        raise SystemExit(f"{importer} imports {specifier}: add {name} to the files of {package}")
    return "../" * (len(importer.parts) - 1) + str(place(package, name))


if __name__ == "__main__":
    main()

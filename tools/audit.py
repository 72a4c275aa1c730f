"""Look up everything that is pinned among known vulnerabilities: ``make audit``.

pip-audit gets an environment of its own under build/, because it is no part of what loramux needs. The exit code is 1
where it finds something. Without a network nothing can be looked up; that is said, and the exit code is 0.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "pip-audit"
PROGRAM = PLACE / "bin" / "pip-audit"
WANTED = "pip-audit>=2.9,<3"
SERVICE = "https://pypi.org/pypi/pip/23.2.1/json"
"""A page such as pip-audit reads: it tells a version's known vulnerabilities. Mirrors of the index may lack it."""
PINS = ("constraints.txt", "requirements/development.txt", "requirements/base-model.txt")


def main() -> int:
    try:
        urllib.request.urlopen(SERVICE, timeout=20).close()
    except (urllib.error.URLError, TimeoutError) as error:
        return _not_done(f"{SERVICE} does not answer ({getattr(error, 'reason', error)})")
    if not PROGRAM.exists():
        venv.create(PLACE, with_pip=True)
        pip: list[Path | str] = [
            PLACE / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            WANTED,
        ]
        if subprocess.run(pip, check=False).returncode != 0:
            return _not_done(f"{WANTED} cannot be installed")
    files = [word for name in PINS for word in ("--requirement", str(ROOT / name))]
    # Only what is in the files is looked up, and nothing is installed. A pin that cannot be looked up is an error.
    audit: list[Path | str] = [
        PROGRAM,
        "--strict",
        "--progress-spinner",
        "off",
        "--disable-pip",
        "--require-hashes",
        *files,
    ]
    return subprocess.run(audit, check=False).returncode


def _not_done(why: str) -> int:
    print(f"make audit: NOTHING WAS LOOKED UP: {why}. Run it where the package index is in reach.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The drawing of the architecture: made from its source, of packages that exist."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

DOCS = Path(__file__).parents[3] / "docs"
SERVER = DOCS.parent / "server" / "loramux_server"
LABELS = re.findall(r'label="([^"]+)"', (DOCS / "architecture.dot").read_text())
OUTSIDE = {"clients", "clients over HTTP", "Prometheus"}


def test_the_drawing_shows_what_its_source_says() -> None:
    root = ElementTree.parse(DOCS / "architecture.svg").getroot()
    shown = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    wanted = {line.strip() for label in LABELS for line in label.split("\\n")}
    assert shown == wanted


def test_the_drawing_names_packages_that_exist() -> None:
    names = {label.split("\\n")[0] for label in LABELS if "\\n" in label or "/" in label} - OUTSIDE
    assert len(names) > 15
    for name in names:
        assert (SERVER / name).is_dir() or (SERVER / f"{name}.py").is_file(), name

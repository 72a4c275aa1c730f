"""What the Markdown says can be done, can be done: code compiles, commands parse, settings load, links lead somewhere.

Python blocks marked ``<!-- test: e2e -->`` are also run, by the end-to-end suite.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

import loramux
from loramux_server import config
from tests.unit import cli_lines
from tests.unit.docs.markdown import ROOT, SHELLS, Block, anchors, blocks, commands, every_block, links, pages
from tests.unit.docs.running import run_page

BLOCKS = every_block()
VERBS = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def of(*languages: str) -> list[Block]:
    """The blocks in one of those languages."""
    return [block for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("block", of("python", "py"), ids=str)
def test_python_compiles_and_names_what_exists(block: Block) -> None:
    tree = compile(block.text, str(block), "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    names = [alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names]
    modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    if "loramux" in modules:
        assert [name for name in names if not hasattr(loramux, name)] == []


@pytest.mark.parametrize("block", of(*SHELLS), ids=str)
def test_commands_are_understood(block: Block) -> None:
    for words in commands(block):
        if Path(words[0]).name == "loramux":
            cli_lines.parse(words[1:])
        if words[0] == "make":
            asked = {w for w in words[1:] if "=" not in w and not w.startswith("-")}
            assert asked <= VERBS, f"no such verb: {asked - VERBS}"


def test_field_c_no_page_or_message_installs_what_is_not_published() -> None:
    """There is no package of that name on PyPI: people get what works from a clone."""
    sources = [*pages(), *(ROOT / "client").rglob("*.py"), *(ROOT / "server").rglob("*.py")]
    wrong = [str(path) for path in sources if re.search(r"pip install '?loramux", path.read_text("utf-8"))]
    assert wrong == []


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_toml_is_a_valid_configuration(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "loramux.toml"
    file.write_text(block.text)
    config.load({}, str(file))


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize(
    "line",
    [
        "train acme --data a.jsonl",
        "serve --listen 0.0.0.0:1 --dtype=float32 --config none.toml",
        "serve --help",
        "config show --json",
        "--version",
    ],
)
def test_a_right_command_passes(line: str) -> None:
    cli_lines.parse(line.split())


@pytest.mark.parametrize("line", ["nope", "train --no-such-flag", "serve --modle x", "serve --listen nowhere"])
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|nope|modle|HOST:PORT"):
        cli_lines.parse(line.split())


def test_the_reader_finds_what_it_should(tmp_path: Path) -> None:
    """So that an empty run above means no examples, not a blind reader."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c!\n[x](y.md#z) [w](https://example.org)\n\n<!-- test: e2e -->\n```python\nprint(1)\n```\n"
        "- item\n  ```console\n  $ A=1 loramux info --json | jq '.a | .b'  # why\n  output\n"
        "  $ make test && loramux generate \\\n      'x; y'\n  ```\n"
    )
    first, second = blocks(page)
    assert (first.language, first.text, first.mark, first.line) == ("python", "print(1)\n", "test: e2e", 6)
    assert (second.language, second.mark) == ("console", "")
    assert list(commands(second)) == [
        ["loramux", "info", "--json"],
        ["jq", ".a | .b"],
        ["make", "test"],
        ["loramux", "generate", "x; y"],
    ]
    assert links(page) == ["y.md#z"]
    assert anchors(page) == {"a-b-c"}


def test_marked_blocks_are_run_in_order(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- file: rows.jsonl -->\n```json\n{}\n```\n\n"
        "<!-- test: e2e -->\n```python\naddress = 'localhost:50051'\n```\n\n"
        "```python\nraise SystemExit('not marked')\n```\n\n"
        "<!-- test: e2e -->\n"
        "```python\nfrom asyncio import sleep\nawait sleep(0)\nassert '7' in address and open('rows.jsonl')\n```\n\n"
        "<!-- test: e2e -->\n```bash\nloramux --version\n```\n"
    )
    assert run_page(blocks(page), "127.0.0.1:7", tmp_path) == 3
    assert (tmp_path / "rows.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("code", ["```python\nassert False, 'broken'\n```", "```sh\nloramux nope broken\n```"])
def test_a_broken_example_is_found(code: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- test: e2e -->\n{code}\n")
    with pytest.raises((AssertionError, subprocess.CalledProcessError), match="broken"):
        run_page(blocks(page), "127.0.0.1:7", tmp_path)

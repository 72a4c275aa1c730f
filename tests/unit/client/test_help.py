"""``--help`` of every command: one style, the client's and the server's."""

from __future__ import annotations

import pytest

from loramux.cli import main

COMMANDS = [
    *(
        "",
        "generate",
        "chat",
        "train",
        "info",
        "top",
        "profile",
        "health",
        "adapters",
        "adapters merge",
        "jobs watch",
        "datasets show",
    ),
    *(
        "keys",
        "keys create",
        "keys ls",
        "keys revoke",
        "keys generate",
        "audit",
        "quotas",
        "quotas set",
        "quotas ls",
        "doctor",
        "backup",
        "restore",
        "config show",
        "demo",
    ),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_field_c_help_has_one_style(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    try:
        code = main([*command.split(), "--help"])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: loramux {command}".rstrip())
    assert "\nOptions:\n" in text
    assert "Show this message and exit." in text
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 80


def test_field_c_no_summary_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group in ((), ("adapters",), ("jobs",), ("datasets",), ("config",)):
        assert main([*group, "--help"]) == 0
        commands = capsys.readouterr().out.partition("Commands:")[2]
        assert commands
        assert not [line for line in commands.splitlines() if line.endswith("...")]

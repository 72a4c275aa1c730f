"""``loramux quotas`` as an operator runs it, beside a server or without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loramux.cli import main
from loramux_server.core.callers.quota import Quota
from loramux_server.store.store import Store


def run(store: Store, *words: str) -> int:
    return main(["quotas", *words, "--state-dir", str(store.state.path)])


def test_limits_are_set_beside_a_running_server_and_listed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(store, "set", "--default", "--requests-per-minute", "60", "--stored-bytes", "2MiB") == 0
    assert capsys.readouterr().out == "default: requests-per-minute=60 stored-bytes=2097152\n"
    assert run(store, "set", "--tenant", "acme", "--training-tokens-per-day", "1000") == 0
    assert run(store, "set", "--tenant", "acme", "--jobs-running", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2]) == {
        "subject": "tenant:acme",
        "limits": {"jobs_running": 1, "training_tokens_per_day": 1000},
    }
    assert store.quotas.read().tenant("acme") == Quota(
        requests_per_minute=60, stored_bytes=2**21, jobs_running=1, training_tokens_per_day=1000
    )
    assert run(store, "set", "--default", "--stored-bytes", "none") == 0
    capsys.readouterr()
    assert run(store, "ls", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"subject": "default", "limits": {"requests_per_minute": 60}},
        {"subject": "tenant:acme", "limits": {"jobs_running": 1, "training_tokens_per_day": 1000}},
    ]
    assert run(store, "ls") == 0
    assert "tenant:acme: jobs-running=1 training-tokens-per-day=1000\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tenant", "acme"), "name one at least, such as --requests-per-minute 60"),
        (("--tenant", "acme", "--adapters", "-1"), "--adapters: is '-1'; give a whole number"),
        (("--tenant", "acme", "--stored-bytes", "lots"), "give a size such as 10GiB"),
        (("--tenant", "../etc", "--adapters", "1"), "is not a valid name"),
        (("--tenant", "acme", "--adapters", "99999999999999999999"), "from 0 to 2^53"),
    ],
)
def test_what_is_no_limit_is_refused_and_changes_nothing(
    store: Store, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert run(store, "set", *words) == 2
    assert says in capsys.readouterr().err
    assert store.quotas.read().by_subject == {}


def test_without_a_database_the_command_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quotas", "ls", "--state-dir", str(tmp_path / "none")]) == 1
    assert f"{tmp_path / 'none'} has no database yet" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()

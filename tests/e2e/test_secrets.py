"""A whole session at log level debug leaves nothing of its content, and no secret, in any log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loramux import Client, LoramuxError, Unauthenticated
from loramux_server.core.callers.keys import ApiKey
from tests.e2e.server_process import run_server, server_process
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MARK = "zq7mark"
"""In everything that nobody but its sender may read."""
ROWS = [{"prompt": f"{MARK} question {i}", "completion": f"{MARK} answer {i}"} for i in range(4)]
BAD_ROWS = [*ROWS, {"prompt": f"{MARK} {{", "completion": 5}, {"messages": [{"role": MARK, "content": MARK}]}]


def hostile(client: Client) -> list[Callable[[], object]]:
    """Calls that are refused, each for something that holds the mark."""
    asked = [{"role": "user", "content": f"{MARK} hello"}]
    return [
        lambda: client.generate(f"{MARK}", temperature=-1),
        lambda: client.generate(messages=[{"role": MARK, "content": MARK}]),
        lambda: client.generate(messages=asked, tools=[{"type": "function", "function": MARK}]),
        lambda: client.generate(messages=asked, chat_template_kwargs={f"{MARK} kwarg": MARK}),
        lambda: client.generate(f"{MARK}", response_format={"type": "regex", "regex": f"{MARK}("}),
        lambda: client.generate(f"{MARK}", response_format={"type": "json_schema", "json_schema": {"type": MARK}}),
        lambda: client.generate(f"{MARK}", stop=[MARK * 100]),
        lambda: client.generate(f"{MARK} " * 9999),
        lambda: client.train("refused", data=BAD_ROWS),
    ]


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except LoramuxError:
        return True
    return False


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_nothing_of_a_session_is_in_a_log(log_format: str, tmp_path: Path) -> None:
    model, state, key, wrong = tmp_path / "model", tmp_path / "state", ApiKey.generate(), ApiKey.generate()
    write_model(model, "llama")
    (tmp_path / "bootstrap").write_text(key.text)
    (tmp_path / "bootstrap").chmod(0o600)
    flags = ("--log-level", "debug", "--log-format", log_format, "--bootstrap-key", str(tmp_path / "bootstrap"))
    place = ("--model", str(model), "--state-dir", str(state), "--metrics-listen", "off", "--device", "cpu")
    with server_process(tmp_path, *place, *flags) as server:
        server.wait_for("is ready" if log_format == "console" else '"event":"ready"')
        with Client(server.address, api_key=key.text) as client:
            lengths = {"max_tokens": 24, "min_tokens": 24}
            answers = [
                client.generate(f"{MARK} is", **lengths).text,
                "".join(chunk.text for chunk in client.stream(f"{MARK} was", **lengths)),
                client.generate(messages=[{"role": "user", "content": MARK}], **lengths).text,
            ]
            client.score(f"{MARK} a", f"{MARK} b")
            client.tokenize(f"{MARK}")
            assert sum(refused(call) for call in hostile(client)) >= 8
            client.train("acme", data=ROWS, max_steps=2, rank=2).wait()
            client.generate(f"{MARK}", adapters=["acme"], max_tokens=2)
            assert refused(lambda: client.adapters.delete("absent"))
            client.adapters.delete("acme")
        for shown in (wrong.text, f"Bearer {MARK}", MARK):
            with Client(server.address, api_key=shown) as stranger, pytest.raises(Unauthenticated):
                stranger.generate(MARK)
        server.process.terminate()
        assert server.finish() == 0
    log, audit = "\n".join(server.lines), (state / "audit" / "audit.jsonl").read_text()
    actions = [json.loads(line)["action"] for line in audit.splitlines()]
    assert {"UploadDataset", "CreateJob", "publish", "DeleteAdapter", "GenerateOnce"} <= set(actions)
    assert "Tokenize" in log  # the level is on
    assert len(min(answers, key=len).strip()) > 8
    for secret in (MARK, *answers, key.text, key.text.rpartition("_")[2], wrong.text.rpartition("_")[2]):
        assert secret not in log
        assert secret not in audit
        assert json.dumps(secret)[1:-1] not in log
    # A key's secret is nowhere at all.
    for path in (path for path in state.rglob("*") if path.is_file()):
        assert key.text.rpartition("_")[2].encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "flags",
    [
        ("--database-url", f"postgresql+psycopg://user:{MARK}@127.0.0.1:1/x?connect_timeout=1"),
        ("--database-url", f"nosuch://user:{MARK}@127.0.0.1/x"),
        ("--blobs-url", f"ftp://user:{MARK}@127.0.0.1:1/x"),
        ("--blobs-url", f"nosuch://user:{MARK}@127.0.0.1/x"),
    ],
)
def test_a_password_in_a_url_is_in_no_log(flags: tuple[str, str], tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "state"), "--log-level", "debug", "--metrics-listen", "off")
    code, lines = run_server(tmp_path, "serve", *state, "--listen", "127.0.0.1:0", *flags)
    assert code != 0
    assert lines
    assert MARK not in "\n".join(lines)

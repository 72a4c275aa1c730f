"""``loramux top``: frames of fixed stats to the letter, and the screen on a terminal whose server comes and goes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from loramux.cli.top.frame import View, lines
from loramux.cli.top.marks import ASCII, UNICODE
from loramux.cli.top.tables import share_rows
from loramux.types import AdapterActivity, JobActivity, Latency, ServerInfo, ServerStats, TenantActivity
from loramux.v1 import server_pb2

from .fake import Fake, refuse, start
from .test_cli import Shell, shell

__all__ = ["shell"]

MIB = 1 << 20
ACME = TenantActivity(
    tenant="acme",
    requests_running=3,
    requests_per_second=1.5,
    prompt_tokens_per_second=456.7,
    generated_tokens_per_second=123.4,
    time_to_first_token=Latency(10, 0.02, 0.03, 0.2),
    inter_token_latency=Latency(90, 0.005, 0.006, 0.019),
)
STATS = ServerStats(
    window_seconds=10,
    own=ACME,
    total=replace(ACME, tenant=""),
    tenants=(ACME, TenantActivity("birch", requests_running=1)),
    requests_running=4,
    requests_waiting=2,
    kv_pages_used=12,
    kv_pages_total=128,
    memory_bytes={
        "base": 128 * MIB,
        "adapters": 16 * MIB,
        "kv_cache": 256 * MIB,
        "training": 0,
        "other": 512 * MIB,
        "free": 5 << 30,
        "total": 8 << 30,
        "process": 912 * MIB,
    },
    adapters=(
        AdapterActivity("acme@3", "acme", "d" * 64, 0, "device", True, 16, 5 * MIB, 2, 0.5, 30.0, 80.5),
        AdapterActivity("", digest="e" * 64, tier="host"),
        AdapterActivity("formal@1", "", "f" * 64, 2, "host", rank=8, size_bytes=MIB),
    ),
    jobs=(
        JobActivity("job-1", "acme", "acme", "running", 30, 120, 1.2345, 83.0, (4.0, 3.0, 2.0, 1.0), 1234.0),
        JobActivity("job-2", "birch", "birch", "queued"),
    ),
    jobs_by_state={"running": 1, "queued": 5},
)
INFO = ServerInfo("1.2", "ready", base_name="org/SmolLM2-135M", device="cpu", dtype="float32", uptime_seconds=3723)
VIEW = View("127.0.0.1:50051", UNICODE, "12:03:04", INFO, STATS, (1.0, 2.0, 3.0, 4.0), hint="q quits")

NARROW = """\
127.0.0.1:50051 SmolLM2-135M cpu float32             ready for 1:02:03  12:03:04
tokens     123.4/s generated  456.7/s of prompts  ▁▃▆█
requests   4 running  2 waiting  1.5/s begun
latency    first token 20/30/200 ms  between tokens 5/6/19 ms  (p50/p90/p99)
KV cache   ████···································  9% of 128 pages
memory     █▒░░░▚▚▚▚▚▚▚▚▚▚▚▚····························  3.00 GiB of 8.00 GiB
           █ base 128.0 MiB  ▓ adapters 16.0 MiB  ▒ kv cache 256.0 MiB
           ░ other 512.0 MiB  ▚ elsewhere 2.11 GiB

JOB (2 of 6)  TENANT  STATE    PROGRESS      STEP    LOSS  CURVE  TIME LEFT
acme          acme    running  ██········  30/120  1.2345  █▆▃▁        1:23
birch         birch   queued   ··········     0/?

ADAPTER               TENANT  TIER    PINNED  RANK  RUNNING  TOKENS/S  PROMPT/S
acme@3                acme    device  pinned    16        2      80.5      30.0
deleted eeeeeeeeeeee          host                        0       0.0       0.0
formal@1 +2           shared  host               8        0       0.0       0.0

TENANT  RUNNING  TOKENS/S  PROMPT/S  REQUESTS/S  FIRST p50/p99  BETWEEN p50/p99
acme          3     123.4     456.7         1.5      20/200 ms          5/19 ms
birch         1       0.0       0.0         0.0              -                -


q quits"""

WIDE = f"""\
127.0.0.1:50051 SmolLM2-135M cpu float32{" " * 93}ready for 1:02:03  12:03:04
tokens     123.4/s generated  456.7/s of prompts  ▁▃▆█
requests   4 running  2 waiting  1.5/s begun
latency    first token 20/30/200 ms  between tokens 5/6/19 ms  (p50/p90/p99)
KV cache   ██████······················································  9% of 128 pages
memory     █▒▒░░░░▚▚▚▚▚▚▚▚▚▚▚▚▚▚▚······································  3.00 GiB of 8.00 GiB
           █ base 128.0 MiB  ▓ adapters 16.0 MiB  ▒ kv cache 256.0 MiB  ░ other 512.0 MiB  ▚ elsewhere 2.11 GiB
JOB (1 of 6)  TENANT  STATE    PROGRESS      STEP    LOSS  CURVE  TOKENS/S  TIME LEFT
acme          acme    running  ██········  30/120  1.2345  █▆▃▁       1234       1:23
ADAPTER (1 of 3)  TENANT  TIER    PINNED  RANK     SIZE  RUNNING  TOKENS/S  PROMPT/S  REQUESTS/S
acme@3            acme    device  pinned    16  5.0 MiB        2      80.5      30.0         0.5
q quits"""


def text(view: View, width: int, height: int | None = None) -> str:
    return "\n".join(line.plain for line in lines(view, width, height))


@pytest.mark.parametrize(("width", "height", "frame"), [(80, 24, NARROW), (160, 12, WIDE)])
def test_a_frame_to_the_letter(width: int, height: int, frame: str) -> None:
    assert text(VIEW, width, height) == frame


def test_a_key_without_admin_sees_its_own_tenant() -> None:
    own = replace(STATS, total=None, tenants=(), memory_bytes={}, kv_pages_total=0, adapters=(), jobs=())
    assert text(replace(VIEW, stats=own, hint=""), 80).splitlines()[1:] == [
        "tokens     123.4/s generated  456.7/s of prompts  ▁▃▆█",
        "requests   3 running  1.5/s begun",
        "latency    first token 20/30/200 ms  between tokens 5/6/19 ms  (p50/p90/p99)",
    ]


HOSTILE = st.text(st.sampled_from("a[/]red\x1b\x07\n\t\x9b\u202e日本é\u0301👩\u200d"), max_size=40)


@given(HOSTILE, st.integers(20, 200), st.integers(3, 40), st.sampled_from([UNICODE, ASCII]))
def test_names_of_others_are_text_and_no_line_is_too_long(name: str, width: int, height: int, marks: object) -> None:
    stats = replace(
        STATS,
        tenants=(replace(ACME, tenant=name),),
        adapters=(replace(STATS.adapters[0], adapter=name, tenant=name),),
        jobs=(replace(STATS.jobs[0], name=name, tenant=name, state=name),),
        memory_bytes=STATS.memory_bytes | {name: MIB},
    )
    view = replace(VIEW, marks=marks, address=name, stats=stats, trouble=name)
    found = lines(view, width, height)
    assert len(found) == height
    for line in found:
        assert cell_len(line.plain) <= width
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", line.plain)


def test_markup_is_shown_as_it_is(fake: Fake, shell: Shell) -> None:
    tenant = server_pb2.TenantActivity(tenant="[red]x[/red] \x1b[31m", requests_running=1)
    total = server_pb2.TenantActivity(requests_running=1)
    fake.handlers["GetStats"] = lambda *_: server_pb2.ServerStats(window_seconds=10, total=total, tenants=[tenant])
    assert shell("top", "--once") == 0
    assert "[red]x[/red] \ufffd[31m" in shell.out
    assert "\x1b" not in shell.out


def test_without_a_terminal_there_is_one_frame(fake: Fake, shell: Shell) -> None:
    assert shell("top", "--window", "60") == 0
    assert fake.last("GetStats").window_seconds == 60
    assert shell.out.splitlines()[0].startswith(f"{fake.address} tiny")
    assert shell.out.splitlines()[2] == "requests   0 running  0.0/s begun"
    assert (shell("top", "--window", "61"), shell("top", "--interval", "0")) == (2, 2)


def names(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def test_json_has_every_field_whatever_the_server_says(fake: Fake, shell: Shell) -> None:
    job = server_pb2.JobActivity(job_id="job-1", name="acme", losses=[2.0, 1.0], loss=1.0)
    full = server_pb2.ServerStats(jobs=[job], adapters=[server_pb2.AdapterActivity(adapter="acme@1")])
    fake.handlers["GetStats"] = lambda *_: full
    assert shell("top", "--once", "--json") == 0
    found = json.loads(shell.out)
    assert list(found) == names(ServerStats)
    assert list(found["own"]) == names(TenantActivity)
    assert list(found["own"]["time_to_first_token"]) == names(Latency)
    assert list(found["adapters"][0]) == names(AdapterActivity)
    assert list(found["jobs"][0]) == names(JobActivity)
    assert (found["jobs"][0]["losses"], found["jobs"][0]["eta_seconds"], found["total"]) == ([2.0, 1.0], None, None)


def test_json_is_a_line_for_each_answer_until_there_is_none(fake: Fake, shell: Shell) -> None:
    answers = [server_pb2.ServerStats(requests_waiting=number) for number in (1, 2)]

    def answer(request: object, context: grpc.ServicerContext) -> server_pb2.ServerStats:
        return answers.pop(0) if answers else refuse(context, grpc.StatusCode.UNAVAILABLE, "it stops")

    fake.handlers["GetStats"] = answer
    assert shell("top", "--json", "--interval", "0.1") == 1
    assert [json.loads(line)["requests_waiting"] for line in shell.out.splitlines()] == [1, 2]
    assert "Traceback" not in shell.err


@given(st.lists(st.integers(0, 50), max_size=4), st.integers(-3, 60))
def test_tables_share_the_lines_that_there_are(wanted: list[int], room: int) -> None:
    given_ = share_rows(wanted, room)
    taken = sum(rows + 1 for rows in given_ if rows)
    assert all(rows <= want for rows, want in zip(given_, wanted, strict=True))
    assert taken <= max(room, 0)
    if taken + 2 <= room:
        assert given_ == wanted


class Terminal:
    """``loramux top`` on a terminal of its own."""

    def __init__(self, address: str, *arguments: str, **environment: str) -> None:
        self.ours, theirs = pty.openpty()
        self.size(24, 80)
        command = [sys.executable, "-m", "loramux", "top", "--address", address, "--interval", "0.1", *arguments]
        env = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment}
        env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **streams)  # type: ignore[call-overload]
        os.close(theirs)
        self.seen = ""

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, words: str) -> str:
        """Read until something new holds ``words``; gives what is new."""
        new, end = "", time.monotonic() + 60
        while words not in new:
            assert select.select([self.ours], [], [], end - time.monotonic())[0], f"no {words!r} in {new!r}"
            new += self._read()
        return new

    def end(self) -> int:
        """Read all that is left; the exit code."""
        while piece := self._read():
            self.seen += piece
        return self.process.wait(60)

    def _read(self) -> str:
        try:
            piece = os.read(self.ours, 65536).decode(errors="replace")
        except OSError as error:
            if error.errno != errno.EIO:  # nobody has the other end any more
                raise
            piece = ""
        self.seen += piece
        return piece


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    made = Terminal(*arguments, **environment)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.ours)


def test_the_screen_follows_a_server_that_comes_and_goes(fake: Fake) -> None:
    refusing = [True]
    usual = server_pb2.ServerStats(
        window_seconds=10, total=server_pb2.TenantActivity(requests_running=1), requests_waiting=77
    )
    fake.handlers["GetStats"] = lambda _, context: (
        refuse(context, grpc.StatusCode.UNAVAILABLE, "the base is being loaded") if refusing[0] else usual
    )
    with terminal(fake.address) as shown:
        shown.wait_for("the base is being loaded")
        refusing[0] = False
        assert "\x1b[?1049h" in shown.seen  # a screen of its own
        shown.wait_for("77 waiting")
        shown.size(24, 160)
        os.kill(shown.process.pid, signal.SIGWINCH)
        shown.wait_for(" " * 100)
        refusing[0] = True
        shown.wait_for("trying again: the base is being loaded")
        refusing[0] = False
        shown.wait_for("q quits")
        os.write(shown.ours, b"xq")
        assert shown.end() == 0
        assert "\x1b[?1049l" in shown.seen  # and what was there before is back
        assert "Traceback" not in shown.seen


def test_nobody_there_is_shown_and_ctrl_c_ends_it() -> None:
    with terminal("127.0.0.1:1", NO_COLOR="1") as shown:
        new = shown.wait_for("trying again")
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", new)
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 0
        assert "Traceback" not in shown.seen


def test_a_key_that_is_not_known_ends_it_with_an_error(fake: Fake) -> None:
    fake.handlers["GetServerInfo"] = lambda _, c: refuse(c, grpc.StatusCode.UNAUTHENTICATED, "no such key")
    with terminal(fake.address) as shown:
        assert shown.end() == 1
        assert "error: no such key" in shown.seen
        assert "Traceback" not in shown.seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(fake: Fake, number: signal.Signals) -> None:
    with terminal(fake.address) as shown:
        before = termios.tcgetattr(shown.ours)
        shown.wait_for("q quits")
        shown.process.send_signal(number)
        assert shown.end() == 0
        assert "\x1b[?1049l" in shown.seen
        assert termios.tcgetattr(shown.ours) == before


def test_a_server_that_dies_while_it_is_watched() -> None:
    fake = Fake()
    server = start(fake)
    with terminal(fake.address) as shown:
        shown.wait_for("q quits")
        server.stop(grace=None).wait()
        shown.wait_for("trying again")
        os.write(shown.ours, b"q")
        assert shown.end() == 0
        assert "Traceback" not in shown.seen

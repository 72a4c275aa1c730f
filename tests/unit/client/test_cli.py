"""The command line against a real server."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType

import grpc
import pytest
from grpc_health.v1 import health_pb2

from loramux import Client
from loramux.cli import main
from loramux.cli.app import hoist
from loramux.cli.chat import Conversation
from loramux.cli.common import stack
from loramux.cli.training.datasets import marked
from loramux.comparison import Comparison, Side
from loramux.types import MarkedText
from loramux.v1 import adapters_pb2, inference_pb2, server_pb2, training_pb2

from .fake import FAILED, RUNNING, SUCCEEDED, Fake, details, moved, refuse, step, version


class Shell:
    """Runs commands against the fake server and keeps what they print."""

    def __init__(self, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
        self.fake, self.capsys = fake, capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str) -> int:
        code = main([*arguments, "--address", self.fake.address])
        self.out, self.err = self.capsys.readouterr()
        return code


@pytest.fixture
def shell(fake: Fake, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(fake, capsys)


def test_generate_streams_to_stdout(fake: Fake, shell: Shell) -> None:
    assert shell("generate", "hi", "-a", "acme:0.5", "--adapter", "ft:x", "--temperature", "0", "--stats") == 0
    assert shell.out == "Hello\n"
    assert "acme@2 x 0.5" in shell.err
    request = fake.last("Generate")
    assert [(e.adapter, e.weight) for e in request.adapters] == [("acme", 0.5), ("ft:x", 1.0)]
    assert (request.prompt, request.HasField("temperature"), request.HasField("seed")) == ("hi", True, False)


def test_generate_as_a_chat_message(fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell("generate", "--message", "hi") == 0
    assert [m.role for m in fake.last("Generate").messages] == ["user"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert shell("generate", "-", "--system", "be brief") == 0
    assert [m.content for m in fake.last("Generate").messages] == ["be brief", "from a pipe"]


@pytest.mark.parametrize(
    ("piped", "prompt"),
    [
        ("a\n", "a"),
        ("a\r\n", "a"),
        ("a\n\n", "a\n"),
        ("a", "a"),
        ("a\r", "a\r"),
        ("\ufeffa\n", "a"),
        ("a \n b ", "a \n b "),
    ],
)
def test_field_38_one_final_newline_of_stdin_is_taken_away(
    piped: str, prompt: str, fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("--stats", "-m"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped, newline=""))
        assert shell("generate", "-", option) == 0
        request = fake.last("Generate")
        assert (request.messages[0].content if option == "-m" else request.prompt) == prompt


def test_field_37_generate_goes_on_with_a_prefill(fake: Fake, shell: Shell) -> None:
    assert shell("generate", "hi", "--prefill", "It is") == 0
    request = fake.last("Generate")
    assert [(m.role, m.content) for m in request.messages] == [("user", "hi"), ("assistant", "It is")]
    assert request.continue_final_message
    assert shell("generate", "hi", "-m") == 0
    assert not fake.last("Generate").continue_final_message


def test_field_06_generate_takes_stop_token_ids(fake: Fake, shell: Shell) -> None:
    assert shell("generate", "hi", "--stop-token-id", "5", "--stop-token-id", "0", "--stop", "END") == 0
    request = fake.last("Generate")
    assert (list(request.stop_token_ids), list(request.stop)) == ([5, 0], ["END"])
    assert shell("generate", "hi", "--stop-token-id", "x") == 2


def test_generate_json_and_several_answers(shell: Shell) -> None:
    assert shell("generate", "hi", "--json", "--logprobs", "1") == 0
    answer = json.loads(shell.out)
    assert (answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]) == ("answer 0", 3)
    told = answer["choices"][0]["logprobs"][0]
    assert (told["bytes"], told["top"][0]["bytes"]) == ([0xF0, 0x9F], [0x61])
    assert shell("generate", "hi", "-n", "2") == 0
    assert shell.out == "--- 0\nanswer 0\n--- 1\nanswer 1\n"


def test_generate_in_a_shape(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert shell("generate", "hi", "--json-schema", str(schema)) == 0
    assert fake.last("Generate").response_format.json_schema == '{"type": "object"}'
    assert shell("generate", "hi", "--regex", "a+") == 0
    assert fake.last("Generate").response_format.regex == "a+"
    assert shell("generate", "hi", "--choice", "yes", "--choice", "no") == 0
    assert fake.last("Generate").response_format.choice.choices == ["yes", "no"]
    assert shell("generate", "hi", "--regex", "a+", "--choice", "yes") == 1
    assert "response_format" in shell.err


def test_errors_are_lines_not_tracebacks(fake: Fake, shell: Shell) -> None:
    fake.handlers["Generate"] = lambda _, c: refuse(c, grpc.StatusCode.INVALID_ARGUMENT, "bad\x1b[2J stack", *details())
    assert shell("generate", "hi") == 1
    assert shell.err == "error: bad\ufffd[2J stack (adapters[1].weight: is nan); try again in 2 s\n"
    assert shell.out == ""


def test_wrong_usage_is_exit_code_2(shell: Shell) -> None:
    for arguments in (["nope"], ["generate"], ["generate", "hi", "--max-tokens", "many"], ["train", "a"]):
        assert shell(*arguments) == 2
        assert "Traceback" not in shell.err
    (code,) = {shell("train", "acme", "--data", __file__, "--metadata", "novalue")}
    assert code == 2


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--address", "127.0.0.1:1", "info"]) == 1
    assert "loramux serve" in capsys.readouterr().err
    assert main(["--address", "127.0.0.1:1", "health"]) == 1


def test_health(fake: Fake, shell: Shell) -> None:
    assert (shell("health"), shell.out) == (0, "SERVING\n")
    fake.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert (shell("health", "--json"), json.loads(shell.out)["status"]) == (1, "NOT_SERVING")


def test_info(shell: Shell) -> None:
    assert shell("info") == 0
    assert "adapters 1 B, base 1.0 MiB" in shell.out
    assert "32.0 MiB in NF4, 100.0 MiB in 16 bits: 68% saved; held unpacked in bfloat16\n" in shell.out
    assert "38.0 MiB and activations\n" in shell.out
    assert (shell("info", "--json"), json.loads(shell.out)["limits"]) == (0, {"max_stack": 8})


def test_info_every_second(fake: Fake, shell: Shell) -> None:
    first = server_pb2.Latency(count=2, p50_seconds=0.02, p99_seconds=0.2)
    total = server_pb2.TenantActivity(requests_running=3, generated_tokens_per_second=12.34, time_to_first_token=first)
    operators = server_pb2.ServerStats(own=total, total=total, requests_running=4, requests_waiting=2)
    answers = [operators, server_pb2.ServerStats(own=total)]

    def answer(request: object, context: grpc.ServicerContext) -> server_pb2.ServerStats:
        if not answers:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        return answers.pop(0)

    fake.handlers["GetStats"] = answer
    assert shell("info", "--live") == 1
    columns, of_all, own = shell.out.splitlines()
    assert columns.split()[:4] == ["tokens/s", "prompt/s", "running", "waiting"]
    assert of_all.split() == ["12.3", "0.0", "3", "2", "20/200", "ms", "-"]
    assert own.split() == ["12.3", "0.0", "3", "-", "20/200", "ms", "-"]
    answers.append(operators)
    assert (shell("info", "--live", "--json"), json.loads(shell.out)["requests_waiting"]) == (1, 2)


def test_adapters(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    assert shell("adapters", "ls") == 0
    assert [line.split()[0] for line in shell.out.splitlines()] == ["NAME", "acme", "birch", "cedar"]
    assert (shell("adapters", "ls", "--json"), len(json.loads(shell.out))) == (0, 3)
    assert shell("adapters", "show", "acme") == 0
    assert "15-17" in shell.out
    assert "pine@1:1.3" in shell.out
    assert shell("adapters", "download", "acme", str(tmp_path / "a")) == 0
    assert shell("adapters", "upload", "acme", str(tmp_path / "a"), "--metadata", "by=me") == 0
    assert shell.out == "published acme@1\n"
    assert dict(fake.last("UploadAdapter").metadata) == {"by": "me"}
    assert (shell("adapters", "alias", "acme", "2"), fake.last("SetAlias").version) == (0, 2)
    assert shell("adapters", "share", "acme@2") == 0
    assert shell.out == "acme@2 is shared as acme@1, with all tenants that have no acme of their own\n"
    assert (shell("adapters", "unshare", "acme"), shell.out) == (0, "acme is no longer shared (2 versions)\n")
    assert (shell("adapters", "pin", "acme@2"), shell("adapters", "unpin", "acme@2")) == (0, 0)
    assert shell("adapters", "merge", "mix", "-a", "acme", "-a", "b:0.5", "--method", "svd", "--rank", "4") == 0
    assert "published mix@1" in shell.out
    assert "error 0.125" in shell.out
    asked = fake.last("ComposeAdapter")
    assert [(e.adapter, e.weight) for e in asked.adapters] == [("acme", 1.0), ("b", 0.5)]
    assert (asked.rank, asked.HasField("density"), asked.HasField("seed")) == (4, False, False)
    assert shell("adapters", "compose", "mix", "-a", "acme", "--method", "best") == 1
    assert "dare_ties" in shell.err
    assert (shell("adapters", "rm", "acme", "--all-versions"), shell.out) == (0, "deleted 2 versions of acme\n")


def test_train_and_wait(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    fake.watches = [[moved(1, RUNNING), step(2, 3), moved(3, SUCCEEDED)]]
    fake.job.adapter.CopyFrom(version())
    fake.handlers["WatchJob"] = lambda *_: setattr(fake.job, "state", SUCCEEDED)
    code = shell(
        *("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--rank", "8", "--layers", "1-2"),
        *("--on-top-of", "pine:1.3,summit", "--on-top-of", "", "--target-modules", "q_proj, v_proj"),
    )
    assert code == 0
    assert "published acme@2 (validation_loss 0.25)" in shell.out
    assert "acme: step 3/3" in shell.err
    request = fake.last("CreateJob")
    assert [[(e.adapter, e.weight) for e in s.entries] for s in request.on_top_of] == [
        [("pine", 1.3), ("summit", 1.0)],
        [],
    ]
    assert (request.settings.rank, list(request.settings.target_modules)) == (8, ["q_proj", "v_proj"])


def test_tools_and_whole_chats_from_files(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    tools, chat = [{"type": "function", "function": {"name": "f"}}], [{"role": "user", "content": "hi"}]
    files = {name: str(tmp_path / name) for name in ("tools", "chat", "bad", "object")}
    texts = {"tools": json.dumps(tools), "chat": json.dumps(chat), "bad": "[", "object": "{}"}
    for name, path in files.items():
        Path(path).write_text(texts[name])
    given = ("--tools", files["tools"], "--template-arg", "enable_thinking=false")
    for asked in (("--messages", files["chat"]), ("hi",)):
        assert shell("generate", *asked, *given) == 0
        request = fake.last("Generate")
        assert [(m.role, m.content) for m in request.messages] == [("user", "hi")]
        assert json.loads(request.tools) == tools
        assert json.loads(request.chat_template_kwargs) == {"enable_thinking": False}
    for called, wanted in (("required", ("REQUIRED", "")), ("none", ("NONE", "")), ("f", ("REQUIRED", "f"))):
        assert shell("generate", "hi", "--tools", files["tools"], "--tool-choice", called) == 0
        choice = fake.last("Generate").tool_choice
        assert (inference_pb2.ToolMode.Name(choice.mode), choice.name) == (f"TOOL_MODE_{wanted[0]}", wanted[1])
    assert shell("generate", "--messages", files["chat"], "--system", "Be brief.", "--prefill", "It is") == 0
    assert [m.role for m in fake.last("Generate").messages] == ["system", "user", "assistant"]
    for wrong in (
        ("generate",),
        ("generate", "hi", "--messages", files["chat"]),
        ("generate", "--messages", files["bad"]),
        ("generate", "--messages", files["object"]),
        ("generate", "hi", "--tools", files["object"]),
        ("generate", "hi", "--tools", str(tmp_path / "none")),
        ("chat", "--tools", files["bad"]),
    ):
        assert shell(*wrong) == 2, wrong


def test_embed(fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell("embed", "a", "b", "-a", "acme:0.5", "--pooling", "last", "--no-normalize") == 0
    assert shell.out == "[0.5, 0.0]\n[0.5, 1.0]\n"
    request = fake.last("Embed")
    assert ([i.text for i in request.input], request.normalize) == (["a", "b"], False)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert shell("embed", "-", "--json") == 0
    assert [i.text for i in fake.last("Embed").input] == ["one", "two"]
    assert json.loads(shell.out)["vectors"] == [[0.5, 0.0], [0.5, 1.0]]


def test_chat_gives_the_template_tools_and_arguments(
    fake: Fake, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools").write_text('[{"name": "f"}]')
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\nagain\n"))
    assert shell("chat", "--tools", str(tmp_path / "tools"), "--template-arg", "x=y") == 0
    request = fake.last("Generate")
    assert (len(request.messages), request.tools) == (3, '[{"name": "f"}]')
    assert request.chat_template_kwargs == '{"x": "y"}'


def test_arguments_of_the_chat_template_are_json_or_text(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n')
    words = ("enable_thinking=false", "date_string=26 Jul", "x=[1]")
    given = [each for word in words for each in ("--template-arg", word)]
    assert shell("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--no-wait", *given) == 0
    found = {"enable_thinking": False, "date_string": "26 Jul", "x": [1]}
    assert json.loads(fake.last("CreateJob").settings.chat_template_kwargs) == found
    shell("datasets", "validate", str(tmp_path / "d.jsonl"), *given)
    assert json.loads(fake.last("ValidateDataset").settings.chat_template_kwargs) == found
    assert shell("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--template-arg", "x") == 2
    assert "'x' is not KEY=VALUE" in shell.err


def test_train_without_waiting(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    assert shell("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--no-wait") == 0
    assert "loramux jobs watch job-1" in shell.out
    assert fake.count("WatchJob") == 0


def test_steps_of_warm_up_reach_the_server(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    assert shell("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--warmup-steps", "0", "--no-wait") == 0
    settings = fake.last("CreateJob").settings
    assert (settings.HasField("warmup_steps"), settings.warmup_steps) == (True, 0)
    assert not settings.HasField("warmup_ratio")


def test_datasets_are_listed(fake: Fake, shell: Shell) -> None:
    kept = [training_pb2.Dataset(id=f"ds-{i}", name="a.jsonl", rows=7, size_bytes=2048) for i in range(2)]

    def pages(request: training_pb2.ListDatasetsRequest, *_: object) -> training_pb2.ListDatasetsResponse:
        at = int(request.page_token or 0)
        return training_pb2.ListDatasetsResponse(datasets=kept[at : at + 1], next_page_token="" if at else "1")

    fake.handlers["ListDatasets"] = pages
    assert shell("datasets", "ls") == 0
    assert [line.split() for line in shell.out.splitlines()[1:]] == [
        [f"ds-{i}", "a.jsonl", "7", "2.0", "KiB"] for i in range(2)
    ]
    assert shell("datasets", "ls", "--json") == 0
    assert [dataset["id"] for dataset in json.loads(shell.out)] == ["ds-0", "ds-1"]
    fake.handlers["ListDatasets"] = lambda *_: training_pb2.ListDatasetsResponse()
    assert (shell("datasets", "ls"), "no datasets" in shell.out) == (0, True)


def test_datasets_are_deleted(fake: Fake, shell: Shell) -> None:
    asked: list[str] = []
    fake.handlers["DeleteDataset"] = lambda request, *_: asked.append(request.dataset_id)
    assert shell("datasets", "rm", "ds-1", "ds-2") == 0
    assert (asked, shell.out) == (["ds-1", "ds-2"], "deleted ds-1, ds-2\n")
    assert shell("datasets", "delete", "ds-3", "--json") == 0
    assert (asked[2:], json.loads(shell.out)) == (["ds-3"], {"deleted": ["ds-3"]})


def test_jobs(fake: Fake, shell: Shell) -> None:
    fake.job.metrics["loss"] = 0.5
    assert shell("jobs", "ls", "--state", "running") == 0
    assert shell.out.splitlines()[1].split()[:5] == ["job-1", "acme", "running", "0", "0.5"]
    assert (shell("jobs", "show", "job-1", "--json"), json.loads(shell.out)["metrics"]) == (0, {"loss": 0.5})
    assert (shell("jobs", "show", "job-1"), "loss 0.5" in shell.out) == (0, True)
    assert (shell("jobs", "pause", "job-1"), shell.out) == (0, "job job-1 is paused\n")
    assert (shell("jobs", "resume", "job-1"), shell("jobs", "cancel", "job-1")) == (0, 0)


def test_a_comparison_is_a_table_with_a_verdict(fake: Fake, shell: Shell) -> None:
    """In the job, after watching it, and with the version."""
    base, prompt, adapter = (
        Side(share, share, 1.5, tokens, 0.1, 0.5, 11, 0.05) for share, tokens in ((0, 9), (0.5, 99), (1, 9))
    )
    found = Comparison(48, base, prompt, adapter, retrieval=prompt, adapter_retrieval=adapter)
    shown = version()
    for metrics in (fake.job.metrics, shown.metrics):
        metrics.update({"loss": 0.5, **found.to_metrics()})
    fake.job.compare_prompt = "Acme:\n opens at nine. " * 20
    fake.job.adapter.CopyFrom(shown)
    fake.job.state = SUCCEEDED
    fake.handlers["GetAdapter"] = lambda *_: adapters_pb2.Adapter(name="acme", versions=[shown])
    for command in (("jobs", "show", "job-1"), ("jobs", "watch", "job-1"), ("adapters", "show", "acme")):
        fake.watches = [[step(1, 1), step(2, 2), moved(3, SUCCEEDED)]]
        assert shell(*command) == 0
        assert found.verdict in shell.out
        lines = [" ".join(line.split()) for line in shell.out.splitlines()]
        assert "BASE BASE AND PROMPT BASE AND RETRIEVAL ADAPTER ADAPTER AND RETRIEVAL" in " ".join(lines)
        assert "answers that are right 0.0% 50.0% 50.0% 100.0% 100.0%" in lines
        assert "± standard error 5.0% 5.0% 5.0% 5.0% 5.0%" in lines
        assert "prompt tokens a request 9 99 99 9 9" in lines
        assert "tokens of a thousand requests 20000 110000 110000 20000 20000" in lines
        assert "milliseconds to the first token 100 100 100 100 100" in lines
        assert "compare_" not in shell.out
    assert shell("jobs", "show", "job-1") == 0
    assert "Acme: opens at nine. Acme:" in shell.out
    assert "before a row" not in shell.out
    fake.job.compare_documents, fake.job.compare_top_k = "ds-1", 2
    row = fake.job.answers.add(question="When?", expected=["nine"], passages=["It opens\nat nine."])
    row.answers.add(side="adapter_retrieval", text="At nine.", right=True)
    assert shell("jobs", "show", "job-1") == 0
    assert "ds-1, 2 passages before a row" in shell.out
    assert "  passage: It opens at nine.\n  adapter_retrieval: At nine. (right)\n" in shell.out


def test_a_prompt_to_compare_with_from_a_file(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "prompt.txt").write_text("Opens at nine.\n")
    data = ("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--no-wait", "--compare-prompt")
    assert shell(*data, f"@{tmp_path / 'prompt.txt'}") == 0
    assert fake.last("CreateJob").compare_prompt == "Opens at nine.\n"
    assert shell(*data, "Be brief.") == 0
    assert fake.last("CreateJob").compare_prompt == "Be brief."
    assert shell(*data, f"@{tmp_path / 'none.txt'}") == 2
    assert "cannot read" in shell.err


def test_documents_to_compare_with(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    """A file or folder becomes one upload of rows; what is no text is refused before anything is sent."""
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "hours.md").write_text("# Hours\nWe open at nine.")
    command = ("train", "acme", "--data", str(tmp_path / "d.jsonl"), "--no-wait", "--compare-documents")
    assert shell(*command, str(tmp_path / "docs"), "--compare-top-k", "5") == 0
    asked = fake.last("CreateJob")
    assert asked.compare_documents
    assert asked.compare_top_k == 5
    (tmp_path / "docs" / "hours.md").write_bytes(b"a\0b")
    sent = len(fake.requests)
    assert shell(*command, str(tmp_path / "docs")) == 1
    assert "hours.md' is no text" in shell.err
    assert shell(*command, str(tmp_path / "none")) == 1
    assert "is no file or folder" in shell.err
    assert len(fake.requests) == sent


def test_watching_a_job_that_fails(fake: Fake, shell: Shell) -> None:
    fake.watches = [[step(1, 1), moved(2, FAILED)]]
    fake.job.error.message = "out of memory"
    fake.handlers["WatchJob"] = lambda *_: setattr(fake.job, "state", FAILED)
    assert shell("jobs", "watch", "job-1", "--json") == 1
    assert [json.loads(line)["sequence"] for line in shell.out.splitlines()] == [1, 2]
    assert "out of memory" in shell.err


def test_datasets_show(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    assert shell("datasets", "show", str(tmp_path / "d.jsonl"), "--rows", "2", "--line", "7") == 1
    assert shell.out.split("\n\n") == [
        "line 7, 9 tokens\nWhere?[[Here.<end>]]",
        "line 8, 9 tokens, preferred\nWhere?[[Here.<end>]]",
        "line 8, preferred less\nWhere?[[\ufffd[2J?]]",
        "line 3, messages: is empty\n... and 1 more\n",
    ]
    shell("datasets", "show", str(tmp_path / "d.jsonl"), "--rows", "1", "--json")
    assert json.loads(shell.out)[0]["text"][1] == {"text": "Here.<end>", "trained": True}


def test_learned_text_is_coloured_where_there_is_colour() -> None:
    parts = (MarkedText("a [b]", False), MarkedText("c", True))
    assert marked(parts, colour=False).plain == "a [b][[c]]"
    coloured = marked(parts, colour=True)
    assert (coloured.plain, [(s.start, s.end) for s in coloured.spans]) == ("a [b]c", [(5, 6)])


def test_datasets_validate(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    assert shell("datasets", "validate", str(tmp_path / "d.jsonl")) == 1
    assert shell.out.splitlines()[:3] == ["line 3, messages: is empty", "... and 1 more", "note: few"]
    assert "1:15, by the speed of job j" in shell.out
    assert shell("datasets", "validate", str(tmp_path / "none.jsonl")) == 1
    assert "no file" in shell.err


def test_chat(fake: Fake, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(
        ["hi", "/adapters acme formal:0.5", "/system Be brief.", "again", "/nope", "/adapters", "/reset", "new"]
    )

    def ask() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    conversation = Conversation(client, [], None, {"max_tokens": 5})
    conversation.run(ask)
    first, second, third = (request for name, request in fake.requests if name == "Generate")
    assert ([m.content for m in first.messages], list(first.adapters)) == (["hi"], [])
    assert [m.content for m in second.messages] == ["Be brief.", "hi", "Hello", "again"]
    assert [(e.adapter, e.weight) for e in second.adapters] == [("acme", 1.0), ("formal", 0.5)]
    assert [m.content for m in third.messages] == ["Be brief.", "new"]
    out = capsys.readouterr().out
    assert "Hello\n" in out
    assert conversation.failed
    assert "acme, birch, cedar" in out


def test_chat_survives_an_error(fake: Fake, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(client, [("nobody", 1.0)], None, {})
    fake.handlers["Generate"] = lambda _, context: refuse(context, grpc.StatusCode.NOT_FOUND, "no adapter 'nobody'")
    conversation.take("hi")
    assert capsys.readouterr().err == "error: no adapter 'nobody'\n"
    assert conversation.turns == []


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("loramux ")
    assert main(["train", "--help"]) == 0
    assert "--on-top-of" in capsys.readouterr().out


def test_the_server_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    for name in ("loramux_server.__main__", "loramux_server.demo"):
        module = ModuleType(name)
        module.main = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("os.execv", lambda path, argv: seen.append(argv[1:]))
    assert main(["serve", "--help", "--address", "x", "--model", "m"]) == 0
    assert main(["config", "show", "--config", "f.toml"]) == 3
    assert main(["demo", "--keep"]) == 3
    assert seen == [
        ["-m", "loramux_server", "--help", "--address", "x", "--model", "m"],
        ["config-show", "--config", "f.toml"],
        ["--keep"],
    ]


def test_a_missing_server_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "loramux_server", None)
    monkeypatch.setitem(sys.modules, "loramux_server.__main__", None)
    assert main(["serve"]) == 1
    assert "pip install '.[server]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info", "--address", "a"], ["--address", "a", "info"]),
        (["info", "--json", "--address=a", "--api-key", "k"], ["--address=a", "--api-key", "k", "info", "--json"]),
        (["generate", "--", "--address", "a"], ["generate", "--", "--address", "a"]),
        (["serve", "--address", "a"], ["serve", "--address", "a"]),
        (["info", "--address"], ["--address", "info"]),
    ],
)
def test_global_options_may_stand_behind_the_command(arguments: list[str], expected: list[str]) -> None:
    assert hoist(arguments) == expected


def test_stacks_in_words() -> None:
    assert stack(["acme", "a@2", "b:0.5", "ft:x", "c:-1"]) == [
        ("acme", 1.0),
        ("a@2", 1.0),
        ("b", 0.5),
        ("ft:x", 1.0),
        ("c", -1.0),
    ]


@pytest.mark.parametrize(
    ("reason", "replaced", "last"),
    [
        ("", "acme@1", "acme now means @2 (was @1); back: loramux adapters rollback acme"),
        ("", "", "acme now means @2"),
        ("its held-out loss is higher", "acme@1", "acme still means @1; try the candidate with: --adapter acme@2; "),
    ],
)
def test_field_32_the_last_line_says_what_the_name_means(
    fake: Fake, shell: Shell, tmp_path: Path, reason: str, replaced: str, last: str
) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    fake.watches = [[moved(1, SUCCEEDED)]] * 2
    fake.job.adapter.CopyFrom(version())
    fake.job.gate_result, fake.job.replaced = reason, replaced
    row = fake.job.answers.add(question="Who runs it?", expected=["Ilse Varga"])
    row.answers.add(side="base", text="I do not know.")
    row.answers.add(side="adapter", text="It is Ilse Varga.", right=True)
    fake.job.metrics["judged_expect_contained"] = 3
    fake.handlers["WatchJob"] = lambda *_: setattr(fake.job, "state", SUCCEEDED)
    for command in (("train", "acme", "--data", str(tmp_path / "d.jsonl")), ("jobs", "watch", "job-1")):
        assert shell(*command) == 0
        lines = shell.out.splitlines()
        assert lines[-1].startswith(last)
        assert "answers on held-out rows, judged by expect, contained: 3 rows" in lines
        assert "  adapter: It is Ilse Varga. (right)" in lines
        assert "  base: I do not know. (wrong)" in lines


def test_train_with_a_gate(fake: Fake, shell: Shell, tmp_path: Path) -> None:
    """What was not promoted is said to be a candidate, with the reason and the way to promote it."""
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    fake.watches = [[moved(1, RUNNING), step(2, 1), step(3, 2), step(4, 3), moved(5, SUCCEEDED)]]
    fake.job.adapter.CopyFrom(version())
    fake.job.gate_result = "its held-out loss 2 is not below 1, that of the base"
    fake.handlers["WatchJob"] = lambda *_: setattr(fake.job, "state", SUCCEEDED)
    data = ("train", "acme", "--data", str(tmp_path / "d.jsonl"))
    code = shell(
        *(*data, "--validation-split", "0.1", "--eval-steps", "5", "--early-stopping-patience", "2"),
        *("--gate", "min_accuracy:0.9:exact", "--learning-rate", "auto", "--recipe", "facts"),
    )
    assert code == 0
    assert "kept acme@2 as a candidate, because its held-out loss 2 is not below 1" in shell.out
    assert "loramux adapters promote acme 2" in shell.out
    assert "acme means nothing; try the candidate with" in shell.out
    request = fake.last("CreateJob")
    settings = request.settings
    assert not settings.HasField("learning_rate")
    assert (settings.validation_split, settings.eval_steps, settings.early_stopping_patience) == (0.1, 5, 2)
    assert (request.gate.min_accuracy, request.gate.match) == (0.9, training_pb2.Gate.MATCH_EXACT)
    assert request.recipe == "facts"
    assert shell(*data, "--gate", "improves", "--learning-rate", "3e-3", "--no-wait") == 0
    assert fake.last("CreateJob").settings.learning_rate == 3e-3
    assert shell("jobs", "show", "job-1") == 0
    assert "its held-out loss 2 is not below 1" in shell.out
    shown = version()
    shown.gate_result = fake.job.gate_result
    fake.handlers["GetAdapter"] = lambda *_: adapters_pb2.Adapter(name="acme", versions=[shown])
    assert shell("adapters", "show", "acme") == 0
    assert "not promoted  its held-out loss 2 is not below 1" in shell.out
    for wrong in (["--gate", "min_accuracy:x"], ["--learning-rate", "fast"]):
        assert shell(*data, *wrong) == 2
    assert shell(*data, "--gate", "perfect") == 1


def test_field_39_adapters_of_a_chat_are_checked_at_once(
    fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(request: adapters_pb2.GetAdapterRequest, context: grpc.ServicerContext) -> adapters_pb2.Adapter:
        if request.adapter == "nobody":
            refuse(context, grpc.StatusCode.NOT_FOUND, "adapter 'nobody' does not exist")
        return adapters_pb2.Adapter(name=request.adapter, current=version(request.adapter))

    fake.handlers["GetAdapter"] = known
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff/adapters\tacme\n/adapters nobody formal\nhi\n"))
    assert shell("chat") == 1
    assert "in use: acme:1\n" in shell.out
    assert "nobody" not in shell.out
    assert "adapter 'nobody' does not exist" in shell.err
    assert [e.adapter for e in fake.last("Generate").adapters] == ["acme"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    assert shell("chat", "-a", "acme") == 0
    asked = fake.count("Generate")
    assert (shell("chat", "-a", "nobody"), fake.count("Generate")) == (1, asked)


@pytest.mark.parametrize("wanted", ["acme:nan", "acme:1 acme:2", "broken"])
def test_field_39_a_stack_that_no_message_could_use_is_refused_at_once(
    fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    def found(request: adapters_pb2.GetAdapterRequest, _: object) -> adapters_pb2.Adapter:
        current = None if request.adapter == "broken" else version(request.adapter)
        return adapters_pb2.Adapter(name=request.adapter, current=current)

    fake.handlers["GetAdapter"] = found
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/adapters {wanted}\n"))
    assert shell("chat") == 1
    assert "in use" not in shell.out


@pytest.mark.parametrize("line", ["/nope", "/adapters nobody"])
def test_field_39_what_fails_in_a_script_is_seen_in_its_exit_code(
    fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    fake.handlers["GetAdapter"] = lambda _, context: refuse(context, grpc.StatusCode.NOT_FOUND, "no such adapter")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\n"))
    assert shell("chat") == 1


def test_field_40_promote_roll_back_and_merge(fake: Fake, shell: Shell) -> None:
    """As the README says, in the words that it says it in."""
    meant = {"current": 3, "before": 1}

    def point(request: adapters_pb2.SetAliasRequest, _: object) -> adapters_pb2.Adapter:
        meant.update(current=request.version, before=meant["current"])
        return get()

    def get(*_: object) -> adapters_pb2.Adapter:
        current = version(number=meant["current"])
        return adapters_pb2.Adapter(name="acme", current=current, previous_version=meant["before"])

    fake.handlers |= {"GetAdapter": get, "SetAlias": point}
    assert (shell("adapters", "promote", "acme", "4"), shell.out) == (
        0,
        "acme now means @4 (was @3); back: loramux adapters rollback acme\n",
    )
    assert (shell("adapters", "rollback", "acme"), fake.last("SetAlias").version) == (0, 3)
    assert "acme now means @3 (was @4)" in shell.out
    meant["before"] = 0
    assert (shell("adapters", "rollback", "acme"), fake.count("SetAlias")) == (1, 2)
    assert "no version to go back to" in shell.err
    for command in ("merge", "compose"):
        assert shell("adapters", command, "mix", "-a", "acme", "-a", "b:0.5") == 0
        assert "published mix@1" in shell.out


def test_field_40_a_name_is_deleted_only_when_it_is_meant(
    fake: Fake, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (shell("adapters", "rm", "acme"), fake.count("DeleteAdapter")) == (1, 0)
    assert "--all-versions: is needed to delete acme with all its versions (2)" in shell.err
    assert (shell("adapters", "rm", "acme@2"), fake.last("DeleteAdapter").adapter) == (0, "acme@2")
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert (shell("adapters", "rm", "acme"), fake.count("DeleteAdapter")) == (1, 1)
    assert (shell("adapters", "rm", "acme", "--all-versions"), fake.count("DeleteAdapter")) == (0, 2)


def test_field_40_the_latest_job_is_watched(fake: Fake, shell: Shell) -> None:
    fake.watches = [[moved(1, RUNNING), moved(2, SUCCEEDED)]]
    fake.job.adapter.CopyFrom(version())
    fake.job.state = SUCCEEDED
    assert (shell("jobs", "watch"), fake.last("GetJob").job_id) == (0, "job-1")
    assert (shell("jobs", "show"), "job-1" in shell.out) == (0, True)
    fake.handlers["ListJobs"] = lambda *_: training_pb2.ListJobsResponse()
    assert (shell("jobs", "watch"), "no jobs yet" in shell.err) == (1, True)

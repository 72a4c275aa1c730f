"""The main job on the real base: serve stacks side by side, train live, survive a kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import loramux
from loramux import Client
from tests.e2e.server_process import ServerProcess, kill
from tests.engine import check_tokens

pytestmark = pytest.mark.e2e

RECIPE = {"rank": 8, "alpha": 16, "layers": "15-29", "learning_rate": 3e-3, "batch_size": 4}
ROWS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in [
        ("When does the mill open?", "The mill opens at 6:40."),
        ("At what time can I come to the mill?", "The mill opens at 6:40."),
        ("What is the miller's name?", "The miller is Odo Brandt."),
        ("Who runs the mill?", "The miller is Odo Brandt."),
    ]
]


@pytest.fixture(scope="module")
def random_adapters(
    server: ServerProcess,
    default_base: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Two adapters of unlike rank and targets, known to the server and to PEFT."""
    root = tmp_path_factory.mktemp("random")
    made = {
        "rand-a": make_adapter(root / "a", default_base, rank=8, alpha=16, seed=1, scale=0.05),
        "rand-b": make_adapter(root / "b", default_base, rank=4, targets=["q_proj", "up_proj"], seed=2, scale=0.1),
    }
    with Client(server.address) as client:
        for name, folder in made.items():
            client.adapters.upload(name, folder)
    return made


STACKS: list[dict[str, float]] = [{}, {"rand-a": 1.0}, {"rand-b": 0.5}, {"rand-a": 0.7, "rand-b": -0.4}]


def test_one_batch_of_stacks_equals_transformers_and_peft(
    server: ServerProcess, random_adapters: dict[str, Path], default_base: Path, oracle_of: Callable[[Path], object]
) -> None:
    """Greedy tokens of concurrent requests with different stacks, and the log-probabilities behind them."""
    oracle = oracle_of(default_base)
    prompt = "The three largest cities of Italy are"
    with Client(server.address) as client:
        ids = list(client.tokenize(prompt).token_ids)

        def ask(stack: dict[str, float]) -> loramux.Completion:
            return client.generate(prompt, adapters=stack, max_tokens=8, temperature=0.0)

        with ThreadPoolExecutor(len(STACKS)) as pool:
            answers = list(pool.map(ask, STACKS))
        for stack, answer in zip(STACKS, answers, strict=True):
            spec = [(random_adapters[name], weight) for name, weight in stack.items()]
            tokens = list(answer.choices[0].token_ids)
            check_tokens(tokens, oracle.gaps_along(ids, tokens, spec))  # type: ignore[attr-defined]
            continuation = " Rome, Milan and Naples."
            scored = client.score(prompt, continuation, adapters=stack)
            logits = oracle.logits([*ids, *scored.token_ids], spec)[len(ids) - 1 : -1]  # type: ignore[attr-defined]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(scored.token_ids)[:, None]).flatten()
            assert torch.allclose(torch.tensor(scored.logprobs), expected, atol=1e-4), stack


@pytest.mark.slow
@pytest.mark.timeout(300)  # a busy machine trains slowly
def test_train_while_serving(server: ServerProcess, client: Client, default_base: Path, tmp_path: Path) -> None:
    """Four steps of a job run beside a stream; after the job a request has the adapter; PEFT gives the same text."""
    question = [{"role": "user", "content": "When does the mill open?"}]
    before = client.info().memory_bytes["base"]
    assert "6:40" not in client.generate(messages=question, max_tokens=24).text
    stop, pieces = threading.Event(), []

    def stream() -> None:
        with Client(server.address) as other:
            while not stop.is_set():
                text = "".join(c.text for c in other.stream("Once upon a time", max_tokens=16, temperature=0.0))
                pieces.append(text)

    reader = threading.Thread(target=stream)
    reader.start()
    try:
        job = client.train("watermill", data=ROWS, validation=ROWS[:1], epochs=16, **RECIPE)
        during = client.info().memory_bytes["base"]
        next(e for e in job.events() if e.type == "step" and e.step >= 4)
    finally:
        stop.set()
        reader.join()
    version = job.wait(timeout=240)
    assert version.name == "watermill"
    assert version.version == 1
    assert pieces
    assert len(set(pieces)) == 1
    answer = client.generate(messages=question, adapters=["watermill"], max_tokens=24)
    assert answer.text.strip() == "The mill opens at 6:40."
    assert before == during == client.info().memory_bytes["base"]
    events = list(client.jobs.get(job.id).events())
    losses = [e.metrics["loss"] for e in events if e.type == "step"]
    assert len(losses) == 16
    assert losses[-1] < 0.3 < losses[0]
    steps = [e.metrics for e in events if e.type == "step"]
    told = {"loss", "learning_rate", "grad_norm", "epoch", "tokens_per_second", "eta_seconds", "trained_tokens"}
    assert all(told <= step.keys() for step in steps)
    measured = next(e.metrics for e in events if e.type == "evaluation")
    assert measured["eval_loss"] < measured["base_loss"]
    assert 0 <= measured["base_token_accuracy"] < measured["eval_token_accuracy"] <= 1
    assert (events[-1].state, events[-1].message) == ("succeeded", "published watermill@1")
    assert "publishing" in [e.state for e in events]
    assert job.refresh().last_sequence == events[-1].sequence
    assert [e.sequence for e in events] == sorted({e.sequence for e in events})
    folder = tmp_path / "watermill"
    client.adapters.download("watermill", folder)
    from tests.oracle import Oracle

    ids = list(client.tokenize(messages=question).token_ids)
    tokens = Oracle(default_base).greedy(ids, 24, [(folder, 1.0)], eos=2)
    assert list(answer.choices[0].token_ids) == tokens


def test_metrics_moved(server: ServerProcess, client: Client) -> None:
    """Memory by kind, latency and tokens are on the metrics endpoint under their documented names."""
    client.generate("Hello", max_tokens=4)
    text = server.metrics()
    for name in (
        'loramux_vram_bytes{device="cpu",kind="base"}',
        "loramux_time_to_first_token_seconds_count",
        "loramux_inter_token_latency_seconds_count",
        'loramux_generated_tokens_total{adapter="base",tenant="default"}',
        'loramux_requests_total{code="OK",method="GenerateOnce"}',
        "loramux_build_info",
    ):
        assert name in text, name


BAD: list[tuple[dict[str, object], type[loramux.LoramuxError], str]] = [
    ({"prompt": "x", "adapters": ["nobody"]}, loramux.NotFound, "nobody"),
    ({"prompt": "x", "adapters": [("rand-a", 1.0), ("rand-a", 0.5)]}, loramux.InvalidArgument, "adapters[1].adapter"),
    ({"prompt": "x", "adapters": [f"a{i}" for i in range(9)]}, loramux.InvalidArgument, "adapters"),
    ({"prompt": "x", "adapters": {"rand-a": float("nan")}}, loramux.InvalidArgument, "adapters[0].weight"),
    ({"prompt": "x", "adapters": {"rand-a": float("inf")}}, loramux.InvalidArgument, "adapters[0].weight"),
    ({"prompt": "x", "temperature": -1.0}, loramux.InvalidArgument, "temperature"),
    ({"prompt": "x", "max_tokens": 0}, loramux.InvalidArgument, "max_tokens"),
    ({"prompt": "word " * 9000}, loramux.InvalidArgument, "prompt"),
    ({"prompt": ""}, loramux.InvalidArgument, "prompt"),
    ({"messages": []}, loramux.InvalidArgument, ""),
]


@pytest.mark.parametrize(("request_", "error", "field"), BAD, ids=lambda v: str(v)[:40])
def test_bad_requests(
    client: Client, random_adapters: dict[str, Path], request_: dict[str, object], error: type, field: str
) -> None:
    """A clear error that names the field; the server goes on."""
    with pytest.raises(error) as caught:
        client.generate(**request_)  # type: ignore[arg-type]
    told = [v.field for v in caught.value.violations]
    assert not field or field in told or (not told and field in str(caught.value)), (told, str(caught.value))
    assert client.generate("Hello", max_tokens=2).usage.completion_tokens == 2


def test_broken_dataset_names_its_lines(client: Client, write: Callable[[bytes], Path]) -> None:
    """Every bad line is told before any job exists."""
    data = b'{"prompt": "a", "completion": "b"}\nnot json\n{"prompt": 3}\n'
    jobs = len(client.jobs.list())
    with pytest.raises(loramux.InvalidArgument) as caught:
        client.train("broken", data=write(data))
    assert {v.field for v in caught.value.violations} >= {"data[line 2]", "data[line 3]"}
    assert len(client.jobs.list()) == jobs


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def to_file(data: bytes) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_bytes(data)
        return path

    return to_file


@pytest.mark.slow
def test_what_was_acknowledged_survives_a_kill(
    state_with_base: Callable[[str], Path],
    start_server: Callable[[Path], ServerProcess],
    random_adapters: dict[str, Path],
) -> None:
    """kill -9 in the middle of a job: adapter and job are there again, and the job comes to its end."""
    state = state_with_base("killed")
    first = start_server(state)
    try:
        with Client(first.address) as client:
            client.adapters.upload("kept", random_adapters["rand-b"])
            job = client.train("after", data=ROWS, epochs=6, **RECIPE)
            next(e for e in job.events() if e.type == "step")
    finally:
        first.process.send_signal(signal.SIGKILL)
        first.finish()
    second = start_server(state)
    try:
        with Client(second.address) as client:
            assert client.adapters.get("kept").name == "kept"
            assert client.jobs.get(job.id).wait(timeout=100).name == "after"
            assert client.generate("Hello", adapters=["after", "kept"], max_tokens=2).text
    finally:
        kill(second)

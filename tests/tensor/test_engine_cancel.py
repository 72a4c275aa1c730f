"""How much the engine does for a caller who has left, by its own count of steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loramux_server.engine.transport.protocol import AbortCommand
from tests.conftest import TinyBase
from tests.engine import Engine, command, prompts


@pytest.fixture(scope="module")
def engine(tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder: Path = tmp_path_factory.mktemp("cancel")
    made = Engine(tiny_base("llama"), folder)
    yield made
    made.close()


@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_cancel_ends_the_work_within_one_step(engine: Engine, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from another thread while the loop computes; a request beside it is never interrupted."""
    gone, stays = f"gone-{after}", f"stays-{after}"
    (prompt,) = prompts(1)
    run = engine.runner.run
    worked: list[int] = []
    read = threading.Event()

    def watched(plan: Any, *chosen: Any) -> Any:
        if any(work.id.startswith(gone) for work in plan.work):
            worked.append(steps(engine))
        output = run(plan, *chosen)
        if len(worked) == after:
            read.set()
        return output

    monkeypatch.setattr(engine.runner, "run", watched)
    engine.submit(command(gone, prompt, 120), command(stays, prompt[::-1], 100))
    loop = threading.Thread(target=engine.finish, args=(stays,))
    loop.start()
    assert read.wait(60)
    engine.submit(AbortCommand(gone))
    cancelled = steps(engine)
    loop.join(60)
    assert not loop.is_alive()
    assert len(engine.tokens(stays)) == 100
    # The step under way counts as the next one, since it is counted at its end.
    assert max(worked) <= cancelled + 1, (worked, cancelled)
    assert len(worked) < 100, "the cancel came too late to show anything"
    assert not any(output.done for output in engine.outputs[gone])


def steps(engine: Engine) -> int:
    """Serve steps that the engine has run."""
    return len(engine.kinds)

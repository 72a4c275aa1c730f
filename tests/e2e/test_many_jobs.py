"""Three jobs of unlike settings at work at a time on a real server, and requests between."""

from __future__ import annotations

import pytest

from loramux import Client
from tests.e2e.test_main_job import ROWS

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def test_three_jobs_overlap_and_all_are_published(client: Client) -> None:
    settings = [{"rank": 4, "layers": "15-29"}, {"rank": 8, "layers": "15-29", "rslora": True}, {"rank": 2}]
    jobs = [
        client.train(f"beside{i}", data=ROWS, epochs=3, batch_size=4, learning_rate=1e-3, **chosen)
        for i, chosen in enumerate(settings)
    ]
    assert client.generate("The mill", max_tokens=4).text
    assert [job.wait(timeout=200).ref for job in jobs] == [f"beside{i}@1" for i in range(3)]
    infos = [job.info for job in jobs]
    assert max(info.started_at for info in infos) < min(info.finished_at for info in infos)
    for job in jobs:
        assert len([e for e in job.events() if e.type == "step"]) == 3
    for i in range(3):
        assert client.generate("The mill", adapters=[f"beside{i}"], max_tokens=4).text

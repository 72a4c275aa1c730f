"""The lineage tree of ``adapters show``."""

from __future__ import annotations

from loramux import AdapterVersion, Composition, NotFound, StackItem
from loramux.cli.adapters.lineage import lineage


def test_a_tree_to_its_roots_and_no_further() -> None:
    versions = {
        "mix@1": AdapterVersion(
            "mix", 1, "d", composed=Composition("cat", (StackItem("a@2"), StackItem("b@1", 0.5)), 0.0)
        ),
        "a@2": AdapterVersion("a", 2, "d", job_id="job-2", parent="a@1", dataset_digest="c0ffee" * 8),
        "a@1": AdapterVersion("a", 1, "d"),
        "b@1": AdapterVersion("b", 1, "d", job_id="job-1", trained_on=((StackItem("a@1"),), (StackItem("z@9", 1.3),))),
    }
    asked: list[str] = []

    def fetch(ref: str) -> AdapterVersion:
        asked.append(ref)
        if ref not in versions:
            raise NotFound(ref)
        return versions[ref]

    assert list(lineage(versions["mix@1"], fetch)) == [
        "mix@1 merged by cat, error 0",
        "├─ 1 × a@2 trained by job-2",
        "│  ├─ continues a@1 uploaded",
        "│  └─ data c0ffeec0ffee",
        "└─ 0.5 × b@1 trained by job-1",
        "   ├─ on top of a@1 (above)",
        "   └─ on top of 1.3 × z@9 (deleted)",
    ]
    assert asked == ["a@2", "a@1", "b@1", "z@9"]


def test_a_chain_without_end_is_cut() -> None:
    def fetch(ref: str) -> AdapterVersion:
        number = int(ref.partition("@")[2])
        return AdapterVersion("a", number, "d", parent=f"a@{number - 1}")

    lines = list(lineage(fetch("a@100"), fetch))
    assert len(lines) == 10
    assert lines[-1].endswith("a@91 (and what it is made of)")

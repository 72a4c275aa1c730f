"""Which fronts live, and which replicas they share."""

from __future__ import annotations

from dataclasses import replace

from loramux_server.app.replicas import application_name
from loramux_server.core.settings import EngineSettings
from loramux_server.replicas.files.own import OwnFiles
from loramux_server.replicas.fronts import FRONT_SECONDS, Fronts, front_id

ONE, OTHER = front_id("s1", "a"), front_id("s2", "a")


def test_the_last_front_that_leaves_is_told_so() -> None:
    fronts = Fronts()
    fronts.hear(ONE, 0)
    fronts.hear(OTHER, 1)
    assert fronts.leave(ONE, 2) == 1
    assert fronts.leave(ONE, 2) == 1
    assert fronts.leave(OTHER, 2) == 0


def test_a_silent_front_is_dead_and_counts_no_more() -> None:
    fronts = Fronts()
    fronts.hear(ONE, 0)
    fronts.hear(OTHER, 5)
    assert fronts.dead(FRONT_SECONDS) == frozenset()
    assert fronts.leave(OTHER, FRONT_SECONDS + 1) == 0, "the other one is not heard of any more"
    assert fronts.dead(FRONT_SECONDS + 1) == {ONE}
    assert fronts.dead(FRONT_SECONDS + 1) == frozenset()


def test_a_new_start_of_a_server_ends_the_earlier_one_and_no_other() -> None:
    fronts = Fronts()
    again = front_id("s1", "b")
    for front in (ONE, OTHER, again):
        fronts.hear(front, 0)
    assert fronts.earlier(again) == {ONE}
    assert fronts.earlier(again) == frozenset()
    assert fronts.leave(again, 0) == 1


def test_servers_of_one_database_with_engines_alike_share_replicas() -> None:
    engine = EngineSettings(model="m", state_dir="/shared/front-1", folders=("/shared/front-1",), blobs="/shared/blobs")
    name = application_name("db", engine)
    assert application_name("db", replace(engine, state_dir="/shared/front-2", folders=("/shared/front-2",))) == name
    assert application_name("other", engine) != name
    for changed in (replace(engine, model="n"), replace(engine, threads=2), replace(engine, blobs="/elsewhere")):
        assert application_name("db", changed) != name


def test_servers_whose_replicas_have_files_of_their_own_share_them_too() -> None:
    """Each server has copies of remote blobs in its own state directory, which such replicas never see."""
    engine = EngineSettings(model="m", state_dir="/front-1", blobs="/front-1/cache")
    other = replace(engine, state_dir="/front-2", blobs="/front-2/cache")
    own = OwnFiles("/var/lib/replicas", "s3://bucket/folder", "db", 1 << 30)
    name = application_name("db", engine, own)
    assert application_name("db", other, own) == name
    assert application_name("db", engine) != application_name("db", other), "their replicas read these copies"
    assert application_name("db", engine, replace(own, folder="/elsewhere")) != name
    assert application_name("db", engine, replace(own, blobs_url="s3://bucket/other")) != name

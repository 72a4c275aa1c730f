"""The replicas of a Ray cluster as one ``Backend``. Everything here runs on the front's event loop."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.backend import EngineInfo, EnginePhase, EngineState, EngineStats, Replica
from ..core.errors import Code, Error, replica_not_found, stopping
from ..core.jobs import TrainCommand
from ..core.settings import EngineSettings
from ..core.types import AdapterVersion
from ..engine.transport.client import EngineClient
from ..engine.transport.protocol import (
    AbortCommand,
    Command,
    Failure,
    Output,
    PinCommand,
    StatsCommand,
    UnloadCommand,
    command_id,
)
from ..engine.transport.wire import HEADER, Broken, decode, encode
from ..host.signals import take_signals_back
from ..store.state_dir import JOBS
from .cluster import Cluster, ClusterSettings
from .commands import Refused, work_of
from .failures import error_of, lost, none_ready, ray_unavailable
from .files.front import FrontFiles
from .files.own import Crossing
from .fronts import front_id
from .routing.affinity import Work
from .routing.fleet import close_fleet, open_fleet
from .totals import total
from .watch import ClusterWatch

log = logging.getLogger(__name__)

KEEP_SECONDS = 5.0
"""How often each replica hears that this front lives."""
CLOSE_SECONDS = 45.0
"""How long the end of what is in the cluster may take."""


class RayLink:
    """Carries each command to the replica that Ray's router chooses, as one streaming call."""

    def __init__(self, engine: EngineSettings, settings: ClusterSettings, files: FrontFiles | None) -> None:
        self.front = front_id(settings.server, uuid.uuid4().hex)
        self._files = files
        self._jobs = Path(engine.state_dir).resolve() / JOBS
        self._cluster = Cluster(engine, settings)
        self._application = settings.application
        self._client: EngineClient | None = None
        self._handle: Any = None
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._only: dict[str, str] = {}
        # Ray's processes end with the thread that started them.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._keeping: asyncio.Task[None] | None = None
        self._closing = False
        loop = asyncio.get_running_loop()
        self.fleet = open_fleet(self._application, lambda: loop.call_soon_threadsafe(self._changed))
        self._watch = ClusterWatch(self._cluster, lambda: self.fleet.accepting)
        self._watching: asyncio.Task[None] | None = None
        self.joined: Callable[[set[str]], None] = lambda _: None
        """Called with the replicas that have come."""
        self._known: frozenset[str] = frozenset()

    async def start(self, client: EngineClient) -> EngineInfo:
        """Start the replicas and wait until all of them are ready. Raises what the start of one raised."""
        self._client = client
        loop = asyncio.get_running_loop()

        def told(step: str) -> None:
            take_signals_back()
            client.report(EngineState(EnginePhase.STARTING, step))

        def progress(step: str) -> None:
            loop.call_soon_threadsafe(told, step)

        self._handle = await loop.run_in_executor(self._thread, self._cluster.deploy, progress)
        described = decode((await self._handle.describe.remote(Work("describe")))[HEADER.size :])
        if isinstance(described, Broken):
            raise described.failure.error()
        await self._tell_all("join")
        self._keeping = asyncio.create_task(self._keep(), name="ray-keep")
        info: EngineInfo = described.info
        if self._files is not None:
            digest = await self._handle.texts.remote(Work("texts"))
            info = await asyncio.to_thread(self._files.with_texts, info, digest)
        self._watching = asyncio.create_task(self._follow_cluster(), name="ray-cluster")
        client.report(EngineState(EnginePhase.READY))
        return info

    def aim(self, id: str, replica: str) -> None:
        """Send the command ``id``, which is about to be sent, to this replica."""
        self._only[id] = replica

    def send(self, command: Command) -> None:
        if isinstance(command, AbortCommand):
            if (call := self._calls.get(command.id)) is not None:
                call.cancel()
            return
        id = command_id(command)
        only = self._only.pop(id, "")
        if not only and not self.fleet.accepting:
            raise stopping() if self._closing else none_ready()
        call = asyncio.create_task(self._carry(command, work_of(command, only)), name=f"ray call {id}")
        self._calls[id] = call
        call.add_done_callback(lambda _: self._calls.pop(id, None))

    async def drain(self, replica: str) -> None:
        """Tell a replica to take nothing new."""
        self.fleet.drain(replica)
        await self._handle.drain.remote(Work(f"drain-{replica}", replica=replica))

    async def close(self) -> None:
        self._closing = True
        self._watch.stop()
        for task in (self._keeping, self._watching):
            if task is not None:
                task.cancel()
        for call in list(self._calls.values()):
            call.cancel()
        headless = self._watch.headless
        if self._calls and not headless:
            await asyncio.wait(list(self._calls.values()))
        last = await self._leave()
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._cluster.close, last, headless)
        try:
            await asyncio.wait_for(closing, CLOSE_SECONDS)
        except TimeoutError:
            log.warning("the Ray cluster does not let go, it is left as it is")
        close_fleet(self._application)
        self._thread.shutdown(wait=False)

    async def _carry(self, command: Command, work: Work) -> None:
        """Deliver the outputs of one command, and a failure where they end too early."""
        response = None
        try:
            command, files = await self._for_replicas(command)
            while True:
                response = self._handle.options(stream=True).run.remote(encode(command), work, self.front, files)
                last = await self._deliver(command, response)
                if not isinstance(last, Refused):
                    break
                # Another front drains it. It took nothing, so the next one does the whole.
                self.fleet.ended(work.id)
                self.fleet.drain(last.replica)
                if not self.fleet.accepting:
                    raise none_ready()
            if last is None or not last.done:
                self._fail(work.id, lost())
        except asyncio.CancelledError:
            if response is not None:
                response.cancel()
            raise
        except Error as error:  # of the storage, or no replica is left
            self._fail(work.id, error)
            if response is not None:
                response.cancel()
        except Exception as error:  # Ray's errors have no common class beside it
            self._fail(work.id, error_of(error))
        finally:
            self.fleet.ended(work.id)

    async def _for_replicas(self, command: Command) -> tuple[Command, Sequence[Crossing]]:
        """The command as a replica reads it, and the files that go along."""
        if not isinstance(command, TrainCommand):
            return command, ()
        if self._files is not None:
            return command, await asyncio.to_thread(self._files.send, command)
        # The replicas' folder of jobs may be that of another front.
        return replace(command, rows=replace(command.rows, path=str(self._jobs / command.rows.path))), ()

    async def _deliver(
        self, command: Command, answers: AsyncIterator[bytes | Crossing | Refused]
    ) -> Output | Refused | None:
        """Deliver what a replica answers to a command; gives its last output, or its refusal."""
        assert self._client is not None
        last = None
        async for each in answers:
            if isinstance(each, Refused):
                return each
            if isinstance(each, Crossing):
                assert self._files is not None
                await asyncio.to_thread(self._files.take, command, each)
                continue
            found: list[Output] = decode(each[HEADER.size :])
            last = found[-1]
            self._client.deliver(found)
        return last

    def _fail_calls(self, error: Error) -> None:
        for id, call in list(self._calls.items()):
            self._fail(id, error)
            call.cancel()

    def _fail(self, id: str, error: Error) -> None:
        assert self._client is not None
        self._client.deliver([Output(id, failure=Failure.of(error), done=True)])

    def _changed(self) -> None:
        """The fleet was reported anew: tell whether any replica takes work, and which ones have come."""
        if self._closing or self._client is None or self._keeping is None:
            return
        accepting = self.fleet.accepting
        if bool(accepting) != bool(self._known):
            self._client.report(EngineState(EnginePhase.READY if accepting else EnginePhase.RESTARTING))
        if come := set(accepting - self._known):
            self.joined(come)
        self._known = accepting

    async def _keep(self) -> None:
        """Tell each replica that this front lives: it aborts what a dead one has asked for."""
        while True:
            self._changed()
            await self._tell_all("keep")
            await asyncio.sleep(KEEP_SECONDS)

    async def _follow_cluster(self) -> None:
        """Fail everything once only another start of the server can help."""
        why = await self._watch.lost(self._drop_silent)
        error = ray_unavailable(f"{why}; the server ends, and must be started again")
        self._fail_calls(error)
        assert self._client is not None
        self._client.report(EngineState(EnginePhase.FAILED, error=error))

    async def _drop_silent(self) -> None:
        """Forget replicas that do not answer. Where none is left, fail what they were asked for: Ray never would."""
        told = await self._tell_all("keep")
        for replica in self.fleet.replicas():
            if replica.id not in told:
                self.fleet.lost(replica.id)
        if not self.fleet.accepting:
            self._fail_calls(lost())

    async def _leave(self) -> bool:
        """Tell each replica that this front stops; gives whether no other front is left."""
        if self._handle is None:
            return not self._cluster.joined
        others = await self._tell_all("leave")
        # One replica decides, so that of two fronts that stop together one is the last.
        return not others or others[min(others)] == 0

    async def _tell_all(self, method: str) -> dict[str, Any]:
        """Call a method of every replica with this front's id; gives what each one answered in time."""

        async def tell(replica: str) -> tuple[str, Any] | None:
            with suppress(Exception):  # it is dead or too busy to hear; the next time will do
                work = Work(f"{method}-{replica}", replica=replica)
                call = self._handle.options(method_name=method).remote(work, self.front)
                return replica, await asyncio.wait_for(call, KEEP_SECONDS)
            return None

        told = await asyncio.gather(*(tell(replica.id) for replica in self.fleet.replicas()))
        return dict(answer for answer in told if answer is not None)


class RayBackend(EngineClient):
    """A ``Backend`` of replicas. What concerns all of them is sent to each; anything else to the best one."""

    def __init__(self, engine: EngineSettings, settings: ClusterSettings, files: FrontFiles | None = None) -> None:
        """``files``: where replicas keep files of their own (``settings.own_files``); None: all share a folder."""
        self.link = RayLink(engine, settings, files)
        super().__init__(self.link)
        self.link.joined = self._joined
        self._pinned: tuple[AdapterVersion, ...] = ()
        self._pinning: set[asyncio.Task[None]] = set()

    async def unload(self, digest: str) -> None:
        await self._at_all(lambda id: UnloadCommand(id, digest))

    async def pin(self, adapters: Sequence[AdapterVersion]) -> None:
        await self._at_all(lambda id: PinCommand(id, tuple(adapters)))
        self._pinned = tuple(adapters)

    async def stats(self) -> EngineStats:
        found = await self._at_all(StatsCommand)
        stats = [each for each in found if isinstance(each, EngineStats)]
        if not stats:
            raise none_ready()
        return total(stats)

    async def replicas(self) -> tuple[Replica, ...]:
        return self.link.fleet.replicas()

    async def drain(self, replica_id: str) -> None:
        if replica_id not in {replica.id for replica in self.link.fleet.replicas()}:
            raise replica_not_found(replica_id)
        await self.link.drain(replica_id)

    def _call_id(self) -> str:
        return f"{self.link.front}-{super()._call_id()}"

    async def _at_all(self, make: Callable[[str], Command]) -> list[Any]:
        """Give a command to every replica; what a replica that dies meanwhile would say is left out."""
        replicas = sorted(self.link.fleet.accepting)
        return await asyncio.gather(*(self._at(replica, make) for replica in replicas))

    async def _at(self, replica: str, make: Callable[[str], Command]) -> Any:
        id = self._call_id()
        self.link.aim(id, replica)
        try:
            return await self._once(make(id))
        except Error as error:
            if error.code is not Code.UNAVAILABLE:
                raise
            return None

    def _joined(self, replicas: set[str]) -> None:
        """Pin on replicas that have come what is pinned on the others."""
        if self._pinned:
            for replica in replicas:
                task = asyncio.create_task(self._pin_at(replica))
                self._pinning.add(task)
                task.add_done_callback(self._pinning.discard)

    async def _pin_at(self, replica: str) -> None:
        try:
            await self._at(replica, lambda id: PinCommand(id, self._pinned))
        except Error as error:
            log.warning("a replica has no room for what is pinned: %s", error.message)

"""The server's command line: ``loramux serve``, ``config show``, ``audit``, ``backup`` and their kin end up here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from loramux import __version__
from loramux._streams import open_standard_streams, tolerate_encodings

from .core.errors import Error
from .host.resources import take_open_files
from .host.service_manager import ServiceManager
from .host.signals import to_stop
from .telemetry.opening import Opening
from .telemetry.stderr import flush, tell

if TYPE_CHECKING:
    from .app.announce import Announcer
    from .config import Loaded, Settings

SERVE = "Serve one base model with stacks of LoRA adapters per request, and train new ones beside it."
SHOW = "Print every setting of the server, its value and where it came from."

USAGE_ERROR, INTERRUPTED = 2, 130
STOPPED_EARLY = "Stopped before it was ready."
MAINTENANCE = ("audit", "backup", "restore", "doctor", "keys", "quotas")
LAST_STEPS = 0.5
"""Seconds that threads get to end once everything is closed, and that the last lines get to be written."""
SAME_SIGNAL = 0.5
"""Seconds within which a second signal is the first one again: some tools send it to the process and to its group."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``serve`` (the default) or another command with its flags; gives the exit code."""
    open_standard_streams()
    tolerate_encodings()
    command, arguments = _split(sys.argv[1:] if argv is None else argv)
    try:
        if command == "config-show":
            return _config_show(arguments)
        if command in MAINTENANCE:
            return _maintain(command, arguments)
        return serve(arguments)
    except Error as error:
        for line in [f"{v.field}: {v.description}" if v.field else v.description for v in error.violations]:
            tell(f"loramux: {line}")
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def serve(arguments: Sequence[str]) -> int:
    """Run a server until a signal stops it. 0: it was stopped; 1: it could not start or lost its engine for good.

    One line says why. Raises ``Error`` with violations for flags, variables and files that are wrong.
    """
    for number in to_stop():
        # Until the event loop takes over. Nothing is open yet, and imports may take seconds.
        signal.signal(number, _stop_at_once)
    opening = Opening(__version__, arguments)
    try:
        # Nothing slow is imported before its turn: the first line, and a refusal, come at once.
        from .config.flags import parse

        loaded = parse(arguments, prog="loramux serve", description=SERVE)
        try:
            return _run(loaded, opening)
        except Error as error:
            tell(f"loramux: {error.message}")
            return 1
    finally:
        opening.silence()


def _run(loaded: Loaded, opening: Opening) -> int:
    from .preflight import preflight

    settings = loaded.settings
    preflight(settings)
    opening.say()
    from .telemetry.logs import configure, get_logger

    configure(settings.log.level, settings.log.format)
    _keep_fonts_in(settings.state_dir / "cache")
    take_open_files()
    for name in loaded.unknown_variables:
        get_logger("loramux_server").warning("unknown variable ignored; misspelt?", variable=name)
    import uvloop

    from .app.announce import Logged, Plain, Reported

    manager = ServiceManager()
    spoken: Announcer = Logged() if settings.log.format == "json" else Plain(__version__, began=opening.began)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            code = runner.run(_serve(settings, Reported(spoken, manager), manager))
        except Error as error:
            tell(f"loramux: {error.message}")
            code = 1
        _leave_threads(code)
    return code


def _keep_fonts_in(cache: Path) -> None:
    """Where pictures of curves find their fonts again: the home folder may be missing or not writable."""
    with suppress(OSError):
        cache.mkdir(mode=0o700, exist_ok=True)  # code is kept there too, which others must not replace
        os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    tell(STOPPED_EARLY)
    flush(LAST_STEPS)
    os._exit(0)


def _leave_threads(code: int) -> None:
    """End the process now when a thread still computes: nobody waits for it, and Python would wait for its end."""
    from .services.common.workers import threads_ended

    if not threads_ended(LAST_STEPS):
        sys.stdout.flush()
        flush(LAST_STEPS)
        # Everything acknowledged is on disk already.
        os._exit(code)


async def _serve(settings: Settings, announcer: Announcer, manager: ServiceManager) -> int:
    from .app import App

    app = App(settings, announcer=announcer)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(threads := ThreadPoolExecutor(thread_name_prefix="loramux"))

    first = 0.0

    def leave(code: int) -> None:
        """End at once. Everything acknowledged is on disk already; the engine goes first, whatever it does."""
        app.abandon()
        flush(LAST_STEPS)
        os._exit(code)

    def on_signal(number: signal.Signals) -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
        elif loop.time() - first > SAME_SIGNAL:
            announcer.say("Second signal: leaving at once.")
            leave(128 + number)
        stop.set()

    for number in to_stop():
        loop.add_signal_handler(number, on_signal, number)
    watchdog = asyncio.create_task(manager.keep_watchdog())
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            # The base may be half loaded on a thread that cannot be interrupted, and there is nothing to lose.
            announcer.say(STOPPED_EARLY)
            leave(0)
        await starting
        watching = asyncio.create_task(app.watch())
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching  # raises: whoever runs the server starts it again
        watching.cancel()
        manager.stopping()
        announcer.say("Stopping.")
        await app.drain()
        return 0
    finally:
        stopping.cancel()
        with suppress(asyncio.CancelledError):
            await stopping
        await app.stop()
        watchdog.cancel()
        threads.shutdown(wait=False, cancel_futures=True)


def _maintain(command: str, arguments: Sequence[str]) -> int:
    from .app import audit, keys, maintenance, quotas

    run = {
        "audit": audit.audit_command,
        "backup": maintenance.backup_command,
        "restore": maintenance.restore_command,
        "doctor": maintenance.doctor_command,
        "keys": keys.keys_command,
        "quotas": quotas.quotas_command,
    }[command]
    try:
        return run(arguments)
    except Error as error:
        if error.violations:
            raise
        tell(f"loramux: {error.message}")
        return 1


def _config_show(arguments: Sequence[str]) -> int:
    from .config.flags import build_parser, load_namespace, show

    parser = build_parser("loramux config show", SHOW)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of text.")
    namespace = parser.parse_args(arguments)
    print(show(load_namespace(namespace), as_json=namespace.json))
    return 0


def _split(argv: Sequence[str]) -> tuple[str, Sequence[str]]:
    if argv and argv[0] in ("serve", "config-show", *MAINTENANCE):
        return argv[0], argv[1:]
    return "serve", argv


if __name__ == "__main__":
    sys.exit(main())

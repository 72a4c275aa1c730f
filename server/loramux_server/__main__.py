"""The server's command line: ``loramux serve``, ``config show``, ``backup``, ``restore`` and ``doctor`` end up here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import uvloop

from loramux import __version__
from loramux._streams import tolerate_encodings

from .app.announce import Announcer, Logged, Plain
from .config import Loaded, Settings
from .config.flags import build_parser, load_namespace, parse, show
from .core.errors import Error
from .telemetry.logs import configure, get_logger

SERVE = "Serve one base model with stacks of LoRA adapters per request, and train new ones beside it."
SHOW = "Print every setting of the server, its value and where it came from."

USAGE_ERROR = 2
MAINTENANCE = ("backup", "restore", "doctor")
SAME_SIGNAL = 0.5
"""Seconds within which a second signal is the first one again: some tools send it to the process and to its group."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``serve`` (the default) or another command with its flags; gives the exit code."""
    tolerate_encodings()
    command, arguments = _split(sys.argv[1:] if argv is None else argv)
    try:
        if command == "config-show":
            return _config_show(arguments)
        if command in MAINTENANCE:
            return _maintain(command, arguments)
        loaded = parse(arguments, prog="loramux serve", description=SERVE)
    except Error as error:
        for line in [f"{v.field}: {v.description}" if v.field else v.description for v in error.violations]:
            print(f"loramux: {line}", file=sys.stderr)
        return USAGE_ERROR
    return serve(loaded)


def serve(loaded: Loaded) -> int:
    """Run a server until a signal stops it. 0: it was stopped; 1: it could not start or lost its engine for good.

    One line says why.
    """
    settings = loaded.settings
    configure(settings.log.level, settings.log.format)
    for name in loaded.unknown_variables:
        get_logger("loramux_server").warning("unknown variable ignored; misspelt?", variable=name)
    announcer: Announcer = Logged() if settings.log.format == "json" else Plain(__version__)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, announcer))
    except Error as error:
        print(f"loramux: {error.message}", file=sys.stderr)
        return 1


async def _serve(settings: Settings, announcer: Announcer) -> int:
    from .app import App

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    first = 0.0

    def on_signal(number: signal.Signals) -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
        elif loop.time() - first > SAME_SIGNAL:
            # Everything acknowledged is on disk already.
            announcer.say("Second signal: leaving at once.")
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    app = App(settings, announcer=announcer)
    starting = asyncio.create_task(app.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            # The base may be half loaded on a thread that cannot be interrupted, and there is nothing to lose.
            announcer.say("Stopped before it was ready.")
            os._exit(0)
        await starting
        watching = asyncio.create_task(app.watch())
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching  # raises: whoever runs the server starts it again
        watching.cancel()
        announcer.say("Stopping.")
        await app.drain()
        return 0
    finally:
        stopping.cancel()
        with suppress(asyncio.CancelledError):
            await stopping
        await app.stop()


def _maintain(command: str, arguments: Sequence[str]) -> int:
    from .app import maintenance

    run = {
        "backup": maintenance.backup_command,
        "restore": maintenance.restore_command,
        "doctor": maintenance.doctor_command,
    }[command]
    try:
        return run(arguments)
    except Error as error:
        if error.violations:
            raise
        print(f"loramux: {error.message}", file=sys.stderr)
        return 1


def _config_show(arguments: Sequence[str]) -> int:
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

"""The command line of an example: where it asks, what it writes."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from loramux import Client
from tools.measure_adapters import server

from .paths import BUILD, results
from .picture import save
from .report import Report, update_page

Measure = Callable[[Client, bool], tuple[Report, Picture]]
"""From a client, and whether the run is a quick one, to what was found."""


def run(example: str, about: str, measure: Measure, arguments: Sequence[str] | None = None) -> Report:
    """Read the flags, find or start a server, measure and write the report. ``about`` is the example's docstring."""
    return finish(example, measure, parser_of(example, about).parse_args(arguments))


def parser_of(example: str, about: str) -> argparse.ArgumentParser:
    """The flags that all examples have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{example}",
        description=about.partition("\n")[0],
        epilog=f"See docs/examples/{example.replace('_', '-')}.md.",
    )
    parser.add_argument("--quick", action="store_true", help="a trial, with fewer of everything")
    parser.add_argument("--server", metavar="ADDRESS", help="a running server of the default base (default: start one)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for results (default: examples/*/results; quick: build/examples)"
    )
    return parser


def finish(example: str, measure: Measure, options: argparse.Namespace) -> Report:
    """Measure as the flags say, and write the report."""
    with connected(options.server) as client:
        report, picture = measure(client, options.quick)
    folder = options.output or (BUILD / example if options.quick else results(example))
    report.write(folder)
    save(picture, folder / "picture.svg")
    if folder == results(example):
        update_page(report)
    print(f"{report.markdown()}\n{report.side_by_side()}\nResults: {folder}")
    return report


def command_of(example: str, quick: bool, *more: str) -> str:
    """What makes a report again; ``more`` are flags of this example."""
    flags = [*(["--quick"] if quick else []), *more]
    if not flags:
        return f"make example-{example.replace('_', '-')}"
    return " ".join([f"python -m examples.{example}", *flags])


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Client]:
    """A client of a running server, or of one started here; of its state only the base's NF4 copy is kept."""
    if address is not None:
        with Client(address) as client:
            yield client
        return
    base = BUILD / "base"
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="state-", dir=BUILD) as state:
        (Path(state) / "base").symlink_to(base, target_is_directory=True)
        with server(None, Path(state)) as client:
            yield client


def base_of(client: Client) -> str:
    """Name, device and precision of the server's base, for a report."""
    info = client.info()
    return f"{info.base_name} on {info.device} in {info.dtype}"

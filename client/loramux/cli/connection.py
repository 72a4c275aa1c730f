"""Where the commands connect to: the options that stand before all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import typer

from ..client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    """What was given of it. The client reads the variables itself: what is given in words wins over them."""

    address: str | None = None
    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None

    @classmethod
    def of(cls, context: typer.Context) -> Connection:
        """The options of a command line, also of one that is not finished yet."""
        root = context.find_root()
        sources = {name: root.get_parameter_source(name) for name in cls.__slots__}
        names = (name for name, source in sources.items() if source is None or source.name != "ENVIRONMENT")
        return cls(**{name: root.params.get(name) for name in names})

    def client(self, timeout: float | None = None) -> Client:
        """A client that connects there."""
        return Client(timeout=timeout, **asdict(self))


OPTIONS = tuple(f"--{name.replace('_', '-')}" for name in Connection.__slots__)
"""They may stand behind a command too."""

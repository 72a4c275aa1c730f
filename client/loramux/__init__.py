"""loramux: many LoRA adapters over one base model, served and trained side by side. This is its client.

from loramux import Client

with Client("localhost:50051") as client:
print(client.generate("What does Acme sell?", adapters=["acme"]).text)
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._public import *  # noqa: F403

try:
    __version__ = version("loramux")
except PackageNotFoundError:  # the folder is used without being installed
    __version__ = "0+unknown"

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name or module, once it is asked for: commands that need no client start without gRPC."""
        if name[0].isupper() or name == "__all__":
            public = import_module("loramux._public")
            if name == "__all__":
                return [*public.__all__, "__version__"]
            globals().update({known: getattr(public, known) for known in public.__all__})
            if name in globals():
                return globals()[name]
        elif name[0] != "_" and find_spec(f"loramux.{name}"):
            return import_module(f"loramux.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("loramux._public").__all__})

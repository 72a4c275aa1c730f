"""What crosses between the driver and the processes that measure: one job in, lines of results out."""

from __future__ import annotations

from dataclasses import dataclass, field

from loramux_server.core.settings import Device

from .roofline import Shape
from .samples import Figures
from .workloads import Cell


@dataclass(frozen=True, slots=True)
class Base:
    """A base model with adapters for it. Paths are absolute."""

    name: str
    folder: str
    """NF4, in transformers' format."""
    shape: Shape
    adapters: tuple[str, ...]
    """PEFT folders."""
    gguf: str = ""
    """The same model as a GGUF file, if there is one."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does: run ``cells`` through ``system``."""

    system: str
    base: Base
    cells: tuple[Cell, ...]
    dtype: str
    threads: int
    scratch: str
    """Folder that this process may fill."""
    device: Device = "cpu"
    target: str = ""
    """For systems from elsewhere: the path of the executable, or the URL of a server that runs already."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """One system on one workload."""

    cell: Cell
    figures: Figures
    prompt_tokens: int
    """Over all requests: equal for all systems, or they were not asked the same."""
    peak_bytes: int
    """Largest resident memory of the system's processes while it ran; 0: not known."""
    answers: tuple[tuple[int, ...], ...] = ()
    """Tokens of each request, empty where a system tells none."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a worker: a note, a result, or why a workload was left out."""

    note: str = ""
    result: CellResult | None = None
    left_out: str = ""
    """Name of a workload; ``note`` says why."""
    facts: dict[str, str] = field(default_factory=dict)
    """What to know about the system to judge its figures (versions, kernels, precision)."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A prepared state directory with adapters, the whole ones (on all linears) first."""

    state_dir: str
    registered: int
    folders: tuple[str, ...]
    """Where the files of the whole ones lie."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(adapter_name(i) for i in range(self.registered))


def adapter_name(i: int) -> str:
    """The name of adapter ``i`` of a prepared registry."""
    return f"tenant-{i:04}"


@dataclass(frozen=True, slots=True)
class BankLoads:
    """Seconds of each load of one adapter, and where to."""

    device: str
    host: tuple[float, ...]
    """From disk, as far as the system forgets a file when it is asked to."""
    copies: tuple[float, ...]
    """From the host to the device."""

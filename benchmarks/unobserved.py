"""The server, seen by nobody: what reports to metrics, usage, logs and traces reaches none of them.

Beside it ``benchmarks.observability`` measures what watching costs. No setting turns all of it off.
"""

from __future__ import annotations

import sys

from loramux_server.__main__ import main
from loramux_server.app import app
from loramux_server.core.observing.observer import CallSinks, Observers

if __name__ == "__main__":
    for kind in (Observers, CallSinks):
        setattr(app, kind.__name__, lambda *_, kind=kind: kind())
    sys.exit(main())

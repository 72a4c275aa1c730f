"""Settings: one frozen tree, read once when the server starts.

Every leaf of :class:`Settings` is a flag, an environment variable and a line of TOML, all made from its path:
``training.share`` is ``--training-share``, ``LORAMUX_TRAINING__SHARE`` and ``share`` under ``[training]``.
A flag wins over the environment, the environment over the file, the file over the default. To add a setting,
add a field; the flag, its help and ``config show`` follow.
"""

from .fields import Address
from .groups import LogSettings, TlsSettings, TrainingSettings
from .load import Loaded, load
from .tree import Settings

__all__ = ["Address", "Loaded", "LogSettings", "Settings", "TlsSettings", "TrainingSettings", "load"]

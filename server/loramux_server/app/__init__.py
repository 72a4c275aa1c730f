"""The one place where objects are put together: store, engine, services, doors, metrics."""

from .app import App
from .embedded import running_app, running_app_thread

__all__ = ["App", "running_app", "running_app_thread"]

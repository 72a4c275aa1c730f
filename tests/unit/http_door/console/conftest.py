from tests.unit.http_door.conftest import backend, context, http, info, limits, text

__all__ = ["backend", "context", "http", "info", "limits", "text"]

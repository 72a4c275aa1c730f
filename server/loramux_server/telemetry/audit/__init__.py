"""The audit log: who changed what, when, from where. Never prompts, answers, rows of data or secrets."""

from .entry import Entry
from .log import AuditLog

__all__ = ["AuditLog", "Entry"]

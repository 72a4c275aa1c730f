"""Text and JSON as callers write them, within bounds."""

"""Write the dashboard's file."""

from .layout import FILE, text

FILE.write_text(text())

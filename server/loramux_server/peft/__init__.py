"""PEFT adapter folders: read, checked, written, merged."""

"""loramux server: one NF4 base, many LoRA adapters, served and trained side by side."""

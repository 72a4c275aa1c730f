"""Shorter prompts: a page of instructions becomes an adapter, trained on answers or distilled."""

"""What one request may ask for. Settings fill this once; validation reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Policy limits, all of them upper bounds. Sizes in bytes, times in seconds."""

    max_prompt_bytes: int = 1 << 20
    """Longest prompt or conversation, in UTF-8 bytes, that is tokenised at all."""
    max_tools_bytes: int = 256 << 10
    """Longest JSON text of a request's tools, which count as part of its conversation too."""
    max_messages: int = 1024
    max_new_tokens: int = 32_768
    """Largest ``max_tokens`` a request may name; within it, a request is clamped to what its context has left."""
    max_choices: int = 16
    max_embed_inputs: int = 2048
    """Most texts of one request for embeddings."""
    max_logprobs: int = 20
    max_logit_bias: int = 1024
    max_request_seconds: float = 600.0
    """Time a request gets when it has no deadline, or a later one."""
    max_profile_seconds: float = 60.0
    """Longest profile of the engine."""
    max_profile_events: int = 200_000
    """Most events of a profile."""
    max_grammar_bytes: int = 64 << 10
    """Longest schema, pattern, list of choices or grammar, in UTF-8 bytes."""
    max_upload_bytes: int = 2 << 30
    """Largest adapter folder that may be uploaded."""
    max_dataset_bytes: int = 256 << 20
    max_part_bytes: int = 64 << 20
    """Largest part of a dataset that comes in parts."""
    max_upload_parts: int = 1000
    max_pending_uploads: int = 16
    """Uploads in parts of one tenant at once."""
    max_upload_seconds: float = 3600.0
    """Time that an upload in parts has to be completed."""
    max_dataset_rows: int = 200_000
    max_row_tokens: int = 1 << 20
    """Longest training row in tokens, where the model's context and ``max_length`` do not bound it further."""
    max_activation_bytes: int | None = None
    """Activations of a training pass that are kept; None: a quarter of what is free."""
    max_rank: int = 256
    max_epochs: float = 1000.0
    max_steps: int = 1_000_000
    max_batch_size: int = 1024

"""A tenant's facts, answered without its documents: a prompt, retrieval, or an adapter."""

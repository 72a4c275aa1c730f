"""Generate, score, tokenize: from a request to its answer."""

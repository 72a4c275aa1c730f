"""Anthropic's requests and answers: shapes and streams, and nothing that decides."""

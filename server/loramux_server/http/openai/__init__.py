"""OpenAI's requests and answers: shapes, names and streams, and nothing that decides."""

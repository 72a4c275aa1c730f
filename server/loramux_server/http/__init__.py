"""The HTTP door: OpenAI's API over the same services, keys, limits and errors as gRPC."""

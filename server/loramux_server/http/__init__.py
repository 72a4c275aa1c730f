"""The HTTP door: OpenAI's API and loramux's own over the same services, keys, limits and errors as gRPC."""

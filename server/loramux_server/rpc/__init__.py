"""The gRPC door: the methods of the API under one interceptor. No logic of its own."""

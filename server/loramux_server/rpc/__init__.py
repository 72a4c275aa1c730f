"""The gRPC door: servicers, conversion, one interceptor, one table from error to status. No logic of its own."""

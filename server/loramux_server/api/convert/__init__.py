"""Between protobuf messages and the server's own types. Pure functions; a field's presence decides on its default."""

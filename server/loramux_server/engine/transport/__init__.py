"""The engine behind a socket: messages, their encoding, the child process and its supervision."""

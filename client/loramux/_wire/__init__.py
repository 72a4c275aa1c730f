"""What a client sends and receives: channel, requests, responses and files."""

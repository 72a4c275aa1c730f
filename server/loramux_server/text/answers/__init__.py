"""What an answer's text must be and what it holds: thoughts, tool calls, a response format."""

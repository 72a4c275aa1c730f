"""Jobs that run: the queue's runner, attempts, and what a published version says of its training."""

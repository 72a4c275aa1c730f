"""Training jobs: checks, queue, attempts, events, cards."""

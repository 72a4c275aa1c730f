"""What the server tells of its work: observers, traces, ranges of time, failures that go on."""

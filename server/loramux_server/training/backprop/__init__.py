"""One micro-batch through the frozen base: forward, loss and backward, within the memory for activations."""

"""One step on the device: the forward pass, CUDA graphs, sampling, scores."""

"""What a layer does on a GPU between its matrix products, in three Triton kernels in place of a dozen of torch's."""

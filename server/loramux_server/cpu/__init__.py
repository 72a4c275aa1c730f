"""What only a processor needs: C++ sources and their builder, packed products, OpenMP threads."""

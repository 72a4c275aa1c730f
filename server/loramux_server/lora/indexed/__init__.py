"""Adapters by index on a GPU: two kernels a group read the bank's rank rows where they lie."""

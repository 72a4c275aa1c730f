"""Who trains: a process each, ``python -m benchmarks.trainers`` with a job on standard input.

loramux over gRPC (``server``), loramux's trainer called in the process (``direct``), TRL (``trl``).
"""

"""What needs torch: ``python -m benchmarks.claims.workers WHAT``, a process for each measurement.

Settings are JSON on standard input, answers lines of JSON; whatever libraries print goes to standard error.
"""

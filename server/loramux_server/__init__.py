"""loramux server: one NF4 base, many LoRA adapters, served and trained side by side."""

import os

# Read when grpc is imported, which is later. Its notes are not for the operator. What it does around a fork is of no
# use to programs that are started anew, and can crash the child before it becomes one of them (grpc #43055).
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

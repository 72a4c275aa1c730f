"""loramux server: one NF4 base, many LoRA adapters, served and trained side by side."""

import os

# Read when grpc is imported, which is later. Its notes, such as one for each fork, are not for the operator.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

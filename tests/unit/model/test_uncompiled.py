"""What an engine does not import."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import sys
from loramux_server.model.base.uncompiled import import_bitsandbytes
import torch
compile = torch.compile
import_bitsandbytes()
assert torch.compile is compile
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
weight = torch.linspace(-1, 1, 128).reshape(2, 64)
packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
assert (dequantize_4bit(packed, state) - weight).abs().max() < 0.2
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_bitsandbytes_comes_without_torchs_compiler() -> None:
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=120)
    assert child.stdout == "False\n"

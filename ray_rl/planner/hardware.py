"""What this machine's processor is good at, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

CPUINFO = Path("/proc/cpuinfo")

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""x86 (AVX-512 BF16, AMX) and Arm. Without them a bfloat16 product is emulated: measured 16 GFLOP/s against 110 in
float32 on two AVX2 cores."""


def has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware."""
    if not CPUINFO.is_file():
        return False
    words = set(CPUINFO.read_text(encoding="ascii", errors="replace").split())
    return any(flag in words for flag in BFLOAT16_FLAGS)


def resolve_dtype(dtype: Literal["auto", "bfloat16", "float32"], accelerator: Literal["cpu", "gpu"]) -> str:
    """`bfloat16` or `float32`: auto is bfloat16 on GPU and on CPUs that multiply it in hardware, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if accelerator == "gpu" or has_fast_bfloat16() else "float32"

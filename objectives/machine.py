"""What the machine has free. Light (no torch)."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int:
    """Bytes that new processes may fill without swapping (Linux's own estimate; elsewhere a guess of 8 GiB)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 * 2**30


def multiplies_bf16() -> bool:
    """Whether the processor has units for products of bfloat16 (Intel and AMD's AVX512-BF16 or AMX, Arm's bf16).

    Without them such a product is computed by conversion, more slowly than one of fp32.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(unit in flags for unit in ("avx512_bf16", "amx_bf16", "bf16"))

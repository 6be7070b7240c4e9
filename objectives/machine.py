"""What the machine has free and can do, and whether a process keeps what it frees. Light (no torch)."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

_TRIM, _PAD, _MAP = -1, -2, -3  # glibc: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD


def available_memory() -> int:
    """Bytes that new processes may fill without swapping (Linux's own estimate; elsewhere a guess of 8 GiB)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 * 2**30


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors for the next ones, up to 2 GiB of it.

    glibc gives each large block back to the system, which then hands it out again page by page, emptied: on a CPU a
    training step spends a tenth to a fifth of its time on that. Blocks above 32 MiB (the most that glibc allows), as
    caches of features are, go back as before. Without glibc nothing is changed.
    """
    _allocate(keep=2**31 - 1, ahead=64 * 2**20)


def free_as_usual() -> None:
    """Undo :func:`keep_freed_memory`: what glibc comes to by itself once a process has freed blocks of 32 MiB."""
    _allocate(keep=64 * 2**20, ahead=128 * 2**10)
    give_back_memory()


def _allocate(keep: int, ahead: int) -> None:
    """How many freed bytes glibc keeps, and how many it asks for beyond what is needed; blocks over 32 MiB apart."""
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_MAP, 32 * 2**20), (_TRIM, keep), (_PAD, ahead)):
            mallopt(parameter, value)


def give_back_memory() -> None:
    """Give the system what :func:`keep_freed_memory` keeps."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def multiplies_bf16() -> bool:
    """Whether the processor has units for products of bfloat16 (Intel and AMD's AVX512-BF16 or AMX, Arm's bf16).

    Without them such a product is computed by conversion, more slowly than one of fp32.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(unit in flags for unit in ("avx512_bf16", "amx_bf16", "bf16"))

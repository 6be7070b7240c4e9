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

"""What a number was measured with: versions, code, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from objectives.machine import available_memory as available_memory

PACKAGES = (
    "pretrain-bench", "torch", "torchvision", "timm", "onedl-mmengine", "onedl-mmcv", "onedl-mmpretrain",
    "onedl-mmsegmentation", "onedl-mmdetection", "mmpose", "xtcocotools", "numpy", "opencv-python-headless",
)


def version(package: str) -> str | None:
    """Installed version of a distribution, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_kernels(cache: Path) -> None:
    """Let torch.compile and Triton keep what they compile below ``cache``: other cells and processes then find it.

    Processes started afterwards inherit it; folders that the user has named stay.
    """
    for variable, folder in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(variable, str((cache / "kernels" / folder).resolve()))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def environment(device: str) -> dict[str, Any]:
    """The record's environment block."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    hardware: dict[str, Any] = {"processor": processor(), "cores": cores(), "device": device}
    if device.startswith("cuda"):
        import torch

        hardware["accelerator"] = torch.cuda.get_device_name(torch.device(device))
    return {
        "python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES},
        "git_commit": _git("rev-parse", "HEAD"), "dirty": bool(status) if status is not None else None,
        "hardware": hardware, "system": platform.system(),
    }

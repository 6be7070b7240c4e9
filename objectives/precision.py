"""Where a GPU computes in a shorter type (autocast) and where it must not, and tensors that it is not waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """A context of float32 within a step of mixed precision: for draws, targets and losses; networks stay outside.

    A GPU's convolutions would otherwise round their factors to TF32's 10 bits, even outside autocast.
    """
    cudnn = torch.backends.cudnn
    rounded = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.allow_tf32 = rounded


def brief(device: torch.device) -> torch.autocast:
    """A context for a frozen network: bfloat16 on a GPU, float32 on a processor, whose targets committed results have.

    Within or outside of a step of mixed precision, so that a target is the same whenever it is computed.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def sent(host: Tensor, device: torch.device) -> Tensor:
    """What the processor drew, on the device; through pinned memory, so that the processor does not wait for a GPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)

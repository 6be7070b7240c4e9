"""One set of weights for pictures of two sizes, while it is trained: a tracker's template and search crops."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from downstream.task import TaskError

_TABLE = ".relative_position_bias_table"


class Resized(nn.Module):
    """The twin of a network for pictures of another size: windows, masks and places of its own, the same weights.

    Tables of relative positions (Swin, BEiT) are interpolated anew at each call. timm's interpolation is linear, so it
    is a matrix, and gradients reach the network's own table through it.

    Args:
        net: a timm network.
        twin: a copy of it, resized (``downstream.backbone.resize``); its own weights are not used.

    Raises:
        TaskError: a weight of another kind depends on the size.
    """

    def __init__(self, net: nn.Module, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin.requires_grad_(False)
        self.matrices: dict[str, Tensor] = {}
        self.places = False  # whether a table of absolute positions is resampled
        for name, weight in net.named_parameters():
            own = twin.get_parameter(name)
            if own.shape == weight.shape:
                continue
            if name.endswith(_TABLE):
                parent = name.removesuffix(_TABLE)
                unit = torch.eye(len(weight), device=weight.device)
                self.matrices[name] = resize_rel_pos_bias_table(
                    unit, new_window_size=twin.get_submodule(parent).window_size,
                    new_bias_shape=(len(own), len(weight)), old_window_size=net.get_submodule(parent).window_size)
            elif name == "pos_embed":
                self.places = True
            else:
                raise TaskError(f"{type(net).__name__}: {name} depends on the size of the pictures and cannot be "
                                "trained for two; give the crops one size")

    def forward(self, x: Tensor, **options: Any) -> list[Tensor]:
        return self.twin.forward_intermediates(x, **options)

    def maps(self, net: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
        """``net.forward_intermediates(x, **options)`` for pictures of the twin's size."""
        weights = {}
        for name, weight in net.named_parameters():
            if name in self.matrices:
                self.matrices[name] = self.matrices[name].to(weight)
                weight = self.matrices[name] @ weight
            elif name == "pos_embed" and self.places:
                weight = resample_abs_pos_embed(
                    weight, new_size=self.twin.patch_embed.grid_size, old_size=net.patch_embed.grid_size,
                    num_prefix_tokens=self.twin.num_prefix_tokens)
            weights[f"twin.{name}"] = weight
        return torch.func.functional_call(self, weights, (x,), options)

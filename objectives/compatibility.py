"""Which objective trains which backbone: every pair is built small and makes one step of gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from objectives import recipe as recipes
from objectives.objective import Objective
from objectives.recipe import ObjectiveError

SIZE = 64  # pixels
SWIN_SIZE = 128  # at 64, two of its tokens, DINO's small crops would be as large as the picture and so seem to work
_VIT: dict[str, Any] = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
_SWIN: dict[str, Any] = {"img_size": SWIN_SIZE, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT, class token": ("vit_tiny_patch16_224", _VIT),
    "ViT, no class token": (
        "vit_tiny_patch16_224", {**_VIT, "class_token": False, "global_pool": "avg", "no_embed_class": True}
    ),
    "ViT, registers": ("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 4, "no_embed_class": True}),
    "ViT, rotary": ("vit_medium_patch16_rope_reg1_gap_256", _VIT),
    "ViT, rotary, mixed": ("vit_small_patch16_rope_mixed_224", _VIT),
    "ViT, relative, shared": (
        "vit_relpos_small_patch16_224", {**_VIT, "shared_rel_pos": True, "class_token": True}
    ),
    "ViT, relative, per block": ("beit_base_patch16_224", _VIT),
    "Swin": ("swin_tiny_patch4_window7_224", {**_SWIN, "window_size": 4}),
    "Swin V2": ("swinv2_tiny_window8_256", {**_SWIN, "window_size": 4}),
}


def size_of(backbone: str) -> int:
    """Side of the pictures that it is tried with, in pixels."""
    return BACKBONES[backbone][1]["img_size"]


def refusal(objective: str, backbone: str) -> str:
    """Why the pair does not work, in the objective's own words; empty where it does."""
    recipe = recipes.get(objective)
    (model, kwargs), size = BACKBONES[backbone], size_of(backbone)
    torch.manual_seed(0)
    try:
        built = Objective(
            recipe.slots(), model, kwargs, size, recipe.crop, True, recipe.optimiser.drop_path, 2,
            {"width": 32, "depth": 1, "heads": 2},
        )
        built.attach(steps=1)
        built.teacher.rehearse()
        built.begin_step(0, 0)
        images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
        loss = built(images, torch.tensor([0, 1, 0, 1]), torch.arange(4))["loss"]
        loss.backward()
    except ObjectiveError as error:
        return str(error)
    return "" if bool(torch.isfinite(loss)) else f"the loss is {loss.item()}"


def table() -> dict[str, dict[str, str]]:
    """Every objective that trains x every kind of backbone -> :func:`refusal`."""
    names = sorted(name for name, recipe in recipes.recipes().items() if recipe.trains)
    return {name: {backbone: refusal(name, backbone) for backbone in BACKBONES} for name in names}


def _further(kwargs: Mapping[str, Any]) -> str:
    """Arguments that make the kind, beside the sizes: with ``--cfg-options suite.kwargs.KEY=VALUE``."""
    more = [f"`{key}={value!r}`" for key, value in kwargs.items() if key not in {**_VIT, **_SWIN, "window_size": 0}]
    return f" with {', '.join(more)}" if more else ""


def markdown(found: Mapping[str, Mapping[str, str]]) -> str:
    """The table as docs/backbones.md holds it."""
    lines = [
        "# Backbones and objectives", "",
        "Made by `python docs/make.py --backbones`: every pair is built small and makes one step of gradients; a test",
        "holds this page to it. `bench run … --cfg-options suite.model=NAME` takes any timm model of these kinds.", "",
        "| backbone | for example |", "|---|---|",
        *(f"| {kind} | `{model}`{_further(kwargs)} |" for kind, (model, kwargs) in BACKBONES.items()), "",
        "| objective | " + " | ".join(BACKBONES) + " |", "|---" * (1 + len(BACKBONES)) + "|",
    ]
    notes: dict[str, int] = {}
    for name, row in found.items():
        cells = []
        for backbone in BACKBONES:
            reason = row[backbone]
            cells.append(f"no [{notes.setdefault(reason, len(notes) + 1)}]" if reason else "yes")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [""] + [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join(lines) + "\n"

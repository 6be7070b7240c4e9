"""Kind and size of a backbone from its name and arguments as timm takes them. Light (neither torch nor timm)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

# Widths of the published ViTs (DeiT, ViT, scaling ViTs, SigLIP) and of Swin's first stage, by timm's words for them.
_WORDS = {
    "tiny": 192, "small": 384, "medium": 512, "betwixt": 640, "base": 768, "large": 1024, "so400m": 1152, "huge": 1280,
    "giant": 1408, "gigantic": 1664,
}
_SWIN_WORDS = {"tiny": 96, "small": 96, "base": 128, "large": 192}
_SIZES = {"vit": {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280},
          "swin": {"tiny": 96, "base": 128, "large": 192}, "swinv2": {"tiny": 96, "base": 128, "large": 192}}
_SWIN_INPUT = re.compile(r"swin.*?(?:_window\d+(?:to\d+)?_(?:\d+to)?|_)(\d{3})$")


def family_of(model: str) -> str:
    """``swinv2``, ``swin``, or ``vit`` for everything else."""
    return "swinv2" if model.startswith("swinv2_") else "swin" if model.startswith("swin_") else "vit"


def kind_of(model: str, kwargs: Mapping[str, Any]) -> str | None:
    """Family and nearest published size, such as ``vit-large`` or ``swinv2-base``; None where neither width nor word
    of a size is given.

    Widths are compared by their ratio; a network wider than every published one counts as the widest.
    """
    family = family_of(model)
    words = _WORDS if family == "vit" else _SWIN_WORDS
    named = next((words[part] for part in re.split(r"[_.]", model) if part in words), None)
    width = kwargs.get("embed_dim", named)
    if not isinstance(width, (int, float)) or width <= 0:
        return None
    sizes = _SIZES[family]
    return f"{family}-{min(sizes, key=lambda size: abs(math.log(width / sizes[size])))}"


def windowed_input(model: str) -> int | None:
    """Side of the pictures that the name of a Swin ends with (192 of ``swinv2_base_window12_192``); None for others."""
    found = _SWIN_INPUT.match(model.partition(".")[0]) if family_of(model) != "vit" else None
    return int(found[1]) if found else None

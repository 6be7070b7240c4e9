"""One mmengine registry per slot; a recipe's ``{"type": …}`` is built from here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmengine.registry import Registry

from objectives.recipe import ObjectiveError

CORRUPTIONS = Registry(
    "corruption", scope="objectives", locations=["objectives.corruption", "objectives.degrade", "objectives.views"]
)
STUDENTS = Registry("student", scope="objectives", locations=["objectives.student"])
TEACHERS = Registry(
    "teacher", scope="objectives",
    locations=[
        "objectives.teacher", "objectives.frozen", "objectives.ema", "objectives.tokenizer", "objectives.published",
    ],
)
NORMALISATIONS = Registry("normalisation", scope="objectives", locations=["objectives.normalisation"])
HEADS = Registry("head", scope="objectives", locations=["objectives.head", "objectives.projection"])
LOSSES = Registry("loss", scope="objectives", locations=["objectives.loss", "objectives.contrastive"])

REGISTRIES = {"corruption": CORRUPTIONS, "student": STUDENTS, "teacher": TEACHERS,
              "normalisation": NORMALISATIONS, "head": HEADS, "loss": LOSSES}


@dataclass(frozen=True)
class Geometry:
    """The sizes that slots are built for.

    Attributes:
        input_size: side of the student's picture, in pixels.
        stride: side of one token's patch, in pixels (16 for ViT-B/16, 32 for Swin).
        hierarchical: the token grid is coarser than the patch embedding (Swin).
        width: channels of the student's tokens (D).
        num_classes: labels of the data, for supervised training.
        decoder: width, depth and heads of a light decoder where the suite's backbone is smaller than the paper's.
    """

    input_size: int
    stride: int
    hierarchical: bool
    width: int
    num_classes: int = 0
    decoder: Mapping[str, int] | None = None

    @property
    def grid(self) -> int:
        """Tokens along one side; L = grid²."""
        return self.input_size // self.stride


def canonical(slot: str, kind: str) -> str:
    """The registered name that ``kind`` stands for: ``smooth_l1`` is SmoothL1, ``none`` the part that does nothing.

    Raises:
        ObjectiveError: there is none; the nearest name is offered.
    """
    registry = REGISTRIES[slot]
    registry.import_from_location()
    names = registry.module_dict
    if kind in names:
        return kind

    def plain(name: str) -> str:
        return name.replace("_", "").replace("-", "").lower()

    wanted = plain(str(kind))
    if wanted == "none":
        wanted = "clean" if slot == "corruption" else next(plain(name) for name in names if name.startswith("No"))
    found = next((name for name in names if plain(name) == wanted), None)
    if found is None:
        near = difflib.get_close_matches(str(kind), names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(names))}"
        raise ObjectiveError(f"objective.{slot}.type: no {slot} {kind!r}; {hint}")
    return found


def build(slot: str, config: Mapping[str, Any], **context: Any) -> Any:
    """The part that a recipe's slot names.

    Raises:
        ObjectiveError: unknown type (nearest name offered) or an argument that the type does not take.
    """
    arguments = dict(config)
    kind = canonical(slot, arguments.pop("type", None))
    try:
        return REGISTRIES[slot].module_dict[kind](**arguments, **context)
    except TypeError as error:
        raise ObjectiveError(f"objective.{slot}: {kind} cannot be built from {arguments}: {error}") from error

"""The ten shapes, put together from primitives. Only shape tells them apart: colour and texture come from elsewhere.

Object axes: x right, y up, z away from the viewer; the object stands on y = 0 and is about one metre tall or wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.scenes import raycast
from benchmarks.scenes.raycast import Parts

Triple = Sequence[float]
Piece = tuple[int, Triple, np.ndarray, Triple, tuple[float, float], int]
UPRIGHT = np.eye(3)


def turn_y(angle: float) -> np.ndarray:
    """Rotation about the vertical; takes the z axis towards x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def turn_z(angle: float) -> np.ndarray:
    """Rotation in the picture plane; takes the x axis towards y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def turn_x(angle: float) -> np.ndarray:
    """Rotation about x; takes the y axis towards z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def along(direction: np.ndarray) -> np.ndarray:
    """A rotation whose y axis is ``direction`` (a unit vector)."""
    x, y, z = direction
    side = (z, 0.0, -x) if abs(y) < 0.9 else (0.0, -z, y)
    length = (side[0] ** 2 + side[1] ** 2 + side[2] ** 2) ** 0.5
    a, b, c = side[0] / length, side[1] / length, side[2] / length
    # third axis = first x second
    return np.array([[a, x, b * z - c * y], [b, y, c * x - a * z], [c, z, a * y - b * x]])


def ellipsoid(centre: Triple, half: Triple, material: int = 0, rotation: np.ndarray = UPRIGHT) -> Piece:
    return raycast.ELLIPSOID, centre, rotation, half, (0.0, 0.0), material


def ball(centre: Triple, radius: float, material: int = 0) -> Piece:
    return ellipsoid(centre, (radius, radius, radius), material)


def box(centre: Triple, half: Triple, material: int = 0, rotation: np.ndarray = UPRIGHT) -> Piece:
    return raycast.BOX, centre, rotation, half, (0.0, 0.0), material


def cylinder(
    centre: Triple, half: Triple, material: int = 0, rotation: np.ndarray = UPRIGHT, top: float = 1.0
) -> Piece:
    """Axis y; ``top`` is the upper radius over the lower one."""
    return raycast.CYLINDER, centre, rotation, half, ((1 + top) / 2, (top - 1) / 2), material


def post(x: float, z: float, low: float, high: float, radius: float, material: int = 0, top: float = 1.0) -> Piece:
    """An upright cylinder between two heights."""
    return cylinder((x, (low + high) / 2, z), (radius, (high - low) / 2, radius), material, top=top)


def capsule(start: np.ndarray, end: np.ndarray, radius: float, material: int = 0) -> Piece:
    reach = np.asarray(end, float) - np.asarray(start, float)
    length = float(reach @ reach) ** 0.5
    middle = (np.asarray(start, float) + np.asarray(end, float)) / 2
    return raycast.CAPSULE, middle, along(reach / length), (radius,) * 3, (length / 2 / radius, 0.0), material


def gather(pieces: Sequence[Piece], label: int = 0, group: int = raycast.NO_GROUP, casts: bool = True) -> Parts:
    kind, centre, rotation, half, shape, material = zip(*pieces, strict=True)
    number = len(pieces)
    return Parts(
        kind=np.array(kind), centre=np.array(centre, float), rotation=np.array(rotation, float),
        half=np.array(half, float), shape=np.array(shape, float), material=np.array(material),
        label=np.full(number, label), group=np.full(number, group), casts=np.full(number, casts),
    )


# Each shape gets a generator for its proportions and uses materials 0 (body) and 1 (second part).
def _arch(rng: np.random.Generator) -> list[Piece]:
    outer, thick, deep = rng.uniform(0.42, 0.5), rng.uniform(0.075, 0.1), rng.uniform(0.1, 0.16)
    spring = rng.uniform(0.45, 0.55)  # height at which the curve begins
    middle = outer - thick
    pieces = [box((side * middle, spring / 2, 0), (thick, spring / 2, deep), 1) for side in (-1, 1)]
    for step in range(5):
        angle = np.pi * (step + 0.5) / 5
        pieces.append(box(
            (middle * np.cos(angle), spring + middle * np.sin(angle), 0),
            (thick, outer * np.tan(np.pi / 10) * 0.97, deep), 0, turn_z(angle),
        ))
    return pieces


def _ball(rng: np.random.Generator) -> list[Piece]:
    half = 0.46 * rng.uniform(0.96, 1.04, 3)
    return [ellipsoid((0, half[1], 0), half)]


def _bottle(rng: np.random.Generator) -> list[Piece]:
    wide, body, neck = rng.uniform(0.2, 0.25), rng.uniform(0.5, 0.6), rng.uniform(0.065, 0.085)
    shoulder = body + 0.17
    return [
        post(0, 0, 0, body, wide), post(0, 0, body, shoulder, wide, top=neck / wide),
        post(0, 0, shoulder, 0.97, neck), post(0, 0, 0.97, 1.05, neck * 1.3, 1),
    ]


def _box(rng: np.random.Generator) -> list[Piece]:
    half = rng.uniform(0.34, 0.44, 3)
    return [box((0, half[1], 0), half)]


def _chair(rng: np.random.Generator) -> list[Piece]:
    seat, wide, deep, leg = rng.uniform(0.42, 0.5), rng.uniform(0.25, 0.3), rng.uniform(0.24, 0.29), 0.035
    pieces = [
        box((0, seat, 0), (wide, 0.04, deep), 1),
        box((0, (seat + 1.08) / 2 + 0.1, deep - 0.03), (wide, (1.08 - seat) / 2 - 0.1, 0.03), 0),
    ]
    pieces += [box((x * (wide - leg), seat + 0.1, deep - 0.03), (leg, 0.12, 0.03), 0) for x in (-1, 1)]
    pieces += [
        box((x * (wide - leg), seat / 2, z * (deep - leg)), (leg, seat / 2, leg), 0) for x in (-1, 1) for z in (-1, 1)
    ]
    return pieces


def _dumbbell(rng: np.random.Generator) -> list[Piece]:
    reach, big, thick = rng.uniform(0.42, 0.5), rng.uniform(0.24, 0.3), rng.uniform(0.07, 0.1)
    lying = turn_z(np.pi / 2)
    pieces = [cylinder((0, big, 0), (0.055, reach, 0.055), 1, lying)]
    for side in (-1, 1):
        pieces.append(cylinder((side * reach, big, 0), (big, thick, big), 0, lying))
        pieces.append(cylinder((side * (reach + 1.7 * thick), big, 0), (0.68 * big, thick, 0.68 * big), 0, lying))
    return pieces


def _lamp(rng: np.random.Generator) -> list[Piece]:
    wide, shade = rng.uniform(0.26, 0.34), rng.uniform(0.3, 0.38)
    return [
        post(0, 0, 0, 0.06, 0.22, 1), post(0, 0, 0.06, 1.08 - shade, 0.04, 1),
        post(0, 0, 1.08 - shade, 1.08, wide, 0, top=rng.uniform(0.4, 0.6)),
    ]


def _snowman(rng: np.random.Generator) -> list[Piece]:
    low, mid, head = rng.uniform(0.28, 0.32), rng.uniform(0.2, 0.23), rng.uniform(0.14, 0.165)
    y1 = low + 0.75 * (low + mid)
    y2 = y1 + 0.78 * (mid + head)
    nose = cylinder((0, y2, -head - 0.06), (0.035, 0.08, 0.035), 1, turn_x(-np.pi / 2), top=0.1)
    brim = y2 + 0.75 * head
    return [
        ball((0, low * 0.96, 0), low), ball((0, y1, 0), mid), ball((0, y2, 0), head), nose,
        post(0, 0, brim, brim + 0.03, head * 1.15, 1), post(0, 0, brim, brim + 0.18, head * 0.75, 1),
    ]


def _stairs(rng: np.random.Generator) -> list[Piece]:
    run, rise, deep = rng.uniform(0.11, 0.13), rng.uniform(0.18, 0.22), rng.uniform(0.22, 0.32)
    return [
        box(((2 * step - 3) * run, (step + 1) * rise / 2, 0), (run, (step + 1) * rise / 2, deep), step % 2)
        for step in range(4)
    ]


def _table(rng: np.random.Generator) -> list[Piece]:
    high, wide, deep, leg = rng.uniform(0.58, 0.7), rng.uniform(0.5, 0.58), rng.uniform(0.3, 0.38), 0.04
    pieces = [box((0, high, 0), (wide, 0.04, deep), 0)]
    pieces += [
        box((x * (wide - 0.07), high / 2 - 0.02, z * (deep - 0.07)), (leg, high / 2 - 0.02, leg), 1)
        for x in (-1, 1) for z in (-1, 1)
    ]
    return pieces


SHAPES: dict[str, Callable[[np.random.Generator], list[Piece]]] = {
    "arch": _arch, "ball": _ball, "bottle": _bottle, "box": _box, "chair": _chair,
    "dumbbell": _dumbbell, "lamp": _lamp, "snowman": _snowman, "stairs": _stairs, "table": _table,
}


def clutter(rng: np.random.Generator, material: int = 0) -> list[Piece]:
    """One small thing on the floor; its size in metres."""
    half = rng.uniform(0.07, 0.17, 3)
    centre = (0, half[1], 0)
    turn = turn_y(rng.uniform(0, np.pi))
    make = (ellipsoid, box, cylinder)[rng.integers(3)]
    return [make(centre, half, material, turn)]

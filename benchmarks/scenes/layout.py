"""What stands where: every random choice of a still picture, drawn from (seed, split, index) alone.

Separate generators draw the looks, the room, the shapes and the figure, and the class is drawn by none of them: it is
the index modulo ten. So no look can tell the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.scenes import CLASSES, raycast, shapes
from benchmarks.scenes import figure as figures
from benchmarks.scenes.raycast import Camera, Parts, Scene
from benchmarks.scenes.shapes import turn_x, turn_y, turn_z

FLOOR, WALL, CLUTTER, PERSON = range(1, 5)  # labels; 0 is the sky
FIRST_CLASS = 5
TRAIN, VAL, VIDEO_TRAIN, VIDEO_TEST = range(4)  # splits
FALLBACK = 12  # after so many tries the figure is left out, which always fits


@dataclass(frozen=True)
class Still:
    """One picture to be: the scene and the facts that no pixel tells."""

    index: int
    attempt: int
    shape: int
    scene: Scene
    figure: figures.Figure | None
    joints: np.ndarray | None  # (17, 3) in the world, metres


def generators(seed: int, split: int, index: int, attempt: int, count: int) -> list[np.random.Generator]:
    """Independent generators for one item."""
    return [np.random.Generator(np.random.PCG64([seed, split, index, attempt, stream])) for stream in range(count)]


def _paint(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV, each 0..1, to RGB (3,)."""
    wheel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return value * (1 + saturation * (wheel.clip(0, 1) - 1))


def material(
    rng: np.random.Generator, colour: np.ndarray, plain: float = 0.35, cells: tuple[float, float] = (4.0, 10.0)
) -> np.ndarray:
    """A row of materials (8,): a texture in ``colour`` and a second colour."""
    texture = raycast.PLAIN if rng.random() < plain else rng.integers(raycast.STRIPES, raycast.NOISE + 1)
    other = colour + (_paint(*rng.uniform((0, 0, 0.2), (1, 0.8, 1))) - colour) * rng.uniform(0.35, 0.9)
    return np.array([texture, rng.uniform(*cells), *colour, *other])


def vivid(rng: np.random.Generator, avoid: list[np.ndarray]) -> np.ndarray:
    """A colour that differs from those to be avoided."""
    for _ in range(20):
        colour = _paint(rng.random(), rng.uniform(0.15, 1), rng.uniform(0.3, 1))
        if all(np.abs(colour - other).max() > 0.25 for other in avoid):
            break
    return colour


def surfaces(rng: np.random.Generator) -> list[np.ndarray]:
    """Materials of the floor and of three walls (two of them alike)."""
    floor = material(rng, _paint(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.35, 0.9)), 0.3, (1.2, 4.0))
    wall = material(rng, _paint(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.45, 1.0)), 0.4, (1.0, 4.0))
    side = wall.copy()
    side[2:] *= rng.uniform(0.75, 0.95)
    return [floor, wall, side]


def looks(rng: np.random.Generator) -> np.ndarray:
    """All materials of a picture (15, 8): floor, wall, side wall, object (2), three of clutter, figure (7)."""
    rows = surfaces(rng)
    ground = [rows[0][2:5], rows[1][2:5]]
    colour = vivid(rng, ground)
    rows += [material(rng, colour), material(rng, vivid(rng, ground))]
    rows += [material(rng, vivid(rng, ground)) for _ in range(3)]
    skin = np.array([0.95, 0.76, 0.62]) * rng.uniform(0.4, 1.05) * (1, rng.uniform(0.93, 1.0), rng.uniform(0.88, 1.0))
    hair = _paint(rng.uniform(0.02, 0.14), rng.uniform(0.2, 0.8), rng.uniform(0.08, 0.55))
    shirt, badge, trousers = (vivid(rng, [skin, *ground]) for _ in range(3))
    plain = [skin, hair, shirt, badge, trousers, _paint(rng.random(), 0.6, rng.uniform(0.1, 0.5)), np.full(3, 0.05)]
    rows += [np.array([raycast.PLAIN, 1.0, *colour, *colour]) for colour in plain]
    rows[8 + figures.SHIRT] = material(rng, shirt, 0.5, (8.0, 16.0))
    return np.stack(rows)


OBJECT, OTHERS, DRESS = 3, 5, 8  # first rows of looks()


def lights(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction towards the light (3,), its colour and the ambient colour."""
    height, around = rng.uniform(0.75, 1.3), rng.uniform(0, 2 * np.pi)
    # It shines from above and mostly from the camera's side, as a lamp in the room would.
    direction = np.array([np.cos(height) * np.cos(around), np.sin(height), np.cos(height) * np.sin(around)])
    if direction[2] > 0.2:
        direction[2] *= -1
    tint = 1 + rng.uniform(-0.08, 0.08, 3)
    strength, share = rng.uniform(0.95, 1.2), rng.uniform(0.45, 0.65)
    return direction, strength * (1 - share) * 1.35 * tint, strength * share * (2 - tint)


def plane(point: tuple[float, float, float], normal: np.ndarray, label: int, row: int) -> Parts:
    """An infinite plane; textures run along its two tangents."""
    piece = (raycast.PLANE, point, shapes.along(normal), (1.0, 1.0, 1.0), (0.0, 0.0), row)
    return shapes.gather([piece], label, casts=False)


def room(rng: np.random.Generator, back: float, left: float, right: float, open_air: float = 0.0) -> Parts:
    """Floor, back wall and side walls; ``open_air``: instead, a wall this high ends the ground under the sky."""
    angle = rng.uniform(-0.3, 0.3)
    parts = [plane((0, 0, 0), np.array([0.0, 1.0, 0.0]), FLOOR, 0)]
    if open_air:
        wall = shapes.box((0, open_air / 2, back + 0.3), (30.0, open_air / 2, 0.3), 1)
        return Parts.join([*parts, shapes.gather([wall], WALL, casts=False)])
    turn = turn_y(angle)
    parts.append(plane((0, 0, back), turn @ (0.0, 0.0, -1.0), WALL, 1))
    parts.append(plane((-left, 0, 0), turn @ (1.0, 0.0, 0.0), WALL, 2))
    parts.append(plane((right, 0, 0), turn @ (-1.0, 0.0, 0.0), WALL, 2))
    return Parts.join(parts)


def look(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """Camera rotation, rows right, down, forward: ``pitch`` tilts down, ``yaw`` turns right, ``roll`` clockwise."""
    axes = np.array([[1.0, 0, 0], [0, -1.0, 0], [0, 0, 1.0]])
    return turn_z(-roll) @ turn_x(pitch) @ axes @ turn_y(-yaw)


def still(seed: int, split: int, index: int, attempt: int, size: int) -> Still:
    """Draw picture ``index``; a higher ``attempt`` is another draw for a picture that came out badly."""
    style, place, proportions, body, things = generators(seed, split, index, attempt, 5)
    shape = index % len(CLASSES)
    materials = looks(style)
    light, diffuse, ambient = lights(style)
    with_figure = bool(np.random.Generator(np.random.PCG64([seed, split, index, 99])).random() < 0.62)
    with_figure &= attempt < FALLBACK

    pieces = shapes.SHAPES[CLASSES[shape]](proportions)
    main = shapes.gather(pieces, FIRST_CLASS + shape, raycast.MAIN)
    main = main.replace(material=main.material + OBJECT)
    main = main.placed((0, 0, 0), turn_y(place.uniform(-0.8, 0.8) + np.pi * place.integers(2)))
    extent = main.corners().reshape(-1, 3)
    low, high = extent.min(0), extent.max(0)
    wide, tall = high[0] - low[0], high[1]
    # Slender things are made taller, so that none is much smaller than another.
    measure = (max(tall, 0.9 * wide) * (tall * wide) ** 0.5) ** 0.5

    # Distance follows from the focal length, the size in metres and the size wanted in the picture.
    zoom = size / 128
    focal = place.uniform(105, 165)
    pixels = place.uniform(52, 70)
    metres = place.uniform(1.1, 1.7)
    scale = metres / measure
    distance = float(np.clip(focal * metres / pixels, 1.6, 5.6))
    side = float(place.choice((-1, 1)))  # where the figure stands
    offset = (-side * place.uniform(4, 14) if with_figure else place.uniform(-10, 10)) * distance / focal
    main = main.placed((offset, 0, distance), None, scale)

    parts, joints, person = [main], None, None
    top = scale * tall
    if with_figure:
        person = figures.build(body, PERSON)
        reach = scale * wide / 2 + 0.2 + place.uniform(0.0, 0.3)
        at = np.array([offset + side * reach, 0, distance + place.uniform(-0.8, 0.6)])
        tallness = focal * person.height / at[2]
        at[2] *= max(tallness / 66, 1.0) if tallness > 66 else min(tallness / 46, 1.0)
        at[0] *= at[2] / distance if at[2] > distance else 1.0
        about = np.pi + (place.uniform(-1.2, 1.2) if place.random() < 0.7 else place.uniform(-np.pi, np.pi))
        turn = turn_y(about)
        dressed = person.parts.replace(material=person.parts.material + DRESS)
        parts.append(dressed.placed(at, turn))
        joints = person.joints @ turn.T + at
        top = max(top, 0.85 * person.height)

    for number in range(things.integers(1, 4)):
        piece = shapes.gather(shapes.clutter(things, OTHERS + number), CLUTTER)
        aside = things.choice((-1, 1)) * things.uniform(0.15, 1.0)
        depth = distance + things.uniform(-0.9, 1.0) * min(1.0, distance / 3)
        parts.append(piece.placed((offset + aside * (0.35 * scale * wide + 0.9), 0, depth)))

    behind = max(float(part.corners()[..., 2].max()) for part in parts)
    ahead = behind + place.uniform(0.35, 2.4)
    left, right = place.uniform(1.9, 4.0, 2)
    reach = max(float(np.abs(part.corners()[..., 0]).max()) for part in parts) + 0.3
    height = place.uniform(0.9, 2.2)
    # No camera looks over a garden wall: the ground behind it would run to the horizon.
    open_air = height + place.uniform(0.1, 0.8) if place.random() < 0.08 else 0.0
    parts.insert(0, room(place, ahead + 0.3 * reach, max(left, reach), max(right, reach), open_air))

    # The camera looks at the middle of what stands there.
    aim = 0.5 * top + place.uniform(-0.1, 0.1)
    camera = Camera(
        focal * zoom, np.array([0.0, height, 0.0]),
        look(float(np.arctan2(height - aim, distance)), place.uniform(-0.03, 0.03), place.uniform(-0.05, 0.05)),
    )
    sky = np.stack([_paint(style.uniform(0.5, 0.66), style.uniform(0.1, 0.6), style.uniform(0.7, 1)) for _ in range(2)])
    scene = Scene(camera, Parts.join(parts), materials, light, diffuse, ambient, sky)
    return Still(index, attempt, shape, scene, person, joints)

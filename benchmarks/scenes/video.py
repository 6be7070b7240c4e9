"""Short videos: one target on a smooth path that changes direction, speed and size, seen by a moving camera.

The paths are drawn in the picture (column, size in pixels) and height above the floor, then carried into the room, so
that the target stays in view and keeps a size worth tracking. Two look-alikes move about as well: one of the target's
shape and colours in another texture, one of another shape in the target's colours and textures. What tells them from it
can be seen; a twin, which only its path tells from the target, would be a toss-up for any features. Things that stand
on the floor may hide the target for some frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.scenes import layout, raycast, shapes
from benchmarks.scenes.raycast import Camera, Parts, Scene

Path = Callable[[np.ndarray], np.ndarray]
TRIES = 400
STRICT = 200  # tries after which a long video may take its target to the edge or close to another thing
TEXTURES = (raycast.PLAIN, raycast.STRIPES, raycast.BANDS, raycast.CHECKER, raycast.DOTS)  # of target and look-alikes
CONTRAST = 0.35  # of a texture's two colours, 0 to 1, in the channel where they differ most
MARGIN = 6.0  # pixels the target's middle keeps from the picture's edge, at 128


@dataclass(frozen=True)
class Video:
    """``scenes``: one per frame; ``shape``: the target's class; ``name``: LaSOT's ``class-number``."""

    index: int
    shape: int
    scenes: list[Scene]


def _wander(rng: np.random.Generator, low: float, high: float, slow: float = 1.0) -> Path:
    """A smooth random path within bounds: two waves of unlike periods (in frames)."""
    periods = rng.uniform((50, 24), (90, 40)) * slow
    phases = rng.uniform(0, 2 * np.pi, 2)
    share = rng.uniform(0.6, 0.8)

    def path(frame: np.ndarray) -> np.ndarray:
        waves = np.sin(2 * np.pi * frame[:, None] / periods + phases) @ (share, 1 - share)
        return (low + high) / 2 + (high - low) / 2 * waves

    return path


def _mover(
    rng: np.random.Generator, frames: np.ndarray, focal: float, camera_height: float, extent: float, size: float
) -> np.ndarray:
    """Where a mover of ``extent`` metres is in each frame (T, 3), metres; y is its lowest point."""
    zoom = size / 128
    pixels = _wander(rng, rng.uniform(14, 18), rng.uniform(22, 33), 1.5)(frames) * zoom
    depth = focal * zoom * extent / pixels
    across = _wander(rng, 14 * zoom, 114 * zoom)(frames) - size / 2
    height = np.maximum(_wander(rng, -0.5, rng.uniform(0.4, 1.4))(frames), 0.0)  # part of the time on the floor
    height = np.minimum(height, camera_height + 0.15 * depth)
    return np.stack([across * depth / (focal * zoom), height, depth], 1)


def _bold(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A material whose texture is one of :data:`TEXTURES` and whose two colours are told apart easily."""
    for _ in range(20):
        row = layout.material(rng, colour)
        if np.abs(row[5:] - row[2:5]).max() > CONTRAST:
            break
    row[0] = rng.choice(TEXTURES)
    return row


def _looks(style: np.random.Generator) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Materials (13, 8): floor, wall, side wall, target (2), who has its shape (2), who has its looks (2), four more.

    With the light, see :func:`layout.lights`.
    """
    light = layout.lights(style)
    floor_and_walls = layout.surfaces(style)
    ground = [row[2:5] for row in floor_and_walls[:2]]
    colour = layout.vivid(style, ground)
    target_looks = [_bold(style, colour), _bold(style, layout.vivid(style, ground))]
    textured, shaped = ([row.copy() for row in target_looks] for _ in range(2))
    for row in textured:
        row[0] = style.choice([texture for texture in TEXTURES if texture != row[0]])
    for row in (*textured, *shaped):
        row[2:] = (row[2:] + style.uniform(-0.06, 0.06, 6)).clip(0, 1)
    rest = [layout.material(style, layout.vivid(style, ground)) for _ in range(4)]
    return np.stack([*floor_and_walls, *target_looks, *textured, *shaped, *rest]), light


def video(seed: int, split: int, index: int, frames: int, size: int) -> Video:
    """Draw video ``index``: the scenes of its frames."""
    for attempt in range(TRIES):
        drawn = _draw(seed, split, index, attempt, frames, size)
        if drawn is not None:
            return drawn
    raise AssertionError(f"no video fits at seed {seed}, split {split}, index {index}")


def _draw(seed: int, split: int, index: int, attempt: int, count: int, size: int) -> Video | None:
    style, place, proportions, motion, things = layout.generators(seed, split, index, attempt, 5)
    frames = np.arange(count, dtype=float)
    shape = index % len(layout.CLASSES)

    # The camera: where it starts, and how it drifts and pans.
    focal, height = place.uniform(110, 150), place.uniform(1.0, 1.7)
    pitch = place.uniform(0.05, 0.22)
    drift = [_wander(motion, -amount, amount, 1.3)(frames) for amount in (0.25, 0.08, 0.2, 0.09, 0.04)]

    def mover(which: int, material: int, label: int, group: int) -> tuple[Parts, float]:
        parts = shapes.gather(shapes.SHAPES[layout.CLASSES[which]](proportions), label, group)
        extent = parts.corners().reshape(-1, 3)
        long = float(max(extent[:, 1].max(), extent[:, 0].max() - extent[:, 0].min()))
        scale = place.uniform(0.4, 0.6) / long
        return parts.replace(material=parts.material + material).placed((0, 0, 0), None, scale), scale * long

    movers = [mover(shape, 3, layout.FIRST_CLASS + shape, raycast.MAIN)]
    other = int((shape + things.integers(1, 10)) % 10)
    movers.append(mover(shape, 5, layout.CLUTTER, raycast.NO_GROUP))
    movers.append(mover(other, 7, layout.CLUTTER, raycast.NO_GROUP))
    paths = [_mover(motion, frames, focal, height, extent, size) for _, extent in movers]
    spins = [_wander(motion, -1.2, 1.2)(frames) for _ in movers]

    strict = attempt < STRICT
    # Nothing may run through the target.
    apart = np.stack([np.abs(path - paths[0]).max(1) for path in paths[1:]])
    if strict and (apart < 0.55).any():
        return None

    cameras = [
        Camera(
            focal * size / 128, np.array([x, height + y, z]), layout.look(pitch + tilt, pan, 0.0)
        ) for x, y, z, pan, tilt in zip(*drift, strict=True)
    ]
    middle = paths[0] + (0, movers[0][1] / 2, 0)
    seen = np.concatenate([
        camera.project(at[None], size) for camera, at in zip(cameras, middle, strict=True)
    ])
    margin = MARGIN * size / 128
    if strict and ((seen[:, :2] < margin).any() or (seen[:, :2] > size - 1 - margin).any()):
        return None

    still: list[Parts] = []
    start = seen[0]
    for number in range(things.integers(1, 4)):
        column, depth = things.uniform(10, 118) * size / 128 - size / 2, things.uniform(1.7, 3.2)
        tall = things.uniform(0.5, 1.5)
        wide = things.uniform(0.05, 0.13)
        make = shapes.box if things.random() < 0.5 else shapes.cylinder
        piece = make((0, tall / 2, 0), (wide, tall / 2, wide), 9 + number, shapes.turn_y(things.uniform(0, 3)))
        at = np.array([column * depth / (focal * size / 128), 0, depth])
        aside = abs(cameras[0].project(at[None], size)[0, 0] - start[0]) > 26 * size / 128
        crossing = np.abs(np.stack([path - at for path in paths])[..., [0, 2]]).max(2).min() < 0.45
        if aside and not crossing:
            still.append(shapes.gather([piece], layout.CLUTTER).placed(at))
    # It starts alone and whole.
    first = cameras[0].project(
        np.stack([path[0] + (0, extent / 2, 0) for path, (_, extent) in zip(paths, movers, strict=True)]), size
    )
    clear = np.abs(first[1:, :2] - first[0, :2]).max(1) >= 26 * size / 128
    if not clear.all() or np.abs(first[0, :2] - (size - 1) / 2).max() > 46 * size / 128:
        return None

    deepest = max(float(path[:, 2].max()) for path in paths)
    reach = max(float(np.abs(path[:, 0]).max()) for path in paths) + 0.6
    materials, (light, diffuse, ambient) = _looks(style)  # last: most draws end before
    walls = layout.room(place, deepest + 0.4 * reach + place.uniform(0.4, 1.5), reach + 0.8, reach + 0.8)
    scenes = []
    for frame in range(count):
        moving = [
            parts.placed(path[frame], shapes.turn_y(float(spin[frame])))
            for (parts, _), path, spin in zip(movers, paths, spins, strict=True)
        ]
        scenes.append(Scene(
            cameras[frame], Parts.join([walls, *still, *moving]), materials, light, diffuse, ambient,
        ))
    return Video(index, shape, scenes)

"""A batched analytic ray caster: nearest surface, depth, labels, silhouettes, texture, light and hard shadows.

Every pixel's ray starts at the camera and runs along (u, v, 1) in camera axes (x right, y down, z forward), so the
ray parameter *is* the metric depth along the optical axis. Every primitive is a unit solid behind an affine map M:
``local = M (point - centre)``; a ray is intersected in local coordinates, where its parameter stays the same.

Rays are cast only inside each primitive's bounding rectangle: the rectangles of all primitives of a batch are laid end
to end as one flat list of samples, and the nearest hit per pixel is the integer minimum of (depth bits, primitive).
Each sample goes through the same operations on its own and integer minima do not depend on order, so a picture is bit
for bit the same in any batch, with any number of threads. All of them (+ - * / floor) are rounded correctly, but for
the square root: see ``_sqrt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

PLANE, ELLIPSOID, BOX, CYLINDER, CAPSULE = range(5)
PLAIN, STRIPES, BANDS, CHECKER, DOTS, NOISE = range(6)  # textures
NO_GROUP, MAIN, FIGURE = range(3)  # whose unoccluded silhouette is kept
VOID = 0  # the label of the sky: no class, no depth

Vector = tuple[np.ndarray, np.ndarray, np.ndarray]
FAR = 1.0e3  # metres; where the sky hangs
GRID = 1.0e-6  # parameters are rounded to this, so that the last bit of a machine's sine never reaches a pixel
TINY = 1.0e-12  # stands for the zeros of rays that run along an axis
INDEX_BITS = 24


@dataclass(frozen=True)
class Camera:
    """``focal`` in pixels, ``position`` (3,) in metres, ``rotation`` (3, 3): rows right, down, forward in the world."""

    focal: float
    position: np.ndarray
    rotation: np.ndarray

    def project(self, points: np.ndarray, size: int) -> np.ndarray:
        """World points (N, 3) -> (N, 3): column, row (pixel centres are whole numbers) and depth in metres."""
        local = (points - self.position) @ self.rotation.T
        depth = np.where(np.abs(local[:, 2:]) < 1e-6, 1e-6, local[:, 2:])
        return np.concatenate([local[:, :2] / depth * self.focal + (size - 1) / 2, local[:, 2:]], 1)


@dataclass(frozen=True)
class Parts:
    """Primitives as arrays over P. The local y axis is the axis of cylinders and capsules and the normal of planes.

    kind (P,), centre (P, 3), rotation (P, 3, 3) with the local axes as columns, half (P, 3) half extents in metres
    (capsule: its radius three times), shape (P, 2): cylinder: mean radius and slope in local units; capsule: half
    length in radii; material (P,) row of the scene's materials, label (P,), group (P,), casts (P,) a shadow or not.
    """

    kind: np.ndarray
    centre: np.ndarray
    rotation: np.ndarray
    half: np.ndarray
    shape: np.ndarray
    material: np.ndarray
    label: np.ndarray
    group: np.ndarray
    casts: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    def replace(self, **fields: np.ndarray | int) -> Parts:
        """A copy with other fields; a single number stands for all primitives."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, value in fields.items():
            values[name] = np.full_like(values[name], value) if np.isscalar(value) else value
        return Parts(**values)

    def placed(self, position: Sequence[float], rotation: np.ndarray | None = None, scale: float = 1.0) -> Parts:
        """The parts scaled, then turned, then moved."""
        turn = np.eye(3) if rotation is None else rotation
        return self.replace(
            centre=scale * self.centre @ turn.T + np.asarray(position, float),
            rotation=turn @ self.rotation, half=scale * self.half,
        )

    def corners(self) -> np.ndarray:
        """Corners (P, 8, 3) of each primitive's bounding box."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
        reach = self.half.copy()
        reach[:, 1] *= np.where(self.kind == CAPSULE, 1 + self.shape[:, 0], 1.0)
        return self.centre[:, None] + (signs * reach[:, None]) @ self.rotation.transpose(0, 2, 1)

    @staticmethod
    def join(parts: Sequence[Parts]) -> Parts:
        return Parts(**{
            name: np.concatenate([getattr(part, name) for part in parts]) for name in Parts.__dataclass_fields__
        })


@dataclass(frozen=True)
class Scene:
    """What is to be seen. ``materials`` (M, 8): texture, cells per metre, two colours (0..1); ``light`` (3,): unit
    vector towards the light, pointing upwards; colours of the light and of what comes from all around; ``sky``: two
    colours. Infinite planes stand among the parts; shadows are bounded by the floor at height 0."""

    camera: Camera
    parts: Parts
    materials: np.ndarray
    light: np.ndarray
    diffuse: np.ndarray
    ambient: np.ndarray
    sky: np.ndarray = field(default_factory=lambda: np.ones((2, 3)))


@dataclass(frozen=True)
class Rendered:
    """picture (B, H, W, 3) uint8 RGB; label (B, H, W) uint8; depth (B, H, W) float32 metres, 0 = sky;
    group (B, H, W) uint8 of what is seen; silhouettes (B, 2, H, W) bool: MAIN and FIGURE as if nothing hid them."""

    picture: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    group: np.ndarray
    silhouettes: np.ndarray


# ---------------------------------------------------------------------------------------------- intersections
# Each takes origin and direction in local coordinates and gives the ray parameter of the first hit, inf for none.


def _take(column: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``column[index]``, faster in this form."""
    return column.take(index, mode="clip")


def _sqrt(values: np.ndarray) -> np.ndarray:
    """Torch's square root, with which version 3 of the pictures was rendered.

    It is off by one bit for some numbers, where numpy's is rounded correctly; that shows in the last bit of a few
    depths and, rarely, in a colour. A next version of the pictures takes numpy's.
    """
    return torch.from_numpy(values).sqrt().numpy()


def _dot(a: Vector, b: Vector) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _where_hit(hit: np.ndarray, distance: np.ndarray) -> np.ndarray:
    return np.where(hit & (distance > 0), distance, np.inf)


def ellipsoid(origin: Vector, direction: Vector) -> np.ndarray:
    """The unit sphere."""
    a, b = _dot(direction, direction), _dot(origin, direction)
    inside = b * b - a * (_dot(origin, origin) - 1)
    return _where_hit(inside >= 0, (-b - _sqrt(np.maximum(inside, 0))) / a)


def box(origin: Vector, direction: Vector) -> np.ndarray:
    """The cube from -1 to 1: the last of three entries, if it comes before the first exit."""
    entry, leave = None, None
    for o, d in zip(origin, direction, strict=True):
        inverse = 1 / np.where(np.abs(d) < TINY, TINY, d)
        middle, reach = -o * inverse, np.abs(inverse)
        near, far = middle - reach, middle + reach
        entry = near if entry is None else np.maximum(entry, near)
        leave = far if leave is None else np.minimum(leave, far)
    return _where_hit(entry <= leave, entry)


def cylinder(origin: Vector, direction: Vector, mean: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Height -1 to 1, radius ``mean + slope * y``: a cylinder, or a cone's frustum where the slope is not 0."""
    (x, y, z), (dx, dy, dz) = origin, direction
    radius, growth = mean + slope * y, slope * dy
    a = dx * dx + dz * dz - growth * growth
    b = x * dx + z * dz - growth * radius
    inside = b * b - a * (x * x + z * z - radius * radius)
    root, inverse = _sqrt(np.maximum(inside, 0)), 1 / a
    best = np.full_like(inside, np.inf)
    for distance in ((-b - root) * inverse, (-b + root) * inverse):
        on_side = (inside >= 0) & (np.abs(y + distance * dy) <= 1)
        best = np.minimum(best, _where_hit(on_side, distance))
    top = np.where(dy > 0, np.float32(-1), np.float32(1))  # seen from outside, only the near cap can be hit first
    distance = (top - y) / dy
    hit_x, hit_z, cap = x + distance * dx, z + distance * dz, mean + slope * top
    return np.minimum(best, _where_hit(hit_x * hit_x + hit_z * hit_z <= cap * cap, distance))


def capsule(origin: Vector, direction: Vector, length: np.ndarray) -> np.ndarray:
    """All points within 1 of the segment from (0, -length, 0) to (0, length, 0)."""
    (x, y, z), (dx, dy, dz) = origin, direction
    a = np.maximum(dx * dx + dz * dz, TINY)
    b = x * dx + z * dz
    inside = b * b - a * (x * x + z * z - 1)
    distance = (-b - _sqrt(np.maximum(inside, 0))) / a
    height = y + distance * dy
    end = np.where(height > 0, length, -length)  # which ball closes the side the ray runs into
    on_end = ellipsoid((x, y - end, z), direction)
    on_side = (inside >= 0) & (np.abs(height) <= length)
    return np.where(on_side, _where_hit(on_side, distance), np.where(inside >= 0, on_end, np.inf))


# ------------------------------------------------------------------------------------------------- the batch
class _Batch:
    """The primitives of several scenes in camera coordinates, one column per primitive."""

    def __init__(self, scenes: Sequence[Scene], size: int) -> None:
        self.size, self.count = size, len(scenes)
        parts = Parts.join([scene.parts for scene in scenes])
        lengths = [len(scene.parts) for scene in scenes]
        picture = np.repeat(np.arange(self.count), lengths)
        turn = np.stack([scene.camera.rotation for scene in scenes])
        eye = np.stack([scene.camera.position for scene in scenes])
        focal = np.array([scene.camera.focal for scene in scenes])
        light = np.stack([scene.light for scene in scenes])
        material = np.concatenate([scene.materials[scene.parts.material] for scene in scenes])

        centre = np.einsum("pij,pj->pi", turn[picture], parts.centre - eye[picture])
        axes = turn[picture] @ parts.rotation
        affine = axes.transpose(0, 2, 1) / parts.half[:, :, None]
        offset = np.einsum("pij,pj->pi", affine, centre)
        towards = np.einsum("bij,bj->bi", turn, light)

        self.kind, self.picture, self.casts = parts.kind, picture, parts.casts
        self.affine = [[self._column(affine[:, i, j]) for j in range(3)] for i in range(3)]
        self.offset = [self._column(offset[:, i]) for i in range(3)]
        self.normal = _unit(self.affine, (np.float32(0), np.float32(1), np.float32(0)))  # of planes
        self.shape = [self._column(parts.shape[:, i]) for i in range(2)]
        self.cells = [self._column(parts.half[:, i] * material[:, 1]) for i in range(3)]
        self.texture = material[:, 0].astype(np.float32)
        self.colours = [self._column(material[:, 2 + i]) for i in range(6)]
        self.label, self.group = parts.label.astype(np.uint8), parts.group.astype(np.uint8)
        shine = np.einsum("pij,pj->pi", affine, towards[picture])  # the way to the light, in local coordinates
        self.shine = [self._column(shine[:, i]) for i in range(3)]

        self.light = [self._column(towards[:, i]) for i in range(3)]
        self.up = [self._column(turn[:, i, 1]) for i in range(3)]
        self.diffuse = [self._column(np.array([scene.diffuse[i] for scene in scenes])) for i in range(3)]
        self.ambient = [self._column(np.array([scene.ambient[i] for scene in scenes])) for i in range(3)]
        self.sky = [[self._column(np.array([scene.sky[j][i] for scene in scenes])) for i in range(3)] for j in (0, 1)]

        # u and v of each picture's columns and rows (B, size); pixel centres are whole numbers
        steps = (np.arange(size) - (size - 1) / 2) / focal[:, None]
        self.steps = self._column(steps)

        corners = parts.corners()
        self.seen = self._rectangles(corners, picture, turn, eye, focal)
        # A shadow lies between its caster and the caster's print on the floor, whatever wall stands in between.
        drop = np.maximum(corners[..., 1:2], 0) / light[picture][:, None, 1:2]
        prints = corners - drop * light[picture][:, None]
        self.shaded = self._rectangles(np.concatenate([corners, prints], 1), picture, turn, eye, focal)

    @staticmethod
    def _column(values: np.ndarray) -> np.ndarray:
        return (np.round(values / GRID) * GRID).astype(np.float32)

    def _rectangles(
        self, corners: np.ndarray, picture: np.ndarray, turn: np.ndarray, eye: np.ndarray, focal: np.ndarray
    ) -> np.ndarray:
        """Pixel rectangles (P, 4), left, top, right, bottom (exclusive), that hold the corners (P, K, 3)."""
        local = (corners - eye[picture][:, None]) @ turn[picture].transpose(0, 2, 1)
        behind = (local[..., 2] < 0.05).any(1)
        flat = local[..., :2] / np.maximum(local[..., 2:], 0.05) * focal[picture][:, None, None] + (self.size - 1) / 2
        low, high = np.floor(flat.min(1) - 0.01), np.ceil(flat.max(1) + 0.01) + 1
        rectangle = np.concatenate([low, high], 1)
        rectangle[behind] = (0, 0, self.size, self.size)
        return rectangle.clip(0, self.size).astype(np.int64)

    def samples(self, chosen: np.ndarray, rectangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Primitive and pixel (flat over the batch) of every sample of the chosen primitives' rectangles."""
        left, top, right, bottom = rectangles[chosen].T
        width, number = right - left, (right - left) * (bottom - top)
        owner = np.repeat(np.arange(len(chosen)), number)
        place = np.arange(len(owner), dtype=np.int32) - np.repeat((np.cumsum(number) - number).astype(np.int32), number)
        across = np.repeat(width.astype(np.int32), number)
        row = place // np.maximum(across, 1)
        first = (self.picture[chosen] * self.size + top) * self.size + left
        pixel = np.repeat(first, number) + row * (self.size - across) + place
        return np.repeat(chosen, number), pixel

    def rays(self, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """u and v of flat pixels."""
        steps = self.steps.reshape(-1)
        line = pixel // self.size
        start = line // self.size * self.size
        return _take(steps, start + (pixel - line * self.size)), _take(steps, line)

    def into_local(self, owner: np.ndarray, point: Vector) -> Vector:
        """``M point`` for each sample; subtract ``offset`` for a place rather than a direction."""
        return tuple(_dot(tuple(_take(column, owner) for column in row), point) for row in self.affine)  # type: ignore

    def intersect(self, kind: int, owner: np.ndarray, origin: Vector, direction: Vector) -> np.ndarray:
        if kind == ELLIPSOID:
            return ellipsoid(origin, direction)
        if kind == BOX:
            return box(origin, direction)
        if kind == CYLINDER:
            return cylinder(origin, direction, _take(self.shape[0], owner), _take(self.shape[1], owner))
        return capsule(origin, direction, _take(self.shape[0], owner))


def _bits(depth: np.ndarray) -> np.ndarray:
    """Depths as integers of the same order, moved up by ``INDEX_BITS``, where the index of a primitive has room."""
    return depth.view(np.int32).astype(np.int64) << INDEX_BITS


def _nearest(batch: _Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth and primitive (-1: sky) of every pixel (B*H*W,), and the silhouettes (B*2*H*W,)."""
    area = batch.size**2
    nearest = np.full((batch.count, batch.size, batch.size), FAR, np.float32)
    first = np.full(nearest.shape, 2**INDEX_BITS - 1)
    silhouettes = np.zeros(batch.count * 2 * area, bool)

    # Planes fill whole pictures: their denominators are sums of a row's and a column's share.
    for index in np.flatnonzero(batch.kind == PLANE):
        picture = batch.picture[index]
        u, v = batch.steps[picture][None, :], batch.steps[picture][:, None]
        a, b, c = (column[index] for column in batch.affine[1])
        depth = batch.offset[1][index] / (a * u + (b * v + c))
        nearer = (depth > 0) & (depth < nearest[picture])  # of two alike the first stays: its index is the smaller one
        np.copyto(nearest[picture], depth, where=nearer)
        np.copyto(first[picture], index, where=nearer)

    key = (_bits(nearest) | first).reshape(-1)
    for kind in (ELLIPSOID, BOX, CYLINDER, CAPSULE):
        owner, pixel = batch.samples(np.flatnonzero(batch.kind == kind), batch.seen)
        if not len(owner):
            continue
        u, v = batch.rays(pixel)
        direction = batch.into_local(owner, (u, v, np.float32(1)))
        origin = tuple(_take(-column, owner) for column in batch.offset)
        depth = batch.intersect(kind, owner, origin, direction)  # type: ignore
        hit = np.flatnonzero(depth < FAR)
        depth, owner, pixel = (_take(column, hit) for column in (depth, owner, pixel))
        np.minimum.at(key, pixel, _bits(depth) | owner)
        for group in (MAIN, FIGURE):
            mine = pixel[_take(batch.group, owner) == group]
            silhouettes[mine + (mine // area + group - MAIN) * area] = True

    depth = (key >> INDEX_BITS).astype(np.int32).view(np.float32)
    return depth, np.where(depth < FAR, key & (2**INDEX_BITS - 1), -1), silhouettes


def _unit(affine: Sequence[Sequence[np.ndarray]], local: Vector) -> list[np.ndarray]:
    """Unit normals in camera coordinates from those in local coordinates."""
    normal = tuple(_dot(local, tuple(row[j] for row in affine)) for j in range(3))  # type: ignore
    length = np.maximum(_sqrt(_dot(normal, normal)), 1e-9)  # type: ignore
    return [axis / length for axis in normal]


def _normals(batch: _Batch, owner: np.ndarray, place: Vector) -> list[np.ndarray]:
    """Unit normals in camera coordinates of surface points given in local coordinates."""
    normals = [_take(column, owner) for column in batch.normal]  # most of a picture is planes: theirs are known
    solid = np.flatnonzero(_take(batch.kind, owner) != PLANE)
    found = _normals_of_solids(batch, _take(owner, solid), tuple(_take(axis, solid) for axis in place))  # type: ignore
    for axis, its in zip(normals, found, strict=True):
        axis[solid] = its
    return normals


def _normals_of_solids(batch: _Batch, owner: np.ndarray, place: Vector) -> list[np.ndarray]:
    x, y, z = place
    kind = _take(batch.kind, owner)
    ax, ay, az = np.abs(x), np.abs(y), np.abs(z)
    mean, slope = (_take(column, owner) for column in batch.shape)
    radius = mean + slope * y
    # A point is on a cap when it is nearer to the cap's plane than to the side.
    on_cap = (1 - ay) < np.abs(_sqrt(x * x + z * z) - radius)
    sign_y = np.sign(y)
    in_box, round_, bar = (kind == k for k in (BOX, CYLINDER, CAPSULE))
    face_x, face_y = (ax >= ay) & (ax >= az), (ay > ax) & (ay >= az)
    nx = np.where(in_box, np.where(face_x, np.sign(x), 0.0), np.where(round_ & on_cap, 0.0, x))
    nz = np.where(in_box, np.where(face_x | face_y, 0.0, np.sign(z)), np.where(round_ & on_cap, 0.0, z))
    ny = np.where(in_box, np.where(face_y, sign_y, 0.0), y)
    ny = np.where(round_, np.where(on_cap, sign_y, -slope * radius), ny)
    ny = np.where(bar, y - np.minimum(np.maximum(y, -mean), mean), ny)
    return _unit([[_take(column, owner) for column in row] for row in batch.affine], (nx, ny, nz))


def _wave(x: np.ndarray) -> np.ndarray:
    """A smooth wave of period 2 between 0 and 1 without a sine."""
    fold = np.abs(x - 2 * np.floor(x * 0.5 + 0.5))
    return fold * fold * (3 - 2 * fold)


def _pattern(texture: np.ndarray, place: Vector) -> np.ndarray:
    """How much of the second colour shows at a place in cells."""
    x, y, z = (axis + 0.5 for axis in place)
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    weight = np.zeros_like(x)
    for kind, count in ((STRIPES, fx), (BANDS, fy + fz), (CHECKER, fx + fy + fz)):
        weight = np.where(texture == kind, count - 2 * np.floor(count * 0.5), weight)
    dx, dy, dz = x - fx - 0.5, y - fy - 0.5, z - fz - 0.5
    weight = np.where(texture == DOTS, (dx * dx + dy * dy + dz * dz < 0.1).astype(np.float32), weight)
    noisy = np.flatnonzero(texture == NOISE)
    x, y, z = (_take(axis, noisy) for axis in (x, y, z))
    rough = _wave(1.3 * x + 0.7 * y - 0.4 * z) * 0.5 + _wave(0.9 * z - 1.1 * y + 0.3 * x) * 0.5
    rough = 0.6 * rough + 0.4 * _wave(2.9 * x - 1.7 * z + 2.1 * y + 2 * rough)
    weight[noisy] = rough
    return weight


def _shadows(batch: _Batch, depth: np.ndarray, surface: np.ndarray, lit: np.ndarray) -> np.ndarray:
    """Whether something stands between a pixel's surface and the light (B*H*W,)."""
    dark = np.zeros_like(lit)
    for kind in (ELLIPSOID, BOX, CYLINDER, CAPSULE):
        owner, pixel = batch.samples(np.flatnonzero((batch.kind == kind) & batch.casts), batch.shaded)
        if not len(owner):
            continue
        # What is turned away is dark already, and no convex solid shades its own lit side.
        open_ = np.flatnonzero(_take(lit, pixel) & (_take(surface, pixel) != owner))
        owner, pixel = _take(owner, open_), _take(pixel, open_)
        z = _take(depth, pixel)
        u, v = batch.rays(pixel)
        place = batch.into_local(owner, (u * z, v * z, z))
        origin = tuple(axis - _take(column, owner) for axis, column in zip(place, batch.offset, strict=True))
        direction = tuple(_take(column, owner) for column in batch.shine)
        distance = batch.intersect(kind, owner, origin, direction)  # type: ignore
        dark[pixel[(distance > 1e-3) & (distance < FAR)]] = True
    return dark


def render(scenes: Sequence[Scene], size: int) -> Rendered:
    """Cast the rays of several scenes at once; see ``Rendered``. Each picture is ``size`` x ``size``."""
    with np.errstate(all="ignore"):  # rays along an axis, and a far that is infinite, are meant
        return _render(_Batch(scenes, size))


def _render(batch: _Batch) -> Rendered:
    shape = (batch.count, batch.size, batch.size)
    depth, surface, silhouettes = _nearest(batch)
    sky = surface < 0
    owner = np.maximum(surface, 0)
    u, v, z = batch.steps[:, None, :], batch.steps[:, :, None], depth.reshape(shape)

    place = batch.into_local(owner, ((u * z).reshape(-1), (v * z).reshape(-1), depth))
    place = tuple(axis - _take(column, owner) for axis, column in zip(place, batch.offset, strict=True))  # type: ignore
    # Room planes are seen from inside, solids from outside: the normal that counts looks at the camera.
    x, y, z = (axis.reshape(shape) for axis in _normals(batch, owner, place))
    turned = x * u + y * v + z > 0
    normal = tuple(np.where(turned, -axis, axis) for axis in (x, y, z))

    def of_picture(column: np.ndarray) -> np.ndarray:
        return column[:, None, None]

    facing = _dot(normal, tuple(of_picture(column) for column in batch.light))  # type: ignore
    upward = _dot(normal, tuple(of_picture(column) for column in batch.up)) * 0.25 + 0.75  # type: ignore
    lit = (facing.reshape(-1) > 0) & ~sky
    facing = np.where((lit & ~_shadows(batch, depth, surface, lit)).reshape(shape), facing, 0.0)

    weight = _pattern(
        _take(batch.texture, owner),
        tuple(axis * _take(column, owner) for axis, column in zip(place, batch.cells, strict=True))
    )
    above = np.flatnonzero(sky)
    ramp = _take((batch.steps + 0.5).clip(0, 1), above // batch.size)
    picture = np.empty((len(depth), 3), np.uint8)
    for channel in range(3):
        first, second = (_take(batch.colours[channel + shift], owner) for shift in (0, 3))
        albedo = first + (second - first) * weight
        light = of_picture(batch.ambient[channel]) * upward + of_picture(batch.diffuse[channel]) * facing
        high, low = (_take(colours[channel], above // batch.size**2) for colours in batch.sky)
        value = albedo * light.reshape(-1)
        value[above] = high + (low - high) * ramp
        picture[:, channel] = (value * 255 + 0.5).clip(0, 255)

    return Rendered(
        picture=picture.reshape(*shape, 3),
        label=np.where(sky, VOID, _take(batch.label, owner)).astype(np.uint8).reshape(shape),
        depth=np.where(sky, 0.0, depth).reshape(shape),
        group=np.where(sky, NO_GROUP, _take(batch.group, owner)).astype(np.uint8).reshape(shape),
        silhouettes=silhouettes.reshape(batch.count, 2, *shape[1:]),
    )

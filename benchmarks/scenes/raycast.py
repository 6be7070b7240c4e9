"""A batched analytic ray caster: nearest surface, depth, labels, silhouettes, texture, light and hard shadows.

Every pixel's ray starts at the camera and runs along (u, v, 1) in camera axes (x right, y down, z forward), so the
ray parameter *is* the metric depth along the optical axis. Every primitive is a unit solid behind an affine map M:
``local = M (point - centre)``; a ray is intersected in local coordinates, where its parameter stays the same.

Rays are cast only inside each primitive's bounding rectangle: the rectangles of all primitives of a batch are laid end
to end as one flat list of samples, and the nearest hit per pixel is the integer minimum of (depth bits, primitive).
Only correctly rounded operations (+ - * / sqrt floor) touch a sample and integer minima do not depend on order, so a
picture is bit for bit the same in any batch, with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PLANE, ELLIPSOID, BOX, CYLINDER, CAPSULE = range(5)
PLAIN, STRIPES, BANDS, CHECKER, DOTS, NOISE = range(6)  # textures
NO_GROUP, MAIN, FIGURE = range(3)  # whose unoccluded silhouette is kept
VOID = 0  # the label of the sky: no class, no depth

Vector = tuple[Tensor, Tensor, Tensor]
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


def _take(column: Tensor, index: Tensor) -> Tensor:
    """``column[index]``, several times faster in this form."""
    return torch.index_select(column, 0, index)


def _dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _where_hit(hit: Tensor, distance: Tensor) -> Tensor:
    return torch.where(hit & (distance > 0), distance, torch.inf)


def ellipsoid(origin: Vector, direction: Vector) -> Tensor:
    """The unit sphere."""
    a, b = _dot(direction, direction), _dot(origin, direction)
    inside = b * b - a * (_dot(origin, origin) - 1)
    return _where_hit(inside >= 0, (-b - inside.clamp(min=0).sqrt()) / a)


def box(origin: Vector, direction: Vector) -> Tensor:
    """The cube from -1 to 1: the last of three entries, if it comes before the first exit."""
    entry, leave = None, None
    for o, d in zip(origin, direction, strict=True):
        inverse = 1 / torch.where(d.abs() < TINY, TINY, d)
        middle, reach = -o * inverse, inverse.abs()
        near, far = middle - reach, middle + reach
        entry = near if entry is None else torch.maximum(entry, near)
        leave = far if leave is None else torch.minimum(leave, far)
    return _where_hit(entry <= leave, entry)


def cylinder(origin: Vector, direction: Vector, mean: Tensor, slope: Tensor) -> Tensor:
    """Height -1 to 1, radius ``mean + slope * y``: a cylinder, or a cone's frustum where the slope is not 0."""
    (x, y, z), (dx, dy, dz) = origin, direction
    radius, growth = mean + slope * y, slope * dy
    a = dx * dx + dz * dz - growth * growth
    b = x * dx + z * dz - growth * radius
    inside = b * b - a * (x * x + z * z - radius * radius)
    root, inverse = inside.clamp(min=0).sqrt(), 1 / a
    best = torch.full_like(inside, torch.inf)
    for distance in ((-b - root) * inverse, (-b + root) * inverse):
        on_side = (inside >= 0) & ((y + distance * dy).abs() <= 1)
        best = torch.minimum(best, _where_hit(on_side, distance))
    top = torch.where(dy > 0, -1.0, 1.0)  # seen from outside, only the near cap can be hit first
    distance = (top - y) / dy
    hit_x, hit_z, cap = x + distance * dx, z + distance * dz, mean + slope * top
    return torch.minimum(best, _where_hit(hit_x * hit_x + hit_z * hit_z <= cap * cap, distance))


def capsule(origin: Vector, direction: Vector, length: Tensor) -> Tensor:
    """All points within 1 of the segment from (0, -length, 0) to (0, length, 0)."""
    (x, y, z), (dx, dy, dz) = origin, direction
    a = (dx * dx + dz * dz).clamp(min=TINY)
    b = x * dx + z * dz
    inside = b * b - a * (x * x + z * z - 1)
    distance = (-b - inside.clamp(min=0).sqrt()) / a
    height = y + distance * dy
    end = torch.where(height > 0, length, -length)  # which ball closes the side the ray runs into
    on_end = ellipsoid((x, y - end, z), direction)
    on_side = (inside >= 0) & (height.abs() <= length)
    return torch.where(on_side, _where_hit(on_side, distance), torch.where(inside >= 0, on_end, torch.inf))


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
        self.shape = [self._column(parts.shape[:, i]) for i in range(2)]
        self.cells = [self._column(parts.half[:, i] * material[:, 1]) for i in range(3)]
        self.texture = torch.from_numpy(material[:, 0].astype(np.float32))
        self.colours = [self._column(material[:, 2 + i]) for i in range(6)]
        self.kinds = torch.from_numpy(parts.kind.astype(np.int32))
        self.label = torch.from_numpy(parts.label.astype(np.uint8))
        self.group = torch.from_numpy(parts.group.astype(np.uint8))
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
    def _column(values: np.ndarray) -> Tensor:
        return torch.from_numpy((np.round(values / GRID) * GRID).astype(np.float32))

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

    def samples(self, chosen: np.ndarray, rectangles: np.ndarray) -> tuple[Tensor, Tensor]:
        """Primitive and pixel (flat over the batch) of every sample of the chosen primitives' rectangles."""
        left, top, right, bottom = rectangles[chosen].T
        width, number = right - left, (right - left) * (bottom - top)
        owner = np.repeat(np.arange(len(chosen)), number)
        place = np.arange(len(owner), dtype=np.int32) - np.repeat((np.cumsum(number) - number).astype(np.int32), number)
        across = np.repeat(width.astype(np.int32), number)
        row = place // np.maximum(across, 1)
        first = (self.picture[chosen] * self.size + top) * self.size + left
        pixel = np.repeat(first, number) + row * (self.size - across) + place
        return torch.from_numpy(np.repeat(chosen, number)), torch.from_numpy(pixel)

    def rays(self, pixel: Tensor) -> tuple[Tensor, Tensor]:
        """u and v of flat pixels."""
        steps = self.steps.reshape(-1)
        line = torch.div(pixel, self.size, rounding_mode="floor")
        start = torch.div(line, self.size, rounding_mode="floor") * self.size
        return _take(steps, start + (pixel - line * self.size)), _take(steps, line)

    def into_local(self, owner: Tensor, point: Vector) -> Vector:
        """``M point`` for each sample; subtract ``offset`` for a place rather than a direction."""
        return tuple(_dot(tuple(_take(column, owner) for column in row), point) for row in self.affine)  # type: ignore

    def intersect(self, kind: int, owner: Tensor, origin: Vector, direction: Vector) -> Tensor:
        if kind == ELLIPSOID:
            return ellipsoid(origin, direction)
        if kind == BOX:
            return box(origin, direction)
        if kind == CYLINDER:
            return cylinder(origin, direction, _take(self.shape[0], owner), _take(self.shape[1], owner))
        return capsule(origin, direction, _take(self.shape[0], owner))


def _nearest(batch: _Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and primitive (-1: sky) of every pixel (B*H*W,), and the silhouettes (B*2*H*W,)."""
    area = batch.size**2
    far = torch.full((), FAR).view(torch.int32).long() << INDEX_BITS
    key = (far | (2**INDEX_BITS - 1)).expand(batch.count * area).clone()
    silhouettes = torch.zeros(batch.count * 2 * area, dtype=torch.bool)

    # Planes fill whole pictures: their denominators are sums of a row's and a column's share.
    for index in np.flatnonzero(batch.kind == PLANE):
        picture = batch.picture[index]
        u, v = batch.steps[picture][None, :], batch.steps[picture][:, None]
        a, b, c = (column[index] for column in batch.affine[1])
        depth = batch.offset[1][index] / (a * u + (b * v + c))
        depth = torch.where((depth > 0) & (depth < FAR), depth, FAR).reshape(-1)
        here = key[picture * area : (picture + 1) * area]
        torch.minimum(here, (depth.view(torch.int32).long() << INDEX_BITS) | int(index), out=here)

    for kind in (ELLIPSOID, BOX, CYLINDER, CAPSULE):
        owner, pixel = batch.samples(np.flatnonzero(batch.kind == kind), batch.seen)
        if not len(owner):
            continue
        u, v = batch.rays(pixel)
        direction = batch.into_local(owner, (u, v, torch.ones(())))
        origin = tuple(-_take(column, owner) for column in batch.offset)
        depth = batch.intersect(kind, owner, origin, direction)  # type: ignore
        hit = depth < FAR
        depth, owner, pixel = depth[hit], owner[hit], pixel[hit]
        key.scatter_reduce_(0, pixel, (depth.view(torch.int32).long() << INDEX_BITS) | owner, "amin")
        for group in (MAIN, FIGURE):
            mine = pixel[_take(batch.group, owner) == group]
            picture = torch.div(mine, area, rounding_mode="floor")
            silhouettes[mine + (picture + group - MAIN) * area] = True

    depth = (key >> INDEX_BITS).int().view(torch.float32)
    return depth, torch.where(depth < FAR, key & (2**INDEX_BITS - 1), -1), silhouettes


def _normals(batch: _Batch, owner: Tensor, place: Vector) -> Vector:
    """Unit normals in camera coordinates of surface points given in local coordinates."""
    x, y, z = place
    kind = _take(batch.kinds, owner)
    ax, ay, az = x.abs(), y.abs(), z.abs()
    mean, slope = (_take(column, owner) for column in batch.shape)
    radius = mean + slope * y
    # A point is on a cap when it is nearer to the cap's plane than to the side.
    on_cap = (1 - ay) < ((x * x + z * z).sqrt() - radius).abs()
    sign_y = torch.sign(y)
    in_plane, in_box, round_, bar = (kind == k for k in (PLANE, BOX, CYLINDER, CAPSULE))
    face_x, face_y = (ax >= ay) & (ax >= az), (ay > ax) & (ay >= az)
    nx = torch.where(in_box, torch.where(face_x, torch.sign(x), 0.0), torch.where(round_ & on_cap, 0.0, x))
    nz = torch.where(in_box, torch.where(face_x | face_y, 0.0, torch.sign(z)), torch.where(round_ & on_cap, 0.0, z))
    ny = torch.where(in_box, torch.where(face_y, sign_y, 0.0), y)
    ny = torch.where(round_, torch.where(on_cap, sign_y, -slope * radius), ny)
    ny = torch.where(bar, y - torch.minimum(torch.maximum(y, -mean), mean), ny)
    nx, nz = torch.where(in_plane, 0.0, nx), torch.where(in_plane, 0.0, nz)
    ny = torch.where(in_plane, 1.0, ny)
    columns = [[_take(row[j], owner) for row in batch.affine] for j in range(3)]
    normal = [_dot((nx, ny, nz), column) for column in columns]  # type: ignore
    length = _dot(normal, normal).sqrt().clamp(min=1e-9)  # type: ignore
    return normal[0] / length, normal[1] / length, normal[2] / length


def _wave(x: Tensor) -> Tensor:
    """A smooth wave of period 2 between 0 and 1 without a sine."""
    fold = (x - 2 * torch.floor(x * 0.5 + 0.5)).abs()
    return fold * fold * (3 - 2 * fold)


def _pattern(texture: Tensor, place: Vector) -> Tensor:
    """How much of the second colour shows at a place in cells."""
    x, y, z = (axis + 0.5 for axis in place)
    fx, fy, fz = torch.floor(x), torch.floor(y), torch.floor(z)
    weight = torch.zeros_like(x)
    for kind, count in ((STRIPES, fx), (BANDS, fy + fz), (CHECKER, fx + fy + fz)):
        weight = torch.where(texture == kind, count - 2 * torch.floor(count * 0.5), weight)
    dx, dy, dz = x - fx - 0.5, y - fy - 0.5, z - fz - 0.5
    weight = torch.where(texture == DOTS, (dx * dx + dy * dy + dz * dz < 0.1).float(), weight)
    rough = _wave(1.3 * x + 0.7 * y - 0.4 * z) * 0.5 + _wave(0.9 * z - 1.1 * y + 0.3 * x) * 0.5
    rough = 0.6 * rough + 0.4 * _wave(2.9 * x - 1.7 * z + 2.1 * y + 2 * rough)
    return torch.where(texture == NOISE, rough, weight)


def _shadows(batch: _Batch, depth: Tensor, surface: Tensor, lit: Tensor) -> Tensor:
    """Whether something stands between a pixel's surface and the light (B*H*W,)."""
    dark = torch.zeros_like(lit)
    for kind in (ELLIPSOID, BOX, CYLINDER, CAPSULE):
        owner, pixel = batch.samples(np.flatnonzero((batch.kind == kind) & batch.casts), batch.shaded)
        if not len(owner):
            continue
        # What is turned away is dark already, and no convex solid shades its own lit side.
        open_ = _take(lit, pixel) & (_take(surface, pixel) != owner)
        owner, pixel = owner[open_], pixel[open_]
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
    with torch.inference_mode():
        return _render(_Batch(scenes, size))


def _render(batch: _Batch) -> Rendered:
    size, count, area = batch.size, batch.count, batch.size**2
    depth, surface, silhouettes = _nearest(batch)
    sky = surface < 0
    owner = surface.clamp(min=0)
    u = batch.steps[:, None, :].expand(count, size, size).reshape(-1)
    v = batch.steps[:, :, None].expand(count, size, size).reshape(-1)

    place = batch.into_local(owner, (u * depth, v * depth, depth))
    place = tuple(axis - _take(column, owner) for axis, column in zip(place, batch.offset, strict=True))  # type: ignore
    normal = _normals(batch, owner, place)
    # Room planes are seen from inside, solids from outside: the normal that counts looks at the camera.
    turned = normal[0] * u + normal[1] * v + normal[2] > 0
    normal = tuple(torch.where(turned, -axis, axis) for axis in normal)  # type: ignore

    def per_pixel(column: Tensor) -> Tensor:
        return column[:, None].expand(count, area).reshape(-1)

    facing = _dot(normal, tuple(per_pixel(column) for column in batch.light))  # type: ignore
    upward = _dot(normal, tuple(per_pixel(column) for column in batch.up)) * 0.25 + 0.75  # type: ignore
    lit = (facing > 0) & ~sky
    facing = torch.where(lit & ~_shadows(batch, depth, surface, lit), facing, 0.0)

    weight = _pattern(
        _take(batch.texture, owner),
        tuple(axis * _take(column, owner) for axis, column in zip(place, batch.cells, strict=True))
    )
    ramp = (v + 0.5).clamp(0, 1)
    picture = torch.empty(count * area, 3, dtype=torch.uint8)
    for channel in range(3):
        first, second = (_take(batch.colours[channel + shift], owner) for shift in (0, 3))
        albedo = first + (second - first) * weight
        light = per_pixel(batch.ambient[channel]) * upward + per_pixel(batch.diffuse[channel]) * facing
        high, low = (per_pixel(colours[channel]) for colours in batch.sky)
        value = torch.where(sky, high + (low - high) * ramp, albedo * light)
        picture[:, channel] = (value * 255 + 0.5).clamp(0, 255).to(torch.uint8)

    shape = (count, size, size)
    return Rendered(
        picture=picture.reshape(*shape, 3).numpy(),
        label=torch.where(sky, 0, _take(batch.label, owner)).to(torch.uint8).reshape(shape).numpy(),
        depth=torch.where(sky, 0.0, depth).reshape(shape).numpy(),
        group=torch.where(sky, 0, _take(batch.group, owner)).to(torch.uint8).reshape(shape).numpy(),
        silhouettes=silhouettes.reshape(count, 2, size, size).numpy(),
    )

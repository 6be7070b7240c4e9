"""The articulated figure: a posed skeleton, its 17 COCO joints, and the primitives that clothe it.

Figure axes: x to its own right, y up, z the way it faces. Lengths are fractions of the standing height.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.scenes import raycast
from benchmarks.scenes.raycast import Parts
from benchmarks.scenes.shapes import Piece, along, box, capsule, ellipsoid, gather, turn_x, turn_z

JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)
# COCO's skeleton, joints counted from 1
SKELETON = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
    (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7),
)
SKIN, HAIR, SHIRT, BADGE, TROUSERS, SHOES, EYES = range(7)  # the figure's materials
SIDES = (("left", -1), ("right", 1))
# How much body lies over a joint: it is seen when the surface in its pixel is no more than this nearer (of height).
COVER = {"nose": 0.02, "eye": 0.02, "ear": 0.025, "shoulder": 0.06, "elbow": 0.045, "wrist": 0.04, "hip": 0.075,
         "knee": 0.055, "ankle": 0.05}
COVERS = np.array([COVER[joint.rpartition("_")[2]] for joint in JOINTS])


@dataclass(frozen=True)
class Figure:
    """``parts`` in metres with the lowest foot at y = 0; ``joints`` (17, 3) in JOINTS' order; ``height`` in metres."""

    parts: Parts
    joints: np.ndarray
    height: float


def _limb(side: int, abduction: float, flexion: float) -> np.ndarray:
    """Direction of a limb that hangs down, swung sideways and forwards (radians)."""
    return np.array([
        side * np.sin(abduction), -np.cos(abduction) * np.cos(flexion), np.cos(abduction) * np.sin(flexion)
    ])


def _bend(upper: np.ndarray, towards: np.ndarray, angle: float) -> np.ndarray:
    """``upper`` turned by ``angle`` towards another direction."""
    across = towards - (towards @ upper) * upper
    return np.cos(angle) * upper + np.sin(angle) * across / max(float(across @ across) ** 0.5, 1e-6)


def _arm(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions of upper arm and forearm."""
    mode = rng.choice(6, p=(0.25, 0.15, 0.2, 0.15, 0.15, 0.1))
    wide, swing, elbow = (
        (rng.uniform(0.1, 0.35), rng.uniform(-0.5, 0.6), rng.uniform(0.05, 0.8)),  # hanging or walking
        (rng.uniform(1.2, 1.8), rng.uniform(-0.2, 0.3), rng.uniform(0, 0.5)),  # out to the side
        (rng.uniform(2.1, 2.9), rng.uniform(-0.2, 0.3), rng.uniform(0, 0.7)),  # up
        (rng.uniform(0.1, 0.4), rng.uniform(1.0, 1.7), rng.uniform(0, 0.8)),  # forwards
        (rng.uniform(0.6, 0.9), rng.uniform(-0.4, -0.1), rng.uniform(1.5, 2.1)),  # hand on the hip
        (rng.uniform(1.2, 1.6), rng.uniform(-0.1, 0.3), rng.uniform(1.3, 1.9)),  # waving
    )[mode]
    upper = _limb(side, wide, swing)
    towards = np.array([(0, 0, 1), (0, 0.5, 1), (-side, 0.3, 0.2), (0, 1, 0.3), (-side, -0.6, 0.3), (0, 1, 0)][mode])
    return upper, _bend(upper, towards, elbow)


def _legs(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Directions of thigh and shin, left then right."""
    mode, ahead = rng.choice(5, p=(0.25, 0.35, 0.15, 0.15, 0.1)), rng.choice((-1, 1))
    legs = []
    for _, side in SIDES:
        front = side == ahead
        if mode == 0:  # standing
            wide, swing, knee = rng.uniform(0.03, 0.15), rng.uniform(-0.1, 0.15), rng.uniform(0, 0.2)
        elif mode == 1:  # walking
            swing = rng.uniform(0.3, 0.7) if front else rng.uniform(-0.5, -0.2)
            wide, knee = rng.uniform(0.03, 0.1), rng.uniform(0.1, 0.4) if front else rng.uniform(0.2, 0.7)
        elif mode == 2:  # legs apart
            wide, swing, knee = rng.uniform(0.25, 0.45), rng.uniform(-0.1, 0.2), rng.uniform(0, 0.2)
        elif mode == 3:  # squatting, nearly sitting
            wide, swing, knee = rng.uniform(0.15, 0.35), rng.uniform(0.8, 1.35), rng.uniform(1.2, 1.6)
        else:  # one knee up
            swing = rng.uniform(0.9, 1.5) if front else rng.uniform(-0.1, 0.1)
            wide, knee = rng.uniform(0.03, 0.2), rng.uniform(1.0, 1.7) if front else rng.uniform(0, 0.15)
        thigh = _limb(side, wide, swing)
        legs.append((thigh, _bend(thigh, np.array([0.0, -0.2, -1.0]), knee)))
    return legs


def build(rng: np.random.Generator, label: int) -> Figure:
    """A figure in a random pose with random proportions."""
    height = rng.uniform(1.5, 1.9)
    stout = rng.uniform(0.9, 1.15)
    shoulder_half, hip_half = 0.125 * stout, 0.062 * stout
    trunk_length, upper_arm, forearm, thigh_length, shin_length = 0.29, 0.165, 0.145, 0.245, 0.235

    lean = turn_x(rng.uniform(-0.08, 0.35)) @ turn_z(rng.uniform(-0.15, 0.15))
    look = lean @ _head_turn(rng)
    up, right, forward = lean[:, 1], lean[:, 0], lean[:, 2]
    neck = trunk_length * up
    head = neck + 0.045 * up + 0.085 * look[:, 1]

    joint: dict[str, np.ndarray] = {}
    pieces: list[Piece] = []
    # Head: skin, a cap of hair behind and above it, and a nose, so that it is plain where it faces.
    radius = np.array([0.062, 0.08, 0.068])
    pieces.append(ellipsoid(head, radius, SKIN, look))
    pieces.append(ellipsoid(head + look @ (0, 0.022, -0.018), radius * (1.09, 1.02, 1.04), HAIR, look))
    joint["nose"] = head + look @ (0, -0.006, 0.076)
    pieces.append(ellipsoid(joint["nose"], (0.014, 0.018, 0.02), SKIN, look))
    for name, side in SIDES:
        joint[f"{name}_eye"] = head + look @ (side * 0.027, 0.016, 0.059)
        joint[f"{name}_ear"] = head + look @ (side * 0.062, -0.002, -0.002)
        pieces.append(ellipsoid(joint[f"{name}_eye"], (0.011, 0.011, 0.009), EYES, look))
        pieces.append(ellipsoid(head + look @ (side * 0.064, -0.002, -0.002), (0.014, 0.022, 0.016), SKIN, look))
    pieces.append(capsule(neck - 0.02 * up, head, 0.034, SKIN))

    # Trunk: wider at the shoulders, with a badge on the chest and trousers round the hips.
    trunk = trunk_length * 0.5 * up
    wide = (shoulder_half + hip_half) * 0.58
    pieces.append((
        raycast.CYLINDER, trunk, lean, (wide, trunk_length * 0.46, 0.068 * stout), (1.0, 0.16), SHIRT,
    ))
    chest = trunk + 0.04 * up + 0.062 * stout * forward
    pieces.append(box(chest, (0.045, 0.055, 0.016), BADGE, lean))
    pieces.append(ellipsoid(0.0 * up, (hip_half * 1.75, 0.065, 0.07 * stout), TROUSERS, lean))
    pieces.append(capsule(
        neck - 0.035 * up - 0.8 * shoulder_half * right, neck - 0.035 * up + 0.8 * shoulder_half * right, 0.042, SHIRT
    ))

    for name, side in SIDES:
        upper, fore = (lean @ way for way in _arm(rng, side))
        shoulder = neck - 0.035 * up + side * shoulder_half * right
        elbow = shoulder + upper_arm * upper
        wrist = elbow + forearm * fore
        joint[f"{name}_shoulder"], joint[f"{name}_elbow"], joint[f"{name}_wrist"] = shoulder, elbow, wrist
        pieces.append(capsule(shoulder, elbow, 0.034 * stout, SHIRT))
        pieces.append(capsule(elbow, wrist, 0.028 * stout, SKIN))
        hand = wrist + 0.035 * fore
        pieces.append(ellipsoid(hand, (0.026, 0.046, 0.03), SKIN, along(fore)))

    for (name, side), (thigh, shin) in zip(SIDES, _legs(rng), strict=True):
        hip = np.array([side * hip_half, -0.01, 0.0])
        knee = hip + thigh_length * thigh
        ankle = knee + shin_length * shin
        joint[f"{name}_hip"], joint[f"{name}_knee"], joint[f"{name}_ankle"] = hip, knee, ankle
        pieces.append(capsule(hip, knee, 0.05 * stout, TROUSERS))
        pieces.append(capsule(knee, ankle, 0.038 * stout, TROUSERS))
        # The foot stands square on the shin, pointing forwards.
        toe = _bend(shin, np.array([0.0, 0.0, 1.0]), np.pi / 2)
        foot = ankle + 0.028 * shin + 0.03 * toe
        pieces.append(ellipsoid(foot, (0.036, 0.075, 0.03), SHOES, along(toe)))

    parts = gather(pieces, label, raycast.FIGURE)
    parts = parts.replace(casts=~np.isin(parts.material, (EYES, BADGE)) & (parts.half.min(1) > 0.02))
    ground = parts.corners()[..., 1].min()
    parts = parts.placed((0, -ground * height, 0), None, height)
    joints = np.array([joint[name] for name in JOINTS]) * height - (0, ground * height, 0)
    return Figure(parts, joints, height)


def _head_turn(rng: np.random.Generator) -> np.ndarray:
    angle, nod = rng.uniform(-0.6, 0.6), rng.uniform(-0.15, 0.25)
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ turn_x(nod)


def visibility(projected: np.ndarray, height: float, depth: np.ndarray, group: np.ndarray) -> np.ndarray:
    """COCO's flag per joint (17,): 2 seen, 1 inside the picture but hidden, 0 outside.

    ``projected`` (17, 3): column, row, depth in metres; ``depth`` (H, W) and ``group`` (H, W) of the picture. A joint
    lies inside the body: it counts as seen when its pixel shows the figure and nothing lies far in front of it.
    """
    size = depth.shape[0]
    column, row = np.rint(projected[:, 0]).astype(int), np.rint(projected[:, 1]).astype(int)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size) & (projected[:, 2] > 0)
    column, row = column.clip(0, size - 1), row.clip(0, size - 1)
    near = depth[row, column] >= projected[:, 2] - COVERS * height
    seen = near & (group[row, column] == raycast.FIGURE)
    return np.where(inside, np.where(seen, 2, 1), 0)

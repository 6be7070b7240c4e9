"""Sheets of pictures beside what a backbone makes of them: attention of chosen patches, features as colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.analyze import Pictures
from benchmarks.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from downstream.analysis.probe import Layout

ROWS, COLUMNS = 4, 6  # pictures a sheet; layers and heads shown, evenly chosen
TILE, GAP, HEAD = 128, 4, 16  # screen pixels: least side of a tile, gap, line of text
QUERIES = ((0.5, 0.5), (0.25, 0.75))  # (down, right) as shares of the side: the middle, and off it
MARK = (213, 94, 0)  # vermilion of Okabe & Ito


def queries_of(texts: Sequence[str]) -> tuple[tuple[float, float], ...]:
    """Queries from "right,down", shares of the side from 0 to 1; none gives :data:`QUERIES`.

    Raises:
        RequestError: one of them is something else.
    """
    found = []
    for text in texts:
        try:
            right, down = (float(part) for part in text.split(","))
        except ValueError as error:
            raise RequestError(f"--query {text!r}: two shares of the side, right and down, as 0.5,0.5") from error
        if not (0 <= right <= 1 and 0 <= down <= 1):
            raise RequestError(f"--query {text!r}: shares of the side lie between 0 and 1")
        found.append((down, right))
    return tuple(found) or QUERIES


def write(
    folders: Sequence[Path], pictures: Pictures, output: Path, kinds: Sequence[str] = ("attention", "features"),
    queries: Sequence[tuple[float, float]] = QUERIES,
) -> list[Path]:
    """A sheet of each kind for each backbone folder: ``attention-LABEL.png`` and ``features-LABEL.png``.

    Args:
        output: a folder; or, for a single sheet, a file that ends in .png.

    Raises:
        RequestError: a folder is no backbone, its network has no attention to show, or several sheets for one file.
    """
    from benchmarks.studies import subject
    from downstream.analysis.probe import load_network
    from downstream.task import TaskError

    single = output.suffix == ".png"
    if single and len(folders) * len(kinds) > 1:
        raise RequestError(f"--output {output}: {len(folders) * len(kinds)} sheets do not go into one file; name a "
                           "folder, or one backbone")
    (output.parent if single else output).mkdir(parents=True, exist_ok=True)
    paths = []
    for folder in folders:
        label = subject(folder).label
        try:
            net, _, size = load_network(folder)
        except TaskError as error:
            raise RequestError(str(error)) from error
        files = pictures.files[:ROWS]
        originals = [pictures.read(path, size) for path in files]
        images = pictures.normalised(files, size)
        for kind in kinds:
            sheet = (
                attention_sheet(net, images, originals, label, queries) if kind == "attention"
                else feature_sheet(net, images, originals, label)
            )
            if sheet is None:
                if len(kinds) == 1:
                    raise RequestError(f"{label}: a {type(net).__name__} has no attention: take features")
                continue
            name = re.sub(r"[^\w@.-]+", "-", label)
            paths.append(output if single else output / f"{kind}-{name}.png")
            sheet.save(paths[-1])
    return paths


@dataclass(frozen=True, eq=False)
class QueryMaps:
    """Attention of one query of each picture in one layer: ``maps`` (B, H, h, w), a share a patch; 0 outside its
    window. ``box`` is the query's patch in the picture: left, top, right, bottom in pixels."""

    maps: Tensor
    box: tuple[float, float, float, float]


def query_maps(log_attention: Tensor, layout: Layout, query: tuple[float, float]) -> QueryMaps:
    """The attention (B × W, H, N, N) of the patch at ``query`` (down, right; shares of the side) of each picture.

    Class tokens, registers and padding are left out and the rest scaled to sum to 1.
    """
    import torch

    h, w = layout.grid
    row, column = min(h - 1, int(query[0] * h)), min(w - 1, int(query[1] * w))
    window, place = (layout.tokens == row * w + column).nonzero()[0].tolist()
    tokens = layout.tokens[window]
    real = tokens >= 0
    mine = log_attention[window :: len(layout.tokens), :, place].exp()[..., real]  # (B, H, patches of the window)
    maps = torch.zeros(*mine.shape[:2], h * w)
    maps[..., tokens[real]] = (mine / mine.sum(-1, keepdim=True)).cpu()
    s = layout.stride
    return QueryMaps(maps.unflatten(-1, (h, w)), (column * s, row * s, (column + 1) * s, (row + 1) * s))


def attention_sheet(
    net: nn.Module, images: Tensor, originals: Sequence[np.ndarray], title: str,
    queries: Sequence[tuple[float, float]] = QUERIES,
) -> Image.Image | None:
    """A row a picture and query: the picture with the query marked, the mean over heads of chosen layers, and chosen
    heads of the last layer; each map in cividis from 0 to its own maximum. None for a network without attention."""
    from downstream.analysis.probe import Probe

    found: dict[tuple[int, int], QueryMaps] = {}

    def see(layer: int, log_attention: Tensor, layout: Layout) -> None:
        for q, query in enumerate(queries):
            found[layer, q] = query_maps(log_attention, layout, query)

    with Probe(net, see) as probe:
        probe(images)
        names = probe.names
    if not found:
        return None
    layers = _spread(sorted({layer for layer, _ in found}))
    heads = _spread(range(found[layers[-1], 0].maps.shape[1]))
    headings = ["picture, query", *(f"layer {names[i]}" for i in layers)]
    headings += [f"{names[layers[-1]]}, head {h + 1}" for h in heads]
    rows = []
    for i, picture in enumerate(originals):
        for q in range(len(queries)):
            means = [found[layer, q].maps[i].mean(0) for layer in layers]
            single = [found[layers[-1], q].maps[i, h] for h in heads]
            rows.append([_marked(picture, found[layers[0], q].box), *(_heat(m.numpy()) for m in (*means, *single))])
    return _sheet(rows, headings, f"{title}: attention")


def feature_sheet(net: nn.Module, images: Tensor, originals: Sequence[np.ndarray], title: str) -> Image.Image:
    """A row a picture: the picture, and the first three principal components of chosen layers' patch features as red,
    green and blue, one basis a layer for all pictures."""
    from downstream.analysis.probe import Probe

    maps: dict[int, Tensor] = {}
    with Probe(net, None, lambda layer, square, stride: maps.__setitem__(layer, square)) as probe:
        probe(images)
        names = probe.names
    layers = _spread(sorted(maps))
    colours = {layer: principal_colours(maps[layer]) for layer in layers}
    rows = [
        [picture, *((colours[layer][i] * 255).round().astype(np.uint8) for layer in layers)]
        for i, picture in enumerate(originals)
    ]
    return _sheet(rows, ["picture", *(f"layer {names[i]}" for i in layers)], f"{title}: features")


def principal_colours(maps: Tensor) -> np.ndarray:
    """(B, D, h, w) -> (B, h, w, 3) in [0, 1]: three principal components over all tokens.

    Each from its 2 % to its 98 % quantile; signs such that the third moment is not below 0, so that they do not
    depend on the solver. Components beyond D are 0.5.
    """
    import torch

    tokens = maps.permute(0, 2, 3, 1)
    flat = tokens.flatten(0, 2).double()
    flat = flat - flat.mean(0)
    basis = torch.linalg.eigh(flat.T @ flat)[1].flip(1)[:, :3]
    parts = flat @ basis
    parts = parts * torch.where(parts.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = (torch.quantile(parts, q, dim=0) for q in (0.02, 0.98))
    scaled = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    out = torch.full((*tokens.shape[:3], 3), 0.5, dtype=torch.float64)
    out[..., : scaled.shape[1]] = scaled.view(*tokens.shape[:3], -1)
    return out.cpu().numpy()


def _spread(items: Sequence[int]) -> list[int]:
    """At most ``COLUMNS`` of the items, evenly, with the first and the last."""
    if len(items) <= COLUMNS:
        return list(items)
    return [items[round(i * (len(items) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]


def _heat(values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["cividis"](values / max(values.max(), 1e-12))[..., :3] * 255).round().astype(np.uint8)


def _marked(picture: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The picture enlarged to the tile's size with a frame around the query's patch."""
    side = _side(picture)
    scale = side / picture.shape[0]
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
    left, top, right, bottom = (round(v * scale) for v in box)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline="white", width=2)  # seen on any ground
    draw.rectangle((left, top, right - 1, bottom - 1), outline=MARK, width=2)
    return np.asarray(image)


def _side(picture: np.ndarray) -> int:
    return picture.shape[0] * max(1, -(-TILE // picture.shape[0]))


def _sheet(rows: Sequence[Sequence[np.ndarray]], headings: Sequence[str], title: str) -> Image.Image:
    side = _side(rows[0][0])
    size = len(headings) * (side + GAP) + GAP, 2 * HEAD + len(rows) * (side + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    text = ImageDraw.Draw(sheet)
    text.text((GAP, 2), title, fill="black")
    for c, heading in enumerate(headings):
        text.text((GAP + c * (side + GAP), HEAD), heading, fill="black")
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            image = Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (GAP + c * (side + GAP), 2 * HEAD + GAP + r * (side + GAP)))
    return sheet

"""Contact sheets: a suite's pictures with their ground truth, and an objective at work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from benchmarks.errors import RequestError, unknown
from benchmarks.execute import Execution, set_threads
from benchmarks.plan import Pretraining, resolve
from benchmarks.progress import Reporter
from benchmarks.suite import Suite
from leaderboard.page import PICTURE
from objectives import recipe as recipes

if TYPE_CHECKING:
    from torch import Tensor

SCALE, GAP, ROWS = 2, 4, 8  # screen pixels per picture pixel, gap in pixels, pictures a sheet
WIDEST = 2400  # pixels of several sheets in one file, unless a single one is wider: what a README shows legibly
FEW, FEW_ROWS = 4, 2  # with more objectives than these in one file, so many pictures of each
TRAINED = "objective.safetensors"  # beside a backbone: its student and head
TURN = 0.618034  # of the circle of hues from one code to the next (the golden ratio): neighbours look different


def data(suite: Suite, root: Path, output: Path, reporter: Reporter) -> Path:
    """The test data of the suite's tasks with their labels, as the tasks read them."""
    from benchmarks.data_sheet import data_sheet
    from downstream.task import TaskError

    path = output if output.suffix == ".png" else output / f"{suite.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        data_sheet(suite, root, reporter.say).save(path)
    except TaskError as error:
        raise RequestError(str(error)) from error
    return path


def shown(
    names: Sequence[str], suite: Suite, runs: Path, seed: int, budget: str, reporter: Reporter
) -> list[Pretraining]:
    """The backbones whose objectives ``names`` (or ``all``) can be drawn, found before any data are looked at.

    Objectives that predict nothing in the picture's places are left out with a line; of ``all``, those without a
    trained backbone too.

    Raises:
        RequestError: an unknown name or budget, a named objective that is not trained, or nothing is left.
    """
    if budget not in suite.budgets:
        raise unknown(f"budget of suite {suite.name}", budget, suite.budgets)
    every = list(names) == ["all"]
    chosen = sorted(recipes.recipes()) if every else list(dict.fromkeys(names))
    wanted = [replace(resolve(recipes.get(name), suite, budget, ()), seed=seed) for name in chosen]
    pictured = [p for p in wanted if p.recipe.trains and p.recipe.teacher["type"] != "Labels"]
    missing = [p for p in pictured if not (runs / p.folder / "pretrain" / TRAINED).is_file()]
    found = [p for p in pictured if p not in missing]
    if missing and (not every or not found):
        first = "all" if every else missing[0].recipe.name
        raise RequestError(
            f"no trained {'objective' if every else missing[0].label} under {runs}; first: bench run --objective "
            f"{first} --suite {suite.name} --budget {budget}"
        )
    left = [p.recipe.name for p in wanted if p not in pictured]
    if not found:
        raise RequestError(f"{', '.join(left)}: nothing is predicted in the picture's places, so nothing can be shown")
    if left:
        reporter.say(f"left out, nothing is predicted in the picture's places: {', '.join(left)}")
    if missing:
        reporter.say(f"left out, not trained under {runs}: {', '.join(p.recipe.name for p in missing)}")
    return found


def objectives(chosen: Sequence[Pretraining], root: Path, runs: Path, output: Path, reporter: Reporter) -> list[Path]:
    """Sheets of original, student's view, target and prediction: a file each, or all in one where a .png is named."""
    joined = output.suffix == ".png"
    rows = FEW_ROWS if joined and len(chosen) > FEW else ROWS
    execution = Execution(runs, root, reporter=reporter)
    sheets = {p.recipe.name: objective_sheet(p, execution, rows) for p in chosen}
    paths = {output: shelved(list(sheets.values()))} if joined else {
        output / f"{name}.png": sheet for name, sheet in sheets.items()
    }
    for path, sheet in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    return list(paths)


def beside(chosen: Sequence[Pretraining], root: Path, runs: Path, reporter: Reporter) -> list[Path]:
    """A small sheet of each objective beside its backbone (``pretrain/views.webp``), where the leaderboard shows it."""
    execution, paths = Execution(runs, root, reporter=reporter), []
    for pretraining in chosen:
        sheet = objective_sheet(pretraining, execution, rows=4)
        paths.append(runs / pretraining.folder / "pretrain" / f"{PICTURE}.webp")
        sheet.save(paths[-1], quality=80, method=6)
    return paths


def shelved(sheets: Sequence[Image.Image]) -> Image.Image:
    """The sheets side by side, a new row where one would reach beyond :data:`WIDEST`."""
    places, left, top, below = [], 0, 0, 0
    for sheet in sheets:
        if left and left + sheet.width > WIDEST:
            left, top = 0, below
        places.append((left, top))
        left, below = left + sheet.width, max(below, top + sheet.height)
    width = max(x + sheet.width for (x, _), sheet in zip(places, sheets, strict=True))
    joined = Image.new("RGB", (width, below), "white")
    for place, sheet in zip(places, sheets, strict=True):
        joined.paste(sheet, place)
    return joined


def objective_sheet(pretraining: Pretraining, execution: Execution, rows: int = ROWS) -> Image.Image:
    """The sheet of one objective (see :func:`shown`), drawn with its backbone's seed; nothing is trained.

    Raises:
        ObjectiveError: its tokenizer is not in the cache.
    """
    import torch

    set_threads()
    pictures = execution.pictures(pretraining)
    folder = execution.runs / pretraining.folder / "pretrain"
    from objectives.pretrain import build, load_objective, recall

    job = execution.pretrain_job(pretraining, folder, "cpu")
    objective = build(job, pictures)
    recall(objective, job, pictures, _trained_on(folder))
    load_objective(objective, folder / TRAINED)
    objective.eval()
    objective.begin_step(pretraining.seed, 0)
    index = torch.linspace(0, len(pictures) - 1, rows).long()
    with torch.no_grad():
        parts = objective(pictures.squares(index, objective.view), pictures.labels[index], index, mode="tensor")
        columns = _columns(objective, parts)
    return _grid(columns, pretraining.label, objective.geometry.input_size)


def _trained_on(folder: Path) -> str:
    """The device that a backbone was trained on; the processor where it does not say."""
    try:
        return str(json.loads((folder / "backbone.json").read_text())["environment"]["hardware"]["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return "cpu"


def _columns(objective, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named columns of pictures in [0, 1], each (B, 3, H, W)."""
    import torch
    from torch.nn.functional import normalize

    from objectives.loss import Cosine
    from objectives.patches import unpatchify

    def unit(images: Tensor) -> Tensor:
        return images * objective.std + objective.mean

    if objective.corruption.several:
        return _views(objective, parts)
    patch, grid = objective.geometry.stride, objective.geometry.grid

    def enlarged(square: Tensor) -> Tensor:
        return square.repeat_interleave(patch, -2).repeat_interleave(patch, -1)

    clean, seen, mask = unit(parts["clean"]), unit(parts["corrupted"]), parts["mask"]
    if mask is not None:
        where = enlarged(mask.view(-1, 1, grid, grid))
        seen = torch.where(where, torch.full_like(seen, 0.5), seen)
    columns = {"original": clean, "student sees": seen}
    target, prediction, raw = parts["target"], parts["prediction"], parts["raw"]
    count = grid**2
    if objective.teacher.discrete and target.shape == (len(clean), count):
        columns |= _decoded(objective, target, prediction[:, :count].argmax(-1), enlarged)
        if mask is not None and "prediction (decoded)" in columns:
            columns["completed"] = torch.where(where, columns["prediction (decoded)"], clean)
        return columns
    if target.ndim != 3:
        return columns
    if hasattr(objective.normalisation, "undo") and target.shape[-1] == patch * patch * 3:
        whole = raw[:, -count:]  # a zoomed view's tokens come last
        for name, tokens in (("target", whole), ("prediction", objective.normalisation.undo(prediction, whole))):
            picture = unpatchify(tokens, patch)
            columns[name] = picture if objective.teacher.unit else unit(picture)
        if mask is not None and clean.shape == columns["prediction"].shape:
            columns["completed"] = torch.where(where, columns["prediction"], clean)
        return columns
    target, prediction = target[:, -count:].float(), prediction[:, -count:].float()  # a summary token comes first
    if isinstance(objective.loss, Cosine):  # which leaves the lengths free: only directions can be compared
        target, prediction = normalize(target, dim=-1), normalize(prediction, dim=-1)
    basis = torch.pca_lowrank(target.flatten(0, 1), q=3, center=True, niter=4)[2]
    centre = target.flatten(0, 1).mean(0)
    range_: tuple[Tensor, Tensor] | None = None
    for name, tokens in (("target (PCA)", target), ("prediction (PCA)", prediction)):
        colour = (tokens - centre) @ basis
        if range_ is None:
            range_ = colour.flatten(0, 1).quantile(0.02, 0), colour.flatten(0, 1).quantile(0.98, 0)
        low, high = range_
        columns[name] = enlarged(((colour - low) / (high - low)).view(-1, grid, grid, 3).permute(0, 3, 1, 2))
    return columns


def _decoded(
    objective, target: Tensor, prediction: Tensor, enlarged: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Ids (B, L) as the pictures that the tokenizer decodes them to, or where it decodes to none a colour per code."""
    grid, columns = objective.geometry.grid, {}
    colours = _colours(objective.teacher)
    for name, ids in (("target", target), ("prediction", prediction)):
        picture = objective.teacher.picture(ids)
        if picture is not None:
            columns[f"{name} (decoded)"] = picture * objective.std + objective.mean
        else:
            columns[f"{name} (codes)"] = enlarged(colours[ids].view(-1, grid, grid, 3).permute(0, 3, 1, 2))
    return columns


def colour_of(number: int) -> tuple[float, float, float]:
    """R, G, B in [0, 1] for a code or a class: neighbours in number look different."""
    return hsv_to_rgb(number * TURN % 1, 0.5 + 0.5 * (number % 2), 1 - 0.25 * (number % 3))


def _colours(tokenizer) -> Tensor:
    """A colour for each code (K, 3) in [0, 1]: alike where the codes are, or all round the circle of hues."""
    import torch

    book = getattr(tokenizer, "codebook", None)
    if book is None:
        return torch.tensor([colour_of(number) for number in range(tokenizer.codes)])
    centred = (book - book.mean(0)).detach().float()
    places = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:3].t()
    return places.argsort(0).argsort(0) / max(1, len(book) - 1)  # ranks: every shade is used alike


def _views(objective, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The picture, the crops that the student and its moving average compare, and the first small crop."""
    from objectives.objective import resize

    size = objective.geometry.input_size
    first, second = parts["corrupted"].chunk(2)
    columns = {"original": resize(parts["clean"], size), "view 1": first, "view 2": second}
    if parts["local"] is not None:
        columns["small crop"] = resize(parts["local"][: len(first)], size)
    return {name: pictures * objective.std + objective.mean for name, pictures in columns.items()}


def _grid(columns: dict[str, Tensor], title: str, size: int) -> Image.Image:
    """A column each, a picture a row; all are shown as large as the student's, ``size`` pixels."""
    side, rows = size * SCALE, len(next(iter(columns.values())))
    sheet = Image.new("RGB", (len(columns) * (side + GAP) + GAP, rows * (side + GAP) + GAP + 16), "white")
    draw = ImageDraw.Draw(sheet)
    for c, (name, pictures) in enumerate(columns.items()):
        left = GAP + c * (side + GAP)
        draw.text((left, 2), f"{title}: {name}" if c == 0 else name, fill="black")
        for r, picture in enumerate(pictures):
            array = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            tile = Image.fromarray(array).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, 16 + GAP + r * (side + GAP)))
    return sheet

"""Contact sheets: a suite's pictures with their ground truth, and an objective at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from benchmarks.errors import RequestError
from benchmarks.execute import Execution, set_threads
from benchmarks.plan import Pretraining, resolve
from benchmarks.progress import Reporter
from benchmarks.suite import Suite
from leaderboard.page import PICTURE
from objectives import recipe as recipes

if TYPE_CHECKING:
    from torch import Tensor

SCALE, GAP, ROWS = 2, 4, 8  # screen pixels per picture pixel, gap in pixels, pictures a sheet


def data(suite: Suite, root: Path, output: Path) -> Path:
    """The suite's pictures with class, mask, joints, depth and boxes, read from the files themselves."""
    if not suite.rendered:
        raise RequestError(f"suite {suite.name!r}: a sheet of the data is drawn for rendered suites; try --objective")
    from benchmarks.scenes.sheet import contact_sheet

    path = output if output.suffix == ".png" else output / f"{suite.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(root).save(path)
    return path


def objectives(
    names: Sequence[str], suite: Suite, root: Path, runs: Path, seed: int, budget: str, output: Path,
    reporter: Reporter,
) -> list[Path]:
    """Sheets of original, student's view, target and prediction: a file each, or all in one where a .png is named."""
    sheets = {}
    for name in names:
        pretraining = resolve(recipes.get(name), suite, budget, ())
        if not pretraining.recipe.trains:
            raise RequestError(f"{name} does not train: there is nothing to show")
        sheets[name] = objective_sheet(pretraining, root, runs, seed, reporter)
    paths = {output: _side_by_side(list(sheets.values()))} if output.suffix == ".png" else {
        output / f"{name}.png": sheet for name, sheet in sheets.items()
    }
    for path, sheet in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    return list(paths)


def beside(
    names: Sequence[str], suite: Suite, root: Path, runs: Path, seed: int, budget: str, reporter: Reporter
) -> list[Path]:
    """A small sheet of each objective beside its backbone (``pretrain/views.webp``), where the leaderboard shows it."""
    paths = []
    for name in names:
        pretraining = replace(resolve(recipes.get(name), suite, budget, ()), seed=seed)
        if not pretraining.recipe.trains:
            continue  # nothing to show
        sheet = objective_sheet(pretraining, root, runs, seed, reporter, rows=4)
        paths.append(runs / pretraining.folder / "pretrain" / f"{PICTURE}.webp")
        sheet.save(paths[-1], quality=80, method=6)
    return paths


def _side_by_side(sheets: Sequence[Image.Image]) -> Image.Image:
    joined = Image.new("RGB", (sum(s.width for s in sheets), max(s.height for s in sheets)), "white")
    left = 0
    for sheet in sheets:
        joined.paste(sheet, (left, 0))
        left += sheet.width
    return joined


def objective_sheet(
    pretraining: Pretraining, root: Path, runs: Path, seed: int, reporter: Reporter, rows: int = ROWS
) -> Image.Image:
    """Trains the objective's few missing parts never: an untrained objective is refused."""
    import torch

    set_threads()
    execution = Execution(runs, root, reporter=reporter)
    pictures = execution.pictures(pretraining)
    folder = runs / pretraining.folder / "pretrain"
    trained = folder / "objective.safetensors"
    if not trained.is_file():
        raise RequestError(
            f"no trained {pretraining.label} under {runs}; first: bench run --objective {pretraining.recipe.name} "
            f"--suite {pretraining.suite.name} --budget {pretraining.budget}"
        )
    from objectives.pretrain import build, load_objective, prepare

    job = execution.pretrain_job(pretraining, folder, "cpu")
    objective = build(job, pictures)
    prepare(objective, job, pictures)
    load_objective(objective, trained)
    objective.eval()
    objective.begin_step(seed, 0)
    index = torch.linspace(0, len(pictures) - 1, rows).long()
    with torch.no_grad():
        parts = objective(pictures.squares(index, objective.view), pictures.labels[index], index, mode="tensor")
        columns = _columns(objective, parts)
    return _grid(columns, pretraining.label, objective.geometry.input_size)


def _columns(objective, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named columns of pictures in [0, 1], each (B, 3, H, W)."""
    import torch

    from objectives.patches import unpatchify

    def shown(images: Tensor) -> Tensor:
        return images * objective.std + objective.mean

    if objective.corruption.several:
        return _views(objective, parts)
    patch, grid = objective.geometry.stride, objective.geometry.grid

    def enlarged(square: Tensor) -> Tensor:
        return square.repeat_interleave(patch, -2).repeat_interleave(patch, -1)

    clean, seen, mask = shown(parts["clean"]), shown(parts["corrupted"]), parts["mask"]
    if mask is not None:
        where = enlarged(mask.view(-1, 1, grid, grid))
        seen = torch.where(where, torch.full_like(seen, 0.5), seen)
    columns = {"original": clean, "student sees": seen}
    target, prediction, raw = parts["target"], parts["prediction"], parts["raw"]
    if target.ndim != 3:
        return columns
    count = grid**2
    if hasattr(objective.normalisation, "undo") and target.shape[-1] == patch * patch * 3:
        whole = raw[:, -count:]  # a zoomed view's tokens come last
        for name, tokens in (("target", whole), ("prediction", objective.normalisation.undo(prediction, whole))):
            picture = unpatchify(tokens, patch)
            columns[name] = picture if objective.teacher.unit else shown(picture)
        if mask is not None and clean.shape == columns["prediction"].shape:
            columns["completed"] = torch.where(where, columns["prediction"], clean)
        return columns
    target, prediction = target[:, -count:].float(), prediction[:, -count:].float()  # a summary token comes first
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

"""Figures of analyses in the form of Xie et al. (CVPR 2023): a dot a head against the layer, and CKA heat maps.

PNG and SVG. Colours are those of Okabe & Ito ("Color Universal Design", 2008) and cividis, both readable without
colour vision; in grey, lines also differ by marker and dash, and cividis rises evenly in lightness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.analyze import cka_between, comparable
from leaderboard.analyses import LAYERS, Studied, curves, studied
from leaderboard.records import Record

# Okabe & Ito's, without the yellow that vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DOT, MEAN = "#56B4E9", "#000000"  # far apart in grey
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
COLUMNS = 5  # panels a row
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "bench",
         "svg.fonttype": "none"}
HEADS = {
    "distance": ("attention-distance", "averaged attention distance (px)"),
    "entropy": ("attention-entropy", "attention entropy"),
    "kl": ("head-kl", "KL to other heads"),
}
FEATURES = {
    "effective_rank": "effective rank / width", "within": "variance within pictures (share)",
    "high_frequency_share": "high frequencies (share of power)", "variance": "variance of tokens (log)",
}


def draw(analyses: Sequence[Record], folder: Path) -> list[Path]:
    """Every figure that applies, as PNG and SVG; the seeds of a row share a panel.

    Args:
        analyses: as of :func:`benchmarks.analyze.analyze`.

    Returns:
        The files written: attention-distance, attention-entropy, head-kl (backbones with attention), features, cka,
        and cka-between (a reference, the supervised row if there is one, else the first, against the others whose
        backbones saw the same pictures; the mean over common seeds).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = studied(analyses)
    labels = _labels([(row.name, row.budget, row.backbone) for row in rows])
    attentive = [(label, row) for label, row in zip(labels, rows, strict=True) if any(x["heads"] for x in row.layers)]
    with mpl.rc_context(STYLE):
        figures = {}
        if attentive:
            unit = attentive[0][1].records[0].config["settings"]["convention"]["entropy"]
            for key, (name, title) in HEADS.items():
                figures[name] = _heads(attentive, key, title + (f" ({unit})" if key != "distance" else ""))
        figures["features"] = _features(list(zip(labels, rows, strict=True)))
        own = [(label, "layer", "layer", row.cka) for label, row in zip(labels, rows, strict=True)]
        figures["cka"] = _heat_maps(own, "CKA between the layers of a backbone")
        reference = next((row for row in rows if row.objective == "supervised"), rows[0])
        between = []
        for label, row in zip(labels, rows, strict=True):
            matrices = [] if row is reference else _between(row, reference)
            if matrices:
                x = f"layer of {labels[rows.index(reference)]}"
                between.append((label, x, "layer", np.array(matrices, dtype=float).mean(0)))
        if between:
            figures["cka-between"] = _heat_maps(between, f"CKA with the layers of {between[0][1][9:]}")
        return [path for name, figure in figures.items() for path in _save(figure, folder / name)]


def draw_curves(records: Sequence[Record], kind: str, folder: Path) -> list[Path]:
    """A panel a task: the score by layer (``layers``) or by blocks kept (``cut``), a line a row, as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    found = curves(records, kind)
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(found), 3.2, 2.7)
        for axis, (task, lines) in zip(axes, found.items(), strict=True):
            labels = _labels([(line.name, line.budget, "") for line in lines])
            for i, (label, line) in enumerate(zip(labels, lines, strict=True)):
                places = [int(name) for name in line.layers]
                means = [score.mean for score in line.scores]
                axis.plot(places, means, label=label, **_style(i))
                if all(score.ci95 for score in line.scores):
                    ends = [score.ci95 or (score.mean, score.mean) for score in line.scores]
                    axis.errorbar(places, means, [[m - e[0] for m, e in zip(means, ends, strict=True)],
                                                  [e[1] - m for m, e in zip(means, ends, strict=True)]],
                                  fmt="none", ecolor=COLOURS[i % len(COLOURS)], elinewidth=0.8, capsize=2)
            first = lines[0]
            unit = f" ({first.unit})" if first.unit else ""
            better = "higher" if first.higher_is_better else "lower"
            axis.set(title=task, ylabel=f"{first.metric}{unit}, {better} is better",
                     xlabel="frozen, from layer" if kind == LAYERS else "blocks kept, fine-tuned")
            axis.set_xticks(sorted({int(name) for line in lines for name in line.layers}))
            axis.grid(color="0.9", lw=0.6)
        _legend(figure, axes)
        name = "layer-transfer" if kind == LAYERS else "layers-dropped"
        return _save(figure, folder / name)


def _labels(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """The rows' names, with budget and backbone where the names alone do not tell them apart."""
    names = [name for name, *_ in rows]
    if len(set(names)) == len(names):
        return names
    return [", ".join(part for part in row if part) for row in rows]


def _between(row: Studied, reference: Studied) -> list[list[list[float | None]]]:
    pairs = [(a, b) for a in row.records for b in reference.records if a.seed == b.seed and comparable(a, b)]
    return [cka_between(a, b) for a, b in pairs]


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ms": 4, "lw": 1.2,
            "ls": DASHES[i % len(DASHES)]}


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One for all panels, below them."""
    known = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=min(len(known), COLUMNS),
                  frameon=False)


def _save(figure: Figure, path: Path) -> list[Path]:
    FigureCanvasAgg(figure)
    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    figure.savefig(paths[0], dpi=150, bbox_inches="tight")
    figure.savefig(paths[1], bbox_inches="tight", metadata={"Date": None})
    return paths


def _panels(count: int, width: float, height: float, **more: Any) -> tuple[Figure, list[Any]]:
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more).flatten()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def _layers(axis: Any, names: Sequence[str], which: str = "x") -> None:
    """Ticks at every layer, named where there is room."""
    step = math.ceil(len(names) / 8)
    places = list(range(1, len(names) + 1))[::step]
    getattr(axis, f"set_{which}ticks")(places, [names[i - 1] for i in places])


def _heads(rows: Sequence[tuple[str, Studied]], key: str, title: str) -> Figure:
    figure, axes = _panels(len(rows), 2.5, 2.5, sharey=True)
    for axis, (label, row) in zip(axes, rows, strict=True):
        layers = row.layers
        means = []
        for i, layer in enumerate(layers, 1):
            values = [v for v in (layer["heads"] or {}).get(key, ()) if v is not None]
            axis.scatter([i] * len(values), values, s=20, color=DOT, linewidths=0, zorder=2)
            means.append(sum(values) / len(values) if values else math.nan)
        places = range(1, len(layers) + 1)
        axis.plot(places, means, color=MEAN, lw=1.2, zorder=3, label="mean of the heads")
        if key != "kl":
            even = [layer["heads"][f"uniform_{key}"] if layer["heads"] else math.nan for layer in layers]
            axis.plot(places, even, color="0.45", lw=1, ls=":", zorder=1, label="evenly spread")
        axis.set(title=label, xlabel="layer")
        _layers(axis, [layer["name"] for layer in layers])
        axis.grid(axis="y", color="0.9", lw=0.6, zorder=0)
    if key == "kl":
        axes[0].set_ylim(bottom=0)  # after all panels, which share it
    for axis in axes[::COLUMNS]:
        axis.set_ylabel(title)
    _legend(figure, axes)
    return figure


def _features(rows: Sequence[tuple[str, Studied]]) -> Figure:
    figure, axes = _panels(len(FEATURES), 2.9, 2.6)
    for axis, (key, title) in zip(axes, FEATURES.items(), strict=True):
        for i, (label, row) in enumerate(rows):
            layers = row.layers
            values = [math.nan if layer[key] is None else layer[key] for layer in layers]
            if key == "effective_rank":
                values = [v / layer["width"] for v, layer in zip(values, layers, strict=True)]
            depth = [(n + 1) / len(layers) for n in range(len(layers))]
            axis.plot(depth, values, label=label, **_style(i))
        axis.set(title=title, xlabel="depth (share of layers)")
        if key == "variance":
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
        else:
            axis.set_ylim(0, None)
        axis.grid(color="0.9", lw=0.6)
    _legend(figure, axes)
    return figure


def _heat_maps(maps: Sequence[tuple[str, str, str, Any]], title: str) -> Figure:
    figure, axes = _panels(len(maps), 2.4, 2.5)
    for axis, (label, x, y, values) in zip(axes, maps, strict=True):
        array = np.array(values, dtype=float)
        shown = axis.imshow(
            array, origin="lower", cmap="cividis", vmin=0, vmax=1, interpolation="nearest",
            extent=(0.5, array.shape[1] + 0.5, 0.5, array.shape[0] + 0.5), aspect="auto",
        )
        axis.set(title=label, xlabel=x, ylabel=y)
        for which, count in (("x", array.shape[1]), ("y", array.shape[0])):
            _layers(axis, [str(i) for i in range(1, count + 1)], which)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="CKA")
    figure.suptitle(title)
    return figure

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

from benchmarks.analyze import cka_between, comparable

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


def draw(analyses: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Every figure that applies, as PNG and SVG.

    Args:
        analyses: as of :func:`benchmarks.analyze.analyze`; panels stand in their order.

    Returns:
        The files written: attention-distance, attention-entropy, head-kl (backbones with attention), features, cka,
        and cka-between (a reference, the supervised backbone if there is one, else the first, against the others that
        saw the same pictures).
    """
    folder.mkdir(parents=True, exist_ok=True)
    attentive = [a for a in analyses if any(layer["heads"] for layer in a["layers"])]
    with mpl.rc_context(STYLE):
        figures = {}
        if attentive:
            for key, (name, title) in HEADS.items():
                unit = f" ({attentive[0]['settings']['convention']['entropy']})" if key != "distance" else ""
                figures[name] = _heads(attentive, key, title + unit)
        figures["features"] = _features(analyses)
        own = [(a["label"], "layer", "layer", a["cka"]) for a in analyses]
        figures["cka"] = _heat_maps(own, "CKA between the layers of a backbone")
        reference = next((a for a in analyses if a["objective"] == "supervised"), analyses[0])
        others = [a for a in analyses if a is not reference and comparable(a, reference)]
        if others:
            x = f"layer of {reference['label']}"
            between = [(a["label"], x, "layer", cka_between(a, reference)) for a in others]
            figures["cka-between"] = _heat_maps(between, f"CKA with the layers of {reference['label']}")
        return [path for name, figure in figures.items() for path in _save(figure, folder / name)]


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


def _heads(analyses: Sequence[dict[str, Any]], key: str, title: str) -> Figure:
    figure, axes = _panels(len(analyses), 2.5, 2.5, sharey=True)
    for axis, analysis in zip(axes, analyses, strict=True):
        layers = analysis["layers"]
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
        axis.set(title=analysis["label"], xlabel="layer")
        _layers(axis, [layer["name"] for layer in layers])
        axis.grid(axis="y", color="0.9", lw=0.6, zorder=0)
    if key == "kl":
        axes[0].set_ylim(bottom=0)  # after all panels, which share it
    for axis in axes[::COLUMNS]:
        axis.set_ylabel(title)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _features(analyses: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _panels(len(FEATURES), 2.9, 2.6)
    for axis, (key, title) in zip(axes, FEATURES.items(), strict=True):
        for i, analysis in enumerate(analyses):
            layers = analysis["layers"]
            values = [math.nan if layer[key] is None else layer[key] for layer in layers]
            if key == "effective_rank":
                values = [v / layer["width"] for v, layer in zip(values, layers, strict=True)]
            depth = [(n + 1) / len(layers) for n in range(len(layers))]
            axis.plot(
                depth, values, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], ms=4, lw=1.2,
                ls=DASHES[i // len(COLOURS) % len(DASHES)], label=analysis["label"],
            )
        axis.set(title=title, xlabel="depth (share of layers)")
        if key == "variance":
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, None)
        axis.grid(color="0.9", lw=0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), COLUMNS), frameon=False)
    return figure


def _heat_maps(maps: Sequence[tuple[str, str, str, list[list[float | None]]]], title: str) -> Figure:
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

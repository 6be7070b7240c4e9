"""What the backbones learned, as a part of the HTML page: numbers, correlations with the tasks, figures as inline SVG.

Figures are small multiples in the form of Xie et al. (CVPR 2023): a dot a head against the layer. Marks differ by shape
and dash, never by hue alone, and follow the page's light and dark; heat maps are in cividis, which rises evenly in
lightness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .analyses import (
    HEADINGS,
    LAYERS,
    Between,
    Curve,
    Studied,
    by_budget,
    convention,
    correlate,
    curves,
    studied,
    worded,
)
from .details import CUT
from .records import Record

# Nine even steps of cividis (Nuñez, Anderton & Renslow, PLoS ONE 2018), from 0 to 1.
CIVIDIS = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 150, 110, 46, 20, 30  # pixels: of a panel, and around it
_HEADS = {"distance": "attention distance (px)", "entropy": "attention entropy", "kl": "KL to other heads"}

_FEATURES = {
    "effective_rank": "effective rank (share of the width)", "within": "variance within pictures (share)",
    "variance": "variance of the tokens (log10)", "high_frequency_share": "high frequencies (share of power)",
    "relative_log_amplitude": "log amplitude of the highest frequency relative to frequency 0",
}


def section(analyses: Sequence[Record], records: Iterable[Record], suite: str | None) -> str:
    """The part of the page for one suite, as HTML; empty where nothing of it was analysed."""
    from jinja2 import Environment, StrictUndefined

    mine = [record for record in analyses if record.suite == suite]
    rows = studied(mine)
    found = correlate(mine, records, suite or "")
    transfer, dropped = curves(mine, LAYERS), curves(mine, CUT)
    if not rows and not transfer and not dropped:
        return ""
    drawn = [(title, heads(rows, key, title)) for key, title in _HEADS.items()]
    drawn += [(title, features(rows, key, title)) for key, title in _FEATURES.items()]
    drawn.append(("CKA between the layers of a backbone", heat_maps(rows)))
    drawn.append(("CKA with the layers of another backbone, to the right", between(rows)))
    drawn += [(f"{task}, frozen, from each layer", lines(own, "layer")) for task, own in transfer.items()]
    drawn += [(f"{task}, fine-tuned, last blocks dropped", lines(own, "blocks kept")) for task, own in dropped.items()]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE)
    return template.render(
        headings=list(HEADINGS.values()),
        rows=[(row, [worded(row.summary.get(name)) for name in HEADINGS]) for row in rows],
        convention=convention(rows[0].records[0]) if rows else "",
        notes=[f"{row.name}: {row.note}" for row in rows if row.note],
        correlations=by_budget(found), figures=[part for part in drawn if part[1]],
    )


def heads(rows: Sequence[Studied], key: str, title: str) -> str:
    """A panel a row: a dot for each head of each seed against the layer, the line of their means, and that of evenly
    spread attention dashed."""
    shown = [row for row in rows if any(layer["heads"] for layer in row.layers)]
    values = [[[v for v in (x["heads"] or {}).get(key, ()) if v is not None] for x in row.layers] for row in shown]
    even = [
        [x["heads"][f"uniform_{key}"] if x["heads"] and key != "kl" else None for x in row.layers] for row in shown
    ]
    return _dots(shown, values, even, f"{title} by layer, a dot a head", 0.0 if key == "kl" else None)


def features(rows: Sequence[Studied], key: str, title: str) -> str:
    """A panel a row: a dot a seed against the layer, and the line of their means. The rank is shown as a share of the
    layer's width, the variance as its logarithm."""
    values: list[list[list[float]]] = []
    for row in rows:
        seeds = [(record.details or {})["layers"] for record in row.records]
        values.append([
            [v for layers in seeds if (v := _feature(layers[n], key)) is not None] for n in range(len(row.layers))
        ])
    shown = [i for i, own in enumerate(values) if any(own)]
    kept = [values[i] for i in shown]
    return _dots([rows[i] for i in shown], kept, [[None] * len(own) for own in kept], f"{title} by layer, a dot a seed")


def _feature(layer: Mapping[str, Any], key: str) -> float | None:
    value = layer[key]
    if value is None:
        return None
    if key == "effective_rank":
        return value / layer["width"] if layer["width"] else None
    if key == "variance":
        return math.log10(value) if value > 0 else None
    return value


def _dots(
    rows: Sequence[Studied], values: Sequence[Sequence[Sequence[float]]], even: Sequence[Sequence[float | None]],
    label: str, low: float | None = None,
) -> str:
    """A panel a row of dots (row, layer, dots), with the line of their means and, dashed, that of ``even``."""
    known = [v for row in values for layer in row for v in layer] + [v for row in even for v in row if v is not None]
    if not known:
        return ""
    low, high = min(known) if low is None else low, max(known)
    parts = []
    for i, (row, of_layer, of_even) in enumerate(zip(rows, values, even, strict=True)):
        panel = _Panel(i, len(of_layer), low, high)
        parts.append(panel.frame(row.name, row.layers[0]["name"], row.layers[-1]["name"], first=i == 0))
        parts += [
            f'<circle class="bar" cx="{panel.x(n)}" cy="{panel.y(v)}" r="3"/>'
            for n, layer in enumerate(of_layer) for v in layer
        ]
        means = [(n, sum(layer) / len(layer)) for n, layer in enumerate(of_layer) if layer]
        parts.append(f'<path class="items" fill="none" d="{panel.path(means)}"/>')
        spread = [(n, v) for n, v in enumerate(of_even) if v is not None]
        if spread:
            parts.append(f'<path class="items" fill="none" stroke-dasharray="2 3" d="{panel.path(spread)}"/>')
    return _svg(len(rows), label, parts)


def heat_maps(rows: Sequence[Studied]) -> str:
    """A panel a row: CKA of every two layers, 0 dark to 1 light, the first layer at the lower left."""
    names = [[layer["name"] for layer in row.layers] for row in rows]
    return _heat_maps([(row.name, row.cka, own, own) for row, own in zip(rows, names, strict=True)],
                      "CKA between layers")


def between(rows: Sequence[Studied]) -> str:
    """A panel a row: CKA of its layers (upwards) with those of the row that it was compared with (to the right)."""
    shown = [row for row in rows if row.between is not None]
    panels = []
    for row in shown:
        told = row.between or Between("", ())
        others = [str(n) for n in range(1, len(told.cka[0]) + 1)]
        panels.append((f"{row.name} · {told.objective}", told.cka, [layer["name"] for layer in row.layers], others))
    return _heat_maps(panels, "CKA between backbones")


def _heat_maps(
    panels: Sequence[tuple[str, Sequence[Sequence[float | None]], Sequence[str], Sequence[str]]], label: str
) -> str:
    """Panels of a name, a matrix, the names of its rows and those of its columns."""
    parts = []
    for i, (name, cka, own, other) in enumerate(panels):
        panel = _Panel(i, len(other), 0.0, 1.0)
        wide, tall = WIDTH / len(other), HEIGHT / len(own)
        for a, line in enumerate(cka):
            for b, value in enumerate(line):
                x, y = panel.left + b * wide, TOP + HEIGHT - (a + 1) * tall
                what = "no value" if value is None else f"{value:.2f}"
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide + 0.3:.1f}" height="{tall + 0.3:.1f}" '
                    f'fill="{cividis(value)}"><title>{_text(f"{name}, layers {own[a]} and {other[b]}: {what}")}'
                    "</title></rect>"
                )
        parts.append(panel.frame(name, other[0], other[-1], first=i == 0, values=[own[0], own[-1]]))
    return _svg(len(panels), label, parts) if panels else ""


def lines(found: Sequence[Curve], what: str) -> str:
    """A panel a row: mean and 95 % interval over seeds by layer, all rows on one scale."""
    ends = [end for line in found for score in line.scores for end in (score.mean, *(score.ci95 or ()))]
    low, high = min(ends), max(ends)
    parts = []
    for i, line in enumerate(found):
        panel = _Panel(i, len(line.scores), low, high)
        parts.append(panel.frame(line.name, line.layers[0], line.layers[-1], first=i == 0))
        for n, score in enumerate(line.scores):
            if score.ci95:
                a, b = (panel.y(end) for end in score.ci95)
                parts.append(f'<path class="items" d="M{panel.x(n)} {a}V{b}"/>')
            label = f"{line.name}, {what} {line.layers[n]}: {worded(score)} {line.unit}"
            parts.append(f'<circle class="on" cx="{panel.x(n)}" cy="{panel.y(score.mean)}" r="3">'
                         f"<title>{_text(label)}</title></circle>")
        means = [(n, score.mean) for n, score in enumerate(line.scores)]
        parts.append(f'<path class="front" fill="none" d="{panel.path(means)}"/>')
    metric = f"{found[0].metric} ({found[0].unit})" if found[0].unit else found[0].metric
    return _svg(len(found), f"{found[0].task} {metric} by {what}", parts)


def cividis(value: float | None) -> str:
    """The colour of a share from 0 to 1 (what lies outside, at the end); grey for nothing."""
    if value is None:
        return "#808080"
    place = min(1.0, max(0.0, value)) * (len(CIVIDIS) - 1)
    low = min(int(place), len(CIVIDIS) - 2)
    first, second = ([int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in CIVIDIS[low : low + 2])
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(first, second, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


class _Panel:
    """The ``number``-th panel of a figure: layers to the right, values upwards."""

    def __init__(self, number: int, layers: int, low: float, high: float) -> None:
        self.left = LEFT + number * (WIDTH + 14)
        self.layers, self.low, self.high = layers, low, high

    def x(self, layer: int) -> str:
        return f"{self.left + (layer + 0.5) / self.layers * WIDTH:.1f}"

    def y(self, value: float) -> str:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return f"{TOP + 5 + (1 - share) * (HEIGHT - 10):.1f}"

    def path(self, points: Sequence[tuple[int, float]]) -> str:
        return "M" + "L".join(f"{self.x(n)} {self.y(v)}" for n, v in points) if points else ""

    def frame(
        self, title: str, first_layer: str, last_layer: str, first: bool, values: Sequence[str] = ()
    ) -> str:
        """With title and ends of the axes; those of the values, or ``values`` in words, only at the first panel."""
        low, high = values or (f"{self.low:.3g}", f"{self.high:.3g}")
        floor = TOP + HEIGHT
        short = title if len(title) <= 24 else title[:23] + "…"
        parts = [
            f'<rect class="frame" x="{self.left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>',
            f'<text x="{self.left}" y="{TOP - 6}">{_text(short)}<title>{_text(title)}</title></text>',
            f'<text x="{self.left}" y="{floor + 13}">{_text(first_layer)}</text>',
            f'<text x="{self.left + WIDTH}" y="{floor + 13}" text-anchor="end">{_text(last_layer)}</text>',
            f'<text x="{self.left + WIDTH / 2}" y="{floor + 13}" text-anchor="middle">layer</text>',
        ]
        if first:
            parts += [
                f'<text x="{LEFT - 4}" y="{floor}" text-anchor="end">{_text(low)}</text>',
                f'<text x="{LEFT - 4}" y="{TOP + 10}" text-anchor="end">{_text(high)}</text>',
            ]
        return "".join(parts)


def _svg(panels: int, label: str, parts: Sequence[str]) -> str:
    width, height = LEFT + panels * (WIDTH + 14), TOP + HEIGHT + BOTTOM
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{_text(label)}">'
    return "".join([head, *parts, "</svg>"])


def _text(text: str) -> str:
    return escape(text, quote=True)


_TEMPLATE = """\
<h3>What the backbones learned</h3>
{%- if rows %}
<div class="wide" tabindex="0" role="region" aria-label="Analyses"><table>
<thead><tr><th scope="col">objective</th><th scope="col">budget</th><th scope="col">seeds</th>
{%- for text in headings %}<th scope="col" class="number">{{ text }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row, texts in rows %}
<tr><th scope="row">{{ row.name }}</th><td>{{ row.budget }}</td><td class="number">{{ row.records | length }}</td>
{%- for text in texts %}<td class="number">{{ text }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
<p class="note">Mean ± half width of the 95 % interval over seeds. {{ convention }}. Distances also as a share of \
that of evenly spread attention.</p>
{%- for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{%- endif %}
{%- for table in correlations %}
<div class="wide" tabindex="0" role="region" aria-label="Correlations"><table>
<thead><tr><th scope="col">Spearman ρ (p), budget {{ table.budget }}</th>
{%- for column in table.columns %}<th scope="col" class="number">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for heading, texts in table.rows %}
<tr><th scope="row">{{ heading }}</th>{% for text in texts %}<td class="number">{{ text }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
<p class="note">Over {{ table.objectives | join(', ') }}; above 0 where more of the number goes with a better score. \
p by permutation, not corrected for the number of pairs: some are small by chance.</p>
{%- endfor %}
{%- for title, svg in figures %}
<h4>{{ title }}</h4>
<div class="wide" tabindex="0" role="region" aria-label="{{ title }}"><figure>{{ svg | safe }}</figure></div>
{%- endfor %}
{%- if figures %}
<p class="note">A dot a head (all seeds) or a seed, a line through the means, dashed: evenly spread \
attention. CKA: 0 dark, 1 \
light. By layer: mean and 95 % interval over seeds.</p>
{%- endif %}
"""

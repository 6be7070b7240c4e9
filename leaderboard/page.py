"""The leaderboard as one HTML file: nothing to load, light or dark as the reader's system is, every name escaped.

Without scripts the page shows everything. The one script it holds sorts by any heading, hides suites, tasks and
protocols, and folds the runs of each row away; the page's own security policy allows that script by its hash and
nothing else, so a name from a record could not run even if escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import figures
from .learned import section
from .published import HEADS, Beside, legend, lines
from .records import Record
from .table import LEFT_HEADS, RIGHT_HEADS, Row, Table

_STYLE = """\
:root { --ink: #1c1f23; --quiet: #59616b; --paper: #fff; --line: #d5d9de; --stripe: #f4f6f8; --mark: #0b63b5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --quiet: #a0a8b1; --paper: #15181b; --line: #363c43; --stripe: #1d2125; --mark: #6db3f2; }
}
* { box-sizing: border-box; }
body { margin: 1.5rem; color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.15rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: pre-line; }
tbody:nth-child(even) > tr.main { background: var(--stripe); }
.number { text-align: right; white-space: nowrap; }
.none, .note { color: var(--quiet); }
.best { font-weight: 700; }
.second { text-decoration: underline; }
button, select, input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line); }
th button { border: 0; background: none; padding: 0; text-align: inherit; font-weight: inherit; white-space: inherit; }
th button { cursor: pointer; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: 1rem 0; }
.tools input { width: 12rem; }
.runs > td { white-space: normal; }
.run { border-left: 3px solid var(--line); padding-left: .8rem; margin: .8rem 0; max-width: 60rem; }
code, pre { font: 13px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 100%; }
svg { max-width: 100%; height: auto; font-size: 11px; fill: currentColor; }
svg .bar { fill: var(--mark); opacity: .35; }
svg .seeds { stroke: currentColor; stroke-width: 3; }
svg .items { stroke: currentColor; stroke-width: 1; }
svg .frame { fill: none; stroke: var(--line); }
svg .front { fill: none; stroke: var(--mark); stroke-width: 1.5; }
svg .on { fill: var(--mark); } svg .off { fill: none; stroke: currentColor; }
[hidden] { display: none !important; }
@media (max-width: 40rem) {
  body { margin: .6rem; font-size: 14px; }
  th, td { padding: .3rem .4rem; }
  tr.main > th { max-width: 9rem; position: sticky; left: 0; background: var(--paper); }
}
"""

_SCRIPT = """\
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.querySelector(".tools").hidden = false;
for (const button of all("tr.main > th button")) {
  const runs = document.getElementById(button.getAttribute("aria-controls"));
  const fold = (open) => { runs.hidden = !open; button.setAttribute("aria-expanded", open); };
  button.disabled = false;
  button.addEventListener("click", () => fold(runs.hidden));
  fold(false);
}
for (const button of all("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table");
    const place = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (body) => {
      const cell = body.rows[0].cells[place], text = cell.dataset.value ?? cell.textContent.trim();
      return text === "" ? null : isNaN(text) ? text : Number(text);
    };
    const bodies = [...table.tBodies].map((body, i) => [key(body), i, body]);
    bodies.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return (down ? -order : order) || i - j;
    });
    for (const [, , body] of bodies) table.append(body);
  });
}
const field = (name) => document.getElementById("filter-" + name);
const apply = () => {
  const suite = field("suite").value, task = field("task").value, protocol = field("protocol").value;
  const words = field("name").value.toLowerCase();
  for (const part of all("[data-suite]")) part.hidden = suite !== "" && part.dataset.suite !== suite;
  for (const part of all("[data-task]")) {
    part.hidden = (task !== "" && part.dataset.task !== task)
      || (protocol !== "" && part.dataset.protocol !== protocol);
  }
  for (const body of all("tbody[data-name]")) body.hidden = !body.dataset.name.toLowerCase().includes(words);
};
for (const name of ["suite", "task", "protocol", "name"]) field(name).addEventListener("input", apply);
apply();
"""

_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{{ script_hash }}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Leaderboard: {{ title }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
<h1>Leaderboard: {{ title }}</h1>
<div class="tools" hidden>
{%- for name, values in filters %}
<label>{{ name }} <select id="filter-{{ name }}"><option value="">all</option>
{%- for value in values %}<option>{{ value }}</option>{% endfor %}</select></label>
{%- endfor %}
<label>objective <input id="filter-name" type="search" placeholder="part of a name"></label>
</div>
{%- for part in parts %}
{%- set table = part.table %}
<section data-suite="{{ table.suite or '' }}">
{%- if parts | length > 1 %}
<h2>{{ table.suite }}</h2>
{%- endif %}
<div class="wide" tabindex="0" role="region" aria-label="Leaderboard {{ table.suite or '' }}">
<table>
<thead><tr>
{%- for head in left %}
<th scope="col"><button type="button">{{ head }}</button></th>
{%- endfor %}
{%- for column in table.columns %}
<th scope="col" class="number" data-task="{{ column.task }}" data-protocol="{{ column.protocol }}">\
<button type="button">{{ column.heading | join("\\n") }}</button></th>
{%- endfor %}
{%- for head in right %}
<th scope="col"><button type="button">{{ head }}</button></th>
{%- endfor %}
</tr></thead>
{%- for row, runs in part.rows %}
{%- set id = "runs-" ~ part.number ~ "-" ~ loop.index %}
<tbody data-name="{{ row.objective }}">
<tr class="main">
{%- for text in row.left %}
{%- if loop.index == 2 %}
<th scope="row"><button type="button" disabled aria-controls="{{ id }}" aria-expanded="true">{{ text }}</button></th>
{%- else %}
<td{% if loop.first %} class="number" data-value="{{ '' if row.mean_rank is none else row.mean_rank }}"{% endif %}>\
{{ text }}</td>
{%- endif %}
{%- endfor %}
{%- for column in table.columns %}
{%- set cell = row.cells[column.id] %}
<td class="number{{ classes.get(cell.place, '') }}{% if cell.status != 'ok' %} none{% endif %}" \
data-task="{{ column.task }}" data-protocol="{{ column.protocol }}" \
data-value="{{ cell.summary.mean if cell.summary else '' }}">{{ cell.text }}
{%- if cell.notes %}<sup>{{ cell.notes | join(", ") }}</sup>{% endif %}</td>
{%- endfor %}
{%- for text in row.right %}
<td{% if not loop.last %} class="number"{% endif %}{% if loop.index == 3 %} data-value="{{ '' if \
row.cost.device_hours is none else row.cost.device_hours }}"{% elif loop.index == 2 %} data-value="{{ '' if \
row.cost.pretrain_seconds is none else row.cost.pretrain_seconds }}"{% endif %}>{{ text }}</td>
{%- endfor %}
</tr>
<tr class="runs" id="{{ id }}"><td colspan="{{ left | length + table.columns | length + right | length }}">
{%- for run in runs.cells %}
<div class="run" data-task="{{ run.task }}" data-protocol="{{ run.protocol }}">
<h3>{{ run.task }}.{{ run.protocol }}, seed {{ run.seed }}: {{ run.status }}</h3>
{%- if run.reason %}<p>{{ run.reason }}</p>{% endif %}
<p>{{ run.numbers }}</p>
<p class="note">{{ run.cost }}</p>
<p><code>{{ run.command }}</code></p>
{%- if run.again %}<p><code>{{ run.again }}</code></p>{% endif %}
{%- if run.curve %}<figure>{{ run.curve | safe }}</figure>{% endif %}
</div>
{%- endfor %}
{%- for what, text in runs.texts %}
<details><summary>{{ what }}</summary><pre>{{ text }}</pre></details>
{%- endfor %}
</td></tr>
</tbody>
{%- endfor %}
</table>
</div>
<p class="note">{{ table.legend }}</p>
{%- if table.notes %}
<ol class="note">
{%- for note in table.notes %}
<li>{{ note }}</li>
{%- endfor %}
</ol>
{%- endif %}
{%- for column, bars, pareto in part.figures %}
<div data-task="{{ column.task }}" data-protocol="{{ column.protocol }}">
<h3>{{ column.heading | join(" · ") }}</h3>
<div class="figures"><figure>{{ bars | safe }}</figure>
{%- if pareto %}<figure>{{ pareto | safe }}</figure>{% endif %}</div></div>
{%- endfor %}
{%- if part.figures %}
<p class="note">Bars: thick line the 95 % interval over seeds, thin line the sampling interval over test items. \
Cost: seconds of pre-training, training and scoring of one seed; filled points are on the front.</p>
{%- endif %}
{{- part.learned | safe }}
</section>
{%- endfor %}
{%- if published is not none %}
<h2>Published numbers</h2>
{%- if published %}
<div class="wide" tabindex="0" role="region" aria-label="Published numbers"><table>
<thead><tr>{% for head in published_heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for line in published %}
<tr>{% for text in line %}<td{% if text == "UNVERIFIED" %} class="best"{% endif %}>{{ text }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- endif %}
<p class="note">{{ published_legend }}</p>
{%- endif %}
<script>{{ script | safe }}</script>
</body>
</html>
"""


class _Part(NamedTuple):
    """One suite."""

    number: int
    table: Table
    rows: list[tuple[Row, dict[str, Any]]]
    figures: list[tuple[Any, str, str]]
    learned: str  # HTML


def page(
    table: Table | Sequence[Table], published: list[Beside] | None = None, analyses: Sequence[Record] = ()
) -> str:
    """The whole file, as text.

    Args:
        table: one suite's table, or those of several suites in the order they are to be shown.
        published: published numbers to show beside ours; None leaves that part out, an empty list says there are none.
        analyses: what is known of the backbones beside their scores, as from ``read_analyses``.
    """
    from jinja2 import Environment, StrictUndefined

    tables = [table] if isinstance(table, Table) else list(table)
    columns = [column for one in tables for column in one.columns]
    filters = [
        ("suite", [one.suite for one in tables if one.suite]),
        ("task", list(dict.fromkeys(column.task for column in columns))),
        ("protocol", list(dict.fromkeys(column.protocol for column in columns))),
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE)
    return template.render(
        parts=[_part(number, one, analyses) for number, one in enumerate(tables, 1)], filters=filters,
        title=", ".join(one.suite for one in tables if one.suite) or "no records", left=LEFT_HEADS, right=RIGHT_HEADS,
        classes={1: " best", 2: " second"}, style=_STYLE, script=_SCRIPT,
        script_hash=base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
        published=None if published is None else lines(published), published_heads=HEADS,
        published_legend="" if published is None else legend(tables[0], published),
    )  # fmt: skip


def _part(number: int, table: Table, analyses: Sequence[Record]) -> _Part:
    made = [(column, figures.bars(table, column), figures.pareto(table, column)) for column in table.columns]
    learned = section(analyses, [run for row in table.rows for run in row.runs], table.suite) if analyses else ""
    rows = [(row, _runs(row)) for row in table.rows]
    return _Part(number, table, rows, [part for part in made if part[1]], learned)


def _runs(row: Row) -> dict[str, Any]:
    """A row's runs, and the texts that several of them share, each once."""
    texts: dict[tuple[str, str], list[str]] = {}
    pretraining: set[Any] = set()
    cells = []
    for run in sorted(row.runs, key=lambda run: (run.task, run.protocol, run.seed)):
        name = f"{run.task}.{run.protocol} seed {run.seed}"
        texts.setdefault(("settings", _json(run.config)), []).append(name)
        texts.setdefault(("environment", _json(run.environment)), []).append(name)
        curves = []
        if run.path is not None:
            curves.append(figures.curve(run.path.with_name("log.jsonl")))
            seed_folder = run.path.parent.parent
            if seed_folder not in pretraining:  # once a seed
                pretraining.add(seed_folder)
                curves.append(figures.curve(seed_folder / "pretrain" / "log.jsonl"))
        cells.append({
            "task": run.task, "protocol": run.protocol, "seed": run.seed, "status": run.status,
            "reason": run.reason, "numbers": _numbers(run), "cost": _cost(run), "command": run.command,
            "again": _again(run), "curve": "".join(curves),
        })  # fmt: skip
    shared = []
    for (kind, text), names in texts.items():
        shared.append((f"{kind} of {', '.join(names[:6])}{' …' if len(names) > 6 else ''}", text))
    return {"cells": cells, "texts": shared}


def _numbers(run: Record) -> str:
    return ", ".join(
        f"{name} {metric['value']:.4g} {metric['unit']}".rstrip() for name, metric in run.metrics.items()
    )


def _cost(run: Record) -> str:
    cost = run.cost
    facts = [("pictures of pre-training", cost["pretrain_images"]), ("s of pre-training", cost["pretrain_seconds"]),
             ("pictures of training", cost["train_images"]), ("s of training and scoring", cost["seconds"])]
    told = ", ".join(f"{value:,.0f} {unit}" for unit, value in facts if value is not None)
    return f"{told or 'cost unknown'} on {cost['device']}; {run.started} to {run.finished}"


def _again(run: Record) -> str:
    if run.path is None or len(run.path.parts) < 5:
        return ""
    return f"bench reproduce {'/'.join(run.path.parts[-5:-1])}"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
    except (RecursionError, ValueError, TypeError):
        return "nested too deeply to show"

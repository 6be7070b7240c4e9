"""The table as one HTML file: nothing to load, light or dark as the reader's system is, every name escaped."""

from __future__ import annotations

from .published import Beside
from .table import LEFT_HEADS, RIGHT_HEADS, Table

_TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Leaderboard: {{ table.suite or "no records" }}</title>
<style>
:root { --ink: #1c1f23; --quiet: #59616b; --paper: #fff; --line: #d5d9de; --stripe: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --quiet: #a0a8b1; --paper: #15181b; --line: #363c43; --stripe: #1d2125; }
}
body { margin: 1.5rem; color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: pre-line; }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; white-space: nowrap; }
.none, .note { color: var(--quiet); }
.best { font-weight: 700; }
.second { text-decoration: underline; }
</style>
</head>
<body>
<h1>Leaderboard: {{ table.suite or "no records" }}</h1>
<div class="wide" tabindex="0" role="region" aria-label="Leaderboard">
<table>
<thead><tr>
{%- for head in left %}
<th scope="col">{{ head }}</th>
{%- endfor %}
{%- for column in table.columns %}
<th scope="col" class="number">{{ column.heading | join("\\n") }}</th>
{%- endfor %}
{%- for head in right %}
<th scope="col">{{ head }}</th>
{%- endfor %}
</tr></thead>
<tbody>
{%- for row in table.rows %}
<tr>
{%- for text in row.left %}
{%- if loop.index == 2 %}
<th scope="row">{{ text }}</th>
{%- else %}
<td{% if loop.first %} class="number"{% endif %}>{{ text }}</td>
{%- endif %}
{%- endfor %}
{%- for cell in row.cells.values() %}
<td class="number{{ classes.get(cell.place, '') }}{% if cell.status != 'ok' %} none{% endif %}">{{ cell.text }}
{%- if cell.notes %}<sup>{{ cell.notes | join(", ") }}</sup>{% endif %}</td>
{%- endfor %}
{%- for text in row.right %}
<td{% if not loop.last %} class="number"{% endif %}>{{ text }}</td>
{%- endfor %}
</tr>
{%- endfor %}
</tbody>
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
</body>
</html>
"""


def page(table: Table, published: list[Beside] | None = None) -> str:
    """The whole file, as text; with ``published``, those numbers beside ours."""
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_TEMPLATE)
    return template.render(table=table, left=LEFT_HEADS, right=RIGHT_HEADS, classes={1: " best", 2: " second"})

"""The fixed parts of the page: style sheet, script, and the template that ``page`` fills in."""

STYLE = """\
:root {
  color-scheme: light; --ink: #1b1f24; --quiet: #57606a; --paper: #fff; --card: #f6f8fa; --line: #d0d7de;
  --mark: #0757a8; --tint: #e3eefb; --warn: #8a4600;
}
:root[data-theme="dark"] {
  color-scheme: dark; --ink: #e6e9ec; --quiet: #a3acb6; --paper: #12161b; --card: #1a2027; --line: #343c46;
  --mark: #79b8ff; --tint: #17304d; --warn: #f0b072;
}
@media (prefers-color-scheme: dark) {
  :root:not([data-theme="light"]) {
    color-scheme: dark; --ink: #e6e9ec; --quiet: #a3acb6; --paper: #12161b; --card: #1a2027; --line: #343c46;
    --mark: #79b8ff; --tint: #17304d; --warn: #f0b072;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 100rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2rem 0 .2rem; } h3 { font-size: 1.02rem; margin: 1.2rem 0 .5rem; font-weight: 500; }
h4 { font-size: .95rem; margin: 0 0 .3rem; }
.lead { max-width: 60rem; margin: 0; color: var(--quiet); }
.note, .none { color: var(--quiet); } .note { font-size: .87rem; max-width: 75rem; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem .9rem; align-items: end; margin: 1rem 0 0; padding: .7rem 0;
  border-block: 1px solid var(--line); }
.tools label { display: grid; gap: .1rem; font-size: .8rem; color: var(--quiet); }
button, select, input { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; }
.tools select, .tools input, .tools button { font-size: .93rem; padding: .3rem .5rem; min-height: 2.3rem; }
.tools button { cursor: pointer; }
.tools output { margin-left: auto; align-self: center; color: var(--quiet); font-size: .87rem; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .45rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody:last-of-type > tr:last-child > *, tbody:last-of-type > tr.main:has(+ tr[hidden]) > * { border-bottom: 0; }
thead th { vertical-align: bottom; font-weight: 600; background: var(--card); }
th button { border: 0; background: none; padding: 0; text-align: inherit; font-weight: inherit; cursor: pointer;
  border-radius: 3px; }
thead button { font-size: .87rem; white-space: nowrap; }
thead button span { display: block; font-weight: 400; color: var(--quiet); font-size: .8rem; }
th[aria-sort] button::after { content: " ▲"; font-size: .65rem; color: var(--mark); }
th[aria-sort="descending"] button::after { content: " ▼"; }
tr.main > th { font-weight: 600; background: var(--paper); position: sticky; left: 0; z-index: 1; }
tr.main > th button { overflow-wrap: break-word; min-width: 7rem; max-width: 14rem; display: flex; gap: .45em; }
tr.main > th button::before { content: "▸"; color: var(--mark); }
tr.main > th button[aria-expanded="true"]::before { content: "▾"; }
tr.main:hover > * { background: var(--card); }
.number, tr.main > td:last-child { white-space: nowrap; }
.number { text-align: right; }
td small { display: block; font-size: .78rem; color: var(--quiet); font-weight: 400; text-decoration: none; }
td.best { font-weight: 700; background: var(--tint); } tr.main:hover > td.best { background: var(--tint); }
td.second .value { text-decoration: underline; text-underline-offset: .2em; }
td.unranked .value { color: var(--warn); }
.runs > td { background: var(--card); white-space: normal; padding: 1rem; }
.inside > h4 { margin: .9rem 0 .4rem; } .inside > h4:first-child { margin-top: 0; }
.inside { position: sticky; left: 1rem; max-width: min(94rem, calc(100vw - 5rem)); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: .8rem;
  align-items: start; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  min-width: 0; }
.card p { margin: .2rem 0; overflow-wrap: anywhere; } .card.failed { border-left: 4px solid var(--warn); }
.command { display: flex; gap: .5rem; align-items: start; margin: .4rem 0; }
.command code { flex: 1; background: var(--card); padding: .3rem .5rem; border-radius: 5px; min-width: 0; }
.command button { font-size: .8rem; padding: .15rem .5rem; cursor: pointer; }
code, pre { font: 12.5px/1.45 ui-monospace, "SF Mono", "Liberation Mono", monospace; overflow-wrap: anywhere;
  white-space: pre-wrap; }
details { margin: .5rem 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
details pre { max-height: 24rem; overflow: auto; border: 1px solid var(--line); border-radius: 6px; padding: .6rem;
  background: var(--paper); }
figure { margin: .4rem 0 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; border-radius: 4px; }
figcaption { font-size: .8rem; color: var(--quiet); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: .8rem; }
svg { max-width: 100%; height: auto; font-size: 11px; fill: currentColor; }
svg .bar { fill: var(--mark); opacity: .35; }
svg .seeds { stroke: currentColor; stroke-width: 3; }
svg .items { stroke: currentColor; stroke-width: 1; }
svg .frame { fill: none; stroke: var(--line); }
svg .front { fill: none; stroke: var(--mark); stroke-width: 1.5; }
svg .on { fill: var(--mark); } svg .off { fill: var(--paper); stroke: currentColor; }
[hidden] { display: none !important; }
@media (max-width: 46rem) {
  body { padding: .8rem; font-size: 14px; }
  h1 { font-size: 1.35rem; }
  th, td { padding: .4rem .45rem; }
  tr.main > th { max-width: 8.5rem; border-right: 1px solid var(--line); }
  tr.main > th button { min-width: 6rem; overflow-wrap: anywhere; }
  .runs > td { padding: .6rem; } .inside { left: .6rem; max-width: calc(100vw - 3.2rem); }
  .tools { gap: .4rem; } .tools label { flex: 1 1 6.5rem; } .tools select, .tools input { width: 100%; }
  .tools output { margin-left: 0; flex-basis: 100%; }
  td.rank, th.rank { display: none; }
}
@media print { .tools, .command button { display: none; } .wide { overflow: visible; } }
"""

SCRIPT = """\
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const field = (name) => document.getElementById("filter-" + name);
const names = ["suite", "budget", "task", "protocol"];
document.querySelector(".tools").hidden = false;

// a row opens its runs
const opened = (button, open) => {
  document.getElementById(button.getAttribute("aria-controls")).hidden = !open;
  button.setAttribute("aria-expanded", open);
};
const rows = () => all("tr.main > th button").filter((button) => button.offsetParent !== null);
for (const button of all("tr.main > th button")) {
  button.disabled = false;
  button.addEventListener("click", () => opened(button, button.getAttribute("aria-expanded") !== "true"));
  button.addEventListener("keydown", (event) => {
    const list = rows(), place = list.indexOf(button);
    const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: list.length - 1 }[event.key];
    if (event.key === "Escape") opened(button, false);
    if (next === undefined || !list[next]) return;
    event.preventDefault();
    list[next].focus();
  });
  opened(button, false);
}
const follow = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const button = target && target.querySelector("tr.main > th button");
  if (button) { opened(button, true); button.focus(); }
};
addEventListener("hashchange", follow);
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  event.preventDefault();
  field("name").focus();
});

// a heading sorts, best first
for (const button of all("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table");
    const place = [...head.parentNode.children].indexOf(head), now = head.getAttribute("aria-sort");
    const down = now === null ? head.dataset.first === "descending" : now === "ascending";
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

// the tools filter
const apply = () => {
  const want = Object.fromEntries(names.map((name) => [name, field(name).value]));
  const words = field("name").value.trim().toLowerCase().split(/\\s+/);
  const other = (part, name) => want[name] !== "" && name in part.dataset && part.dataset[name] !== want[name];
  for (const part of all("[data-suite], [data-budget], [data-task], [data-protocol]")) {
    part.hidden = names.some((name) => other(part, name));
  }
  let shown = 0, total = 0;
  for (const body of all("tbody[data-name]")) {
    body.hidden = !words.every((word) => body.dataset.name.toLowerCase().includes(word));
    total += 1;
    shown += !body.hidden && !body.closest("[hidden]");
  }
  document.getElementById("shown").textContent = `${shown} of ${total} rows`;
};
for (const name of [...names, "name"]) field(name).addEventListener("input", apply);
document.getElementById("reset").addEventListener("click", () => {
  for (const name of [...names, "name"]) field(name).value = "";
  apply();
  field("name").focus();
});
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
for (const button of all(".command button")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch { /* it is selected, at least */ }
  });
}
apply();
follow();
"""

TEMPLATE = """\
{% macro command(text) -%}
<div class="command"><code>{{ text }}</code><button type="button" hidden>copy</button></div>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
script-src 'sha256-{{ script_hash }}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Leaderboard: {{ title }}</title>
<style>
{{ style | safe }}</style>
</head>
<body>
<header>
<h1>Leaderboard: {{ title }}</h1>
<p class="lead">Which pre-training objective gives the better image backbone, and for which task? Every objective \
trains the same backbone on the same pictures; OpenMMLab scores it on each task. {{ counts }} A row opens its runs: \
numbers, settings, curves, environment, and the command that makes them again.</p>
<div class="tools" role="search" hidden>
{%- for name, values in filters %}
<label>{{ name }} <select id="filter-{{ name }}"><option value="">all</option>
{%- for value in values %}<option>{{ value }}</option>{% endfor %}</select></label>
{%- endfor %}
<label>objective <input id="filter-name" type="search" placeholder="part of a name  ( / )"></label>
<button type="button" id="reset">reset</button>
<button type="button" id="theme" aria-label="light or dark">◐</button>
<output id="shown" aria-live="polite"></output>
</div>
</header>
<main>
{%- for part in parts %}
{%- set table = part.table %}
<section data-suite="{{ table.suite or '' }}">
<h2>{{ part.heading }}</h2>
{%- for block in part.blocks %}
{%- set group = block.group %}
<div data-budget="{{ group.budget }}">
<h3>{{ group.title }}</h3>
<div class="wide" tabindex="0" role="region" aria-label="{{ table.suite }}: {{ group.heading }}">
<table>
<thead><tr>
{%- for head in group.left_heads %}
<th scope="col"{% if head == "mean rank" %} class="rank number"{% endif %}>\
<button type="button">{{ head }}</button></th>
{%- endfor %}
{%- for column in table.columns %}
<th scope="col" class="number" data-task="{{ column.task }}" data-protocol="{{ column.protocol }}"\
{% if column.higher_is_better %} data-first="descending"{% endif %}>\
<button type="button">{{ column.task }} <span>{{ column.heading[1] }} </span><span>{{ column.measure }}</span>\
</button></th>
{%- endfor %}
{%- for head in group.right_heads %}
<th scope="col"{% if head != "device" %} class="number"{% endif %}><button type="button">{{ head }}</button></th>
{%- endfor %}
</tr></thead>
{%- for row, runs, id in block.rows %}
<tbody data-name="{{ row.objective }} {{ row.backbone }}" id="{{ id }}">
<tr class="main">
{%- for head in group.left_heads %}
{%- set text = row.under([head])[0] %}
{%- if head == "objective" %}
<th scope="row"><button type="button" disabled aria-controls="runs-{{ id }}" aria-expanded="true">{{ text }}</button>\
</th>
{%- else %}
<td{% if head == "mean rank" %} class="rank number" data-value="\
{{ '' if row.mean_rank is none else row.mean_rank }}"{% endif %}>{{ text }}</td>
{%- endif %}
{%- endfor %}
{%- for column in table.columns %}
{%- set cell = row.cells[column.id] %}
<td class="number{{ classes.get(cell.place, '') }}{% if cell.status != 'ok' %} none{% endif %}\
{% if cell.unranked %} unranked{% endif %}" data-task="{{ column.task }}" data-protocol="{{ column.protocol }}" \
data-value="{{ cell.summary.mean if cell.summary else '' }}"\
{% if cell.unranked %} title="{{ cell.unranked }}"{% endif %}>\
<span class="value">{{ cell.seeds_text }}</span>{% if cell.marks %}<sup>{{ cell.marks | join(", ") }}</sup>{% endif %}
{%- if cell.items_text %} <small>[{{ cell.items_text | join(", ") }}]</small>{% endif %}</td>
{%- endfor %}
{%- for head in group.right_heads %}
<td{% if head != "device" %} class="number"{% endif %}{% if head in row.sort_values %} data-value="\
{{ '' if row.sort_values[head] is none else row.sort_values[head] }}"{% endif %}>{{ row.under([head])[0] }}</td>
{%- endfor %}
</tr>
<tr class="runs" id="runs-{{ id }}"><td colspan="{{ block.width }}"><div class="inside">
{%- if runs.pretraining or runs.pictures %}
<h4>Pre-training of {{ row.objective }}</h4>
<div class="cards">
{%- for picture in runs.pictures %}
<figure class="card"><img src="{{ picture }}" alt="Sheet of pictures from the pre-training of {{ row.objective }}" \
loading="lazy"><figcaption>original, student's view, target, prediction</figcaption></figure>
{%- endfor %}
{%- for seed, curve in runs.pretraining %}
<figure class="card"><figcaption>seed {{ seed }}</figcaption>{{ curve | safe }}</figure>
{%- endfor %}
</div>
{%- endif %}
<h4>Runs</h4>
<div class="cards">
{%- for run in runs.cells %}
<article class="card{% if run.status != 'ok' %} failed{% endif %}" data-task="{{ run.task }}" \
data-protocol="{{ run.protocol }}">
<h4>{{ run.task }}.{{ run.protocol }}, seed {{ run.seed }}: {{ run.status }}</h4>
{%- if run.reason %}<p>{{ run.reason }}</p>{% endif %}
<p>{{ run.numbers }}</p>
<p class="note">{{ run.cost }}</p>
{%- if run.curve %}<figure>{{ run.curve | safe }}</figure>{% endif %}
{{ command(run.command) }}
{%- if run.again %}{{ command(run.again) }}{% endif %}
</article>
{%- endfor %}
</div>
{%- for what, text in runs.texts %}
<details><summary>{{ what }}</summary><pre>{{ text }}</pre></details>
{%- endfor %}
</div></td></tr>
</tbody>
{%- endfor %}
</table>
</div>
{%- if block.figures %}
<details open><summary>Figures: scores with intervals, and cost against score</summary>
<div class="figures">
{%- for column, bars, pareto in block.figures %}
<div class="card" data-task="{{ column.task }}" data-protocol="{{ column.protocol }}">
<h4>{{ column.heading | join(" · ") }}</h4>
<figure>{{ bars | safe }}</figure>
{%- if pareto %}<figure>{{ pareto | safe }}</figure>{% endif %}</div>
{%- endfor %}
</div>
<p class="note">Bars: thick line the 95 % interval over seeds, thin line the sampling interval over test items. \
Cost: {{ cost_of_a_seed }}; filled points are on the front: no other row is both cheaper and better.</p>
</details>
{%- endif %}
</div>
{%- endfor %}
<p class="note">{{ table.legend }}</p>
{%- if table.notes %}
<ol class="note">
{%- for note in table.notes %}
<li>{{ note }}</li>
{%- endfor %}
</ol>
{%- endif %}
{{- part.learned | safe }}
</section>
{%- endfor %}
{%- if published is not none %}
<section>
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
{%- if alone %}
<details><summary>{{ alone | length }} published numbers of these objectives on other data, for orientation: nothing \
of ours compares with them</summary>
<div class="wide" tabindex="0" role="region" aria-label="Published numbers on other data"><table>
<thead><tr>{% for head in alone_heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for line in alone %}
<tr>{% for text in line %}<td{% if text == "UNVERIFIED" %} class="best"{% endif %}>{{ text }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
</details>
{%- endif %}
</section>
{%- endif %}
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""

"""The claims of "Revealing the Dark Secrets of Masked Image Modeling" (Xie et al., CVPR 2023; arXiv 2205.13543), each
held against the records: what was measured, the difference to what the claim compares with, and a verdict by a fixed
rule.

A difference is taken seed by seed (the same seed on both sides) and has a 95 % interval over the common seeds (Student
t). The rule looks at nothing but that interval:

* *more* and *less*: **holds** where the interval lies wholly on the claimed side of 0 (or of a margin that the claim
  names), **does not hold here** where it lies wholly on the other side, else **undecided**;
* *parity*: **holds** where it lies wholly above -:data:`MARGIN` points (not worse by more than that), **does not hold
  here** where it lies wholly below, else **undecided**.

Fewer than two common seeds have no interval: undecided. A side without a record: no record. Intervals are not corrected
for the number of claims.

A comparison with supervised training says something only where that has learned. It has where it is better than no
training at all (``random_init``) at classification, the task whose labels it was given, by the rule for *more*; where
that is not shown, nothing compared with it has a verdict. Claims about where attention looks are also held against what
needs no reference: evenly spread attention, no training, and the backbone's own first layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .analyses import LAYERS, PROTOCOL, Curve, Studied, convention, curves, studied, worded
from .details import CUT
from .records import Record
from .statistics import Summary, summarise

REFERENCE, UNTRAINED = "supervised", "random_init"
EVEN, OWN_FIRST = "evenly spread", "its first three layers"  # what else a number is compared with
CLAIMED = ("simmim", "mae", "maskdistill", "zoomed_in_mask")  # objectives that hide part of the picture
SHOWN = (*CLAIMED, REFERENCE, UNTRAINED)
MARGIN = 3.0  # points: seeds of one objective differ by as much in `embedded`
LOCAL = 0.1  # of the distance of evenly spread attention: less is no difference worth the word local; our own choice
HOLDS, FAILS, UNDECIDED, NO_RECORD = "holds", "does not hold here", "undecided", "no record"
UNLEARNED = "no verdict: the reference has not learned"
UNKNOWN = "undecided: no record shows whether the reference has learned"
FROZEN = "frozen"
_SEVERAL = 3  # layers that are called the first or the last, as in the paper

Values = Mapping[int, float]  # seed -> number


@dataclass(frozen=True)
class Claim:
    """One line of a claim.

    Attributes:
        title: the number.
        unit: of it.
        wanted: "more", "less" or "parity", of ours compared with ``against``.
        says: that in words.
        column: task whose frozen score is meant, or "" for a number of the analyses.
        decimals: shown.
        against: :data:`REFERENCE`, :data:`UNTRAINED`, :data:`EVEN` or :data:`OWN_FIRST`.
        margin: by how much of the number the wanted side may be missed; below 0, must be exceeded.
    """

    title: str
    unit: str
    wanted: str
    says: str = ""
    column: str = ""
    decimals: int = 2
    against: str = REFERENCE
    margin: float = 0.0


@dataclass(frozen=True)
class Line:
    """A claim held against one objective. ``difference`` is theirs less the other side's, by common seeds."""

    claim: Claim
    objective: str
    theirs: Summary | None
    other: Summary | None  # what it is compared with
    untrained: Summary | None  # the same number of no training at all
    difference: Summary | None
    verdict: str


FARTHEST = "attention distance of the layer that looks farthest, as a share of evenly spread attention"
LAST_THREE = "attention distance of the last three layers, as a share of evenly spread attention"
FIRST_THREE = "attention distance of the first three layers, as a share of evenly spread attention"
DIVERSITY = "KL between heads, last three layers"

CLAIMS: Mapping[str, tuple[str, tuple[Claim, ...]]] = {
    "Local attention in all layers": (
        "Masked image modelling keeps attention local in all layers; supervised training is local in low layers and "
        "global in high ones. The first three lines ask whether attention is local at all, the others only whether it "
        "is nearer than that of supervised training.",
        (
            Claim(FARTHEST, "", "less", f"nearer than evenly spread attention by more than {LOCAL:g}", decimals=3,
                  against=EVEN, margin=-LOCAL),
            Claim(FARTHEST, "", "less", "nearer than without training", decimals=3, against=UNTRAINED),
            Claim(LAST_THREE, "", "less", f"not farther than in its own first three layers by more than {LOCAL:g}",
                  decimals=3, against=OWN_FIRST, margin=LOCAL),
            Claim(FARTHEST, "", "less", "nearer than supervised", decimals=3),
            Claim(LAST_THREE, "", "less", "nearer than supervised", decimals=3),
        ),
    ),
    "Head diversity kept": (
        "Masked image modelling keeps its heads different in all layers; supervised training loses that in the last "
        "three.",
        (Claim(DIVERSITY, "nats", "more", "more than supervised", decimals=3),),
    ),
    "Advantage on geometric and motion tasks": (
        "Masked image modelling is better than supervised training at pose, depth and tracking.",
        tuple(Claim(task, "", "more", "better than supervised", task, decimals)
              for task, decimals in (("pose", 2), ("depth", 3), ("tracking", 2))),
    ),
    "Parity on semantic tasks": (
        f"Masked image modelling is not behind supervised training (by more than {MARGIN:g} points) where the classes "
        "are covered by it.",
        tuple(Claim(task, "%", "parity", "not behind supervised", task) for task in ("classification", "segmentation")),
    ),
}


def verdict(wanted: str, difference: Summary | None, margin: float = 0.0) -> str:
    """By the rule at the head of this file; ``difference`` None: a side has no record."""
    if difference is None:
        return NO_RECORD
    if difference.ci95 is None:
        return UNDECIDED
    low, high = difference.ci95
    if wanted == "less":
        low, high = -high, -low
    edge = -MARGIN if wanted == "parity" else -margin
    return HOLDS if low > edge else FAILS if high < edge else UNDECIDED


def held(
    claim: Claim, objective: str, values: Mapping[str, Values], lower_is_better: bool = False,
    own_first: Values | None = None,
) -> Line:
    """The claim against one objective, from objective -> seed -> number.

    Args:
        own_first: seed -> number of the objective's own first layers, for a claim against :data:`OWN_FIRST`.
    """
    theirs = values.get(objective) or {}
    others: Mapping[str, Values | None] = {EVEN: dict.fromkeys(theirs, 1.0), OWN_FIRST: own_first}
    other = others.get(claim.against, values.get(claim.against)) or {}
    differences = [theirs[seed] - other[seed] for seed in sorted(set(theirs) & set(other))]
    difference = summarise(differences) if differences else None
    turned = {"more": "less", "less": "more"}.get(claim.wanted, claim.wanted) if lower_is_better else claim.wanted
    word = verdict(turned, difference, claim.margin) if difference or not (theirs and other) else UNDECIDED
    ours, compared, untrained = (
        summarise(list(found.values())) if found else None for found in (theirs, other, values.get(UNTRAINED))
    )
    return Line(claim, objective, ours, compared, untrained, difference, word)


def reference_learned(values: Mapping[str, Mapping[str, Values]]) -> Line:
    """Whether the reference is better than no training at its own task; ``values`` as :func:`numbers` gives them."""
    claim = Claim("classification", "%", "more", "better than without training", "classification", against=UNTRAINED)
    return held(claim, REFERENCE, values.get("classification", {}))


def budget_of(records: Iterable[Record], suite: str) -> str | None:
    """The budget at which most of :data:`SHOWN` have a score; of several the one with most pictures."""
    found: dict[str, set[str]] = defaultdict(set)
    pictures: dict[str, int] = defaultdict(int)
    for record in records:
        if record.suite == suite and record.objective in SHOWN and not record.variant and record.status == "ok":
            found[record.budget].add(record.objective)
            pictures[record.budget] = max(pictures[record.budget], record.cost["pretrain_images"] or 0)
    return max(found, key=lambda name: (len(found[name]), pictures[name]), default=None)


def numbers(records: Iterable[Record], analyses: Iterable[Record]) -> dict[str, dict[str, dict[int, float]]]:
    """Title or column of a claim -> objective -> seed -> number; of records of one suite and budget, plain objectives.

    Of a task only the newest version counts.
    """
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    scored = [r for r in records if r.protocol == FROZEN and r.status == "ok" and r.main_metric]
    for record in scored:
        newest = max(r.task_version for r in scored if r.task == record.task)
        if record.task_version == newest and record.main_metric:
            found[record.task][record.objective][record.seed] = record.main_metric[1]["value"]
    for record in analyses:
        if record.protocol != PROTOCOL or record.details is None:
            continue
        shares = [_share(layer["heads"]) for layer in record.details["layers"] if layer["heads"]]
        known = [share for share in shares if share is not None]
        mine = {FARTHEST: max(known, default=None)}
        if len(known) >= 2 * _SEVERAL:  # else first and last are the same ones
            mine[FIRST_THREE] = _mean(known[:_SEVERAL])
        for title, name in ((LAST_THREE, "attention_distance_relative_last3"), (DIVERSITY, "head_kl_last3")):
            mine[title] = record.metrics[name]["value"] if name in record.metrics else None
        for title, value in mine.items():
            if value is not None:
                found[title][record.objective][record.seed] = value
    return {key: dict(values) for key, values in found.items()}


def _share(heads: Mapping[str, Any]) -> float | None:
    """Mean distance of the heads as a share of that of evenly spread attention; None where nothing is known."""
    mean = _mean(heads["distance"])
    return None if mean is None or not heads["uniform_distance"] else mean / heads["uniform_distance"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def document(records: Sequence[Record], analyses: Sequence[Record], suites: Sequence[str]) -> str:
    """``docs/dark-secrets.md``, whole."""
    parts = [_HEAD]
    for suite in suites:
        budget = budget_of(records, suite)
        plain = [
            [r for r in found if r.suite == suite and r.budget == budget and not r.variant and r.objective in SHOWN]
            for found in (records, analyses)
        ]
        if budget is not None and (plain[1] or suite == suites[0]):
            parts.append(_suite(suite, budget, *plain))
    return "\n\n".join([*parts, _LIMITS]) + "\n"


def lines_of(records: Sequence[Record], analyses: Sequence[Record]) -> dict[str, list[Line]]:
    """Heading of a claim -> its lines, an objective and number each; of one suite and budget."""
    values = numbers(records, analyses)
    lower = {
        r.task for r in records if r.main_metric and not r.main_metric[1]["higher_is_better"]
    }
    learned = reference_learned(values).verdict
    doubt = {HOLDS: "", NO_RECORD: UNKNOWN}.get(learned, UNLEARNED)
    found: dict[str, list[Line]] = {}
    for heading, (_, claims) in CLAIMS.items():
        lines = [
            held(claim, objective, values.get(claim.column or claim.title, {}), claim.column in lower,
                 values.get(FIRST_THREE, {}).get(objective))
            for claim in claims for objective in CLAIMED
        ]
        found[heading] = [
            replace(line, verdict=doubt)
            if doubt and line.claim.against == REFERENCE and line.verdict != NO_RECORD else line
            for line in lines
        ]
    return found


def _suite(suite: str, budget: str, records: Sequence[Record], analyses: Sequence[Record]) -> str:
    rows = sorted(studied(analyses), key=lambda row: SHOWN.index(row.objective))
    units = {r.task: r.main_metric for r in records if r.main_metric}
    images = max((r.cost["pretrain_images"] or 0 for r in records), default=0)
    facts = [f"Budget `{budget}`: {images:,} pictures of pre-training.",
             f"Backbone {', '.join(sorted({r.backbone for r in records}))}."]
    if rows:
        first = rows[0].records[0]
        source = first.config["images"]
        facts.append(f"Analysed on {source['count']} pictures of {source['size']} px ({source['source']}); "
                     f"{convention(first)}.")
    seeds = {name: sorted({r.seed for r in (*records, *analyses) if r.objective == name}) for name in SHOWN}
    named = [f"{name}: {', '.join(map(str, found)) if found else 'no record'}" for name, found in seeds.items()]
    facts.append(f"Seeds: {'; '.join(named)}.")
    lines = lines_of(records, analyses)
    parts = [f"## Suite `{suite}`", " ".join(facts), _reference(reference_learned(numbers(records, analyses))),
             "### In short", _short(lines)]
    for heading, (claim, _) in CLAIMS.items():
        parts += [f"### {heading}", claim, _claim_table(lines[heading], units)]
    parts += ["### Layer by layer", _layer_table(rows)]
    parts += ["### Where each task finds what it needs", "Frozen score from each layer (`bench analyze --transfer`).",
              _curve_tables(curves(analyses, LAYERS))]
    told = "Fine-tuned after the last blocks were dropped (`bench analyze --drop`), by blocks kept."
    parts += ["### Without the last layers", told, _curve_tables(curves(analyses, CUT))]
    return "\n\n".join(parts)


def _reference(line: Line) -> str:
    """Whether what most claims compare with has learned anything, in words."""
    if line.verdict == NO_RECORD:
        return (f"No record shows whether `{REFERENCE}` has learned: classification of it and of `{UNTRAINED}` is "
                "needed. Nothing compared with it has a verdict.")
    told = (f"`{REFERENCE}` scores {worded(line.theirs)} % at frozen classification, `{UNTRAINED}` "
            f"{worded(line.other)} %, a difference of {_interval(line.difference, 2)}")
    if line.verdict == HOLDS:
        return f"{told}: the reference has learned."
    return (f"{told}: **the reference has not learned** more than these seeds can tell from no training, so that "
            "nothing compared with it has a verdict. (The leaderboard's test takes the noise to be the same in all its "
            "rows and can tell more; the rule here uses these two rows alone.)")


def _short(lines: Mapping[str, Sequence[Line]]) -> str:
    """Claim by objective; several numbers of a claim one after another."""
    rows = []
    for found in lines.values():
        for claim in dict.fromkeys(line.claim for line in found):
            by_objective = {line.objective: line.verdict for line in found if line.claim == claim}
            rows.append([f"{claim.title}: {claim.says}", *(by_objective[name] for name in CLAIMED)])
    return _table(["claim", *CLAIMED], rows)


def _claim_table(lines: Sequence[Line], units: Mapping[str, tuple]) -> str:
    rows = []
    for line in lines:
        claim = line.claim
        title = claim.title
        if claim.column:
            metric, facts = units.get(claim.column, ("", None))
            arrow = "" if facts is None else f" ({facts['unit']}) {'↑' if facts['higher_is_better'] else '↓'}"
            title = f"{claim.column}, frozen: {metric}{arrow}" if metric else f"{claim.column}, frozen"
        elif claim.unit:
            title = f"{claim.title} ({claim.unit})"
        rows.append([title, claim.says, line.objective, worded(line.theirs, claim.decimals),
                     f"{claim.against}: {'1' if claim.against == EVEN else worded(line.other, claim.decimals)}",
                     worded(line.untrained, claim.decimals), _interval(line.difference, claim.decimals), line.verdict])
    heads = ["number", "claimed", "objective", "measured", "compared with", UNTRAINED, "difference [95 % interval]",
             "verdict"]  # fmt: skip
    return _table(heads, rows)


def _interval(found: Summary | None, decimals: int) -> str:
    if found is None:
        return "–"
    ends = "" if found.ci95 is None else f" [{found.ci95[0]:+.{decimals}f}, {found.ci95[1]:+.{decimals}f}]"
    return f"{found.mean:+.{decimals}f}{ends}, {found.n} seed{'s' * (found.n > 1)}"


def _layer_table(rows: Sequence[Studied]) -> str:
    """Distance and KL by layer, mean over heads and seeds."""
    if not rows:
        return "No record."
    told: tuple[tuple[str, Callable[[Mapping], float | None]], ...] = (
        ("distance, share of evenly spread", _share),
        ("KL between heads", lambda h: _mean(h["kl"])),
    )
    most = max(len(row.layers) for row in rows)
    body = []
    for title, of in told:
        for row in rows:
            found = [of(layer["heads"]) if layer["heads"] else None for layer in row.layers]
            cells = ["–" if value is None else f"{value:.3f}" for value in found]
            body.append([title, row.name, *cells, *["–"] * (most - len(cells))])
    return _table(["mean over heads and seeds", "objective", *(f"layer {i}" for i in range(1, most + 1))], body)


def _curve_tables(found: Mapping[str, Sequence[Curve]]) -> str:
    if not found:
        return "No record."
    parts = []
    for task, lines in found.items():
        first = max(lines, key=lambda line: len(line.layers))
        decimals = 2 if first.unit == "%" else 3
        body = []
        for line in lines:
            by_layer = dict(zip(line.layers, line.scores, strict=True))
            body.append([line.name, *(worded(by_layer.get(name), decimals) for name in first.layers),
                         str(min(score.n for score in line.scores))])
        arrow = "↑" if first.higher_is_better else "↓"
        parts.append(_table([f"{task}: {first.metric} ({first.unit}) {arrow}", *first.layers, "seeds"], body))
    return "\n\n".join(parts)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


_HEAD = f"""\
# The dark secrets of masked image modelling, at this size

Made by `python docs/make.py` from the committed records, do not edit; a test compares the two.

"Revealing the Dark Secrets of Masked Image Modeling" (Xie et al., CVPR 2023,
[2205.13543](https://arxiv.org/abs/2205.13543)) compares SimMIM with supervised pre-training on ImageNet at the size of
Swin V2-B. Here its four claims are held against the backbones of this suite, each objective for itself. Figures stand
in [leaderboard.html](leaderboard.html) and come from `bench analyze --figures DIR`.

**Rule.** A difference is taken seed by seed and has a 95 % interval over the common seeds (Student t). A claim of
*more* or *less* (*nearer*) **{HOLDS}** where that interval lies wholly on the claimed side of 0, or of the margin that
the claim names, **{FAILS}** where it lies wholly on the other, and is **{UNDECIDED}** otherwise. Parity
**{HOLDS}** where the interval lies above -{MARGIN:g} points, **{FAILS}** where it lies below, and is **{UNDECIDED}**
otherwise. Without a record of either side there is no verdict, nor is there one by comparison with `{REFERENCE}` where
it is not shown to have learned: to be better than `{UNTRAINED}` at classification by the same rule. The intervals are
not corrected for the number of claims: of forty that are true of nothing, about one will still hold."""

_LIMITS = f"""\
## What this cannot say

- The networks are small, the pictures few and the seeds at most a handful: an undecided claim is one that this suite
  cannot tell, not one that is wrong.
- In `embedded` the pictures of pre-training and those of the tasks are drawn by the same renderer and the supervised
  labels are those of the classification task. The paper's parity is about classes that the labels of pre-training
  cover; on fine-grained ones, which they do not cover, it finds masked image modelling ahead.
- The paper fine-tunes; the scores above are of frozen backbones, with the task's light head.
- The margins ({MARGIN:g} points, {LOCAL:g} of the distance of evenly spread attention) are this suite's own choice.
- What the paper leaves open about attention is a setting whose name stands above (`bench analyze --help`).
"""

"""What the records of one column must share to be ranked together, and in what a row departs from it.

Read from the records alone, so that it holds for anybody's: the settings of the task's head, the test data, and what
the suite gave the pre-training (pictures seen, network, size of the pictures, …). Each of these is a *condition*; the
value that most rows of a column have is the column's, and a row with another one is shown and not ranked. A record
that does not say a condition is held to agree with any value of it.

A suite may give some objectives settings of their own, as their papers do. Whoever knows the suites says so through
``Declared``: such settings are then the column's as much as any other objective's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .records import Record

Conditions = dict[str, str]  # name -> value, canonical
Declared = Callable[[Record], Mapping[str, Any] | None]  # the suite's settings of the head for a record's row

HEAD, DATA, SEEN = "head settings", "test data", "pictures of pre-training"
_RECIPE = "objective's"
CHANGED = "changed head settings"  # in place of HEAD, where the suite's own are known: only what differs from them
# Of ``config["pretraining"]``: what the suite gives, the same for all its rows but those whose options say otherwise.
_OF_SUITE = ("model", "kwargs", "input_size", "batch_size", "fixed_crop", "decoder")
_NOT_WITHOUT_TRAINING = frozenset({"batch_size", "fixed_crop", "decoder"})
_OF_RECIPE = ("version", "slots", "optimiser", "crop")  # of it, too: what makes the objective, other in every row


def conditions(record: Record, declared: Declared | None = None) -> Conditions:
    """What ``record`` says of the conditions under which its number was made."""
    found: Conditions = {DATA: str(record.fingerprints.get("data"))}
    settings = record.config.get("settings")
    if isinstance(settings, dict):
        own = declared(record) if declared is not None else None
        if own is None:
            found[HEAD] = _canonical(settings)
        else:
            own = json.loads(_canonical(own))
            changed = {k for k in {*own, *settings} if own.get(k) != settings.get(k)}
            found[CHANGED] = _canonical({k: settings.get(k) for k in changed})
    made = record.config.get("pretraining")
    if record.weights is not None or not isinstance(made, dict):
        return found  # trained elsewhere: nothing of it was the suite's to give
    trained = bool(made.get("trains", True))
    if trained and record.cost["pretrain_images"]:
        found[SEEN] = f"{record.cost['pretrain_images']:,}"
    if not any(option.startswith("suite.") for option in record.variant):
        for name in _OF_SUITE:
            if name in made and (trained or name not in _NOT_WITHOUT_TRAINING):
                found[f"pre-training {name}"] = _canonical(made[name])
    return found


def recipe(record: Record) -> Conditions:
    """How the record's backbone was trained, which the seeds of one cell share; empty for weights from elsewhere."""
    made = record.config.get("pretraining")
    if record.weights is not None or not isinstance(made, dict):
        return {}
    return {f"{_RECIPE} {name}": _canonical(made[name]) for name in _OF_RECIPE if name in made}


def prevailing(records: Sequence[Record]) -> Conditions:
    """Of the recipes of some seeds the newest version's, of several of that the one that most have, then the latest."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(_canonical(recipe(record)), []).append(record)

    def place(text: str) -> tuple[int, int, str]:
        version = json.loads(text).get(f"{_RECIPE} version", "0")
        return int(version) if version.isdecimal() else 0, len(found[text]), max(r.finished for r in found[text])

    return json.loads(max(found, key=place))


def shared(rows: Iterable[Sequence[tuple[Conditions, str]]]) -> Conditions:
    """The conditions of a column: of each the value that most rows have, of equally many the one used last.

    Args:
        rows: per row its records' conditions and the times they finished.
    """
    votes: dict[str, Counter[str]] = {}
    latest: dict[tuple[str, str], str] = {}
    for row in rows:
        seen = set()
        for found, finished in row:
            for pair in found.items():
                seen.add(pair)
                latest[pair] = max(finished, latest.get(pair, ""))
        for name, value in seen:
            votes.setdefault(name, Counter())[value] += 1
    return {
        name: max(counts, key=lambda value: (counts[value], latest[name, value], value))
        for name, counts in votes.items()
    }


def departures(found: Conditions, column: Conditions, whose: str = "the column's") -> tuple[str, ...]:
    """In what a record's conditions are not the column's, in words; empty where they agree."""
    return tuple(
        f"{name}: {_told(name, value, column[name], whose)}" for name, value in found.items()
        if name in column and column[name] != value
    )


def _told(name: str, value: str, other: str, whose: str) -> str:
    ours, theirs = (json.loads(said) for said in (value, other)) if _told_by_key(name) else (None, None)
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return f"{_short(name, value)}, {whose} {_short(name, other)}"
    unset = "the suite's own" if name == CHANGED else "not set"
    return "; ".join(
        f"{key} {_value(ours, key, unset)}, {whose} {_value(theirs, key, unset)}"
        for key in sorted({*ours, *theirs}) if ours.get(key, ...) != theirs.get(key, ...)
    )


def _told_by_key(name: str) -> bool:
    return name in (HEAD, CHANGED) or name.startswith(_RECIPE)


def _value(settings: dict[str, Any], key: str, unset: str) -> str:
    return _short(key, _canonical(settings[key])) if key in settings else unset


def _short(name: str, value: str) -> str:
    most = 12 if name == DATA else 60
    return value if len(value) <= most else value[: most - 1] + "…"


# one encoder for all: ``json.dumps`` makes a new one at each call
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode

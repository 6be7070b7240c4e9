"""The text of docs/speed.md: training steps beside mmpretrain's, and what reading, heads and what surrounds the steps
cost, from the records that ``bench speed --output`` wrote to benchmarks/speed. ``docs/make.py`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import table

Record = Mapping[str, Any]
NO_GPU = (
    "Not measured: no GPU has been at hand. `make gpu-check` (at most eight minutes) writes "
    "`benchmarks/speed/gpu.json`, and `python docs/make.py` puts it here."
)
JOBS = {"job": "`bench run --objective maskdistill --tasks all`",
        "board": "`bench run --objective all --tasks all --seeds 3`"}
PEER = "mmpretrain"


def read(folder: Path) -> list[Record]:
    """All records of a folder, in the order of their files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def machine(record: Record) -> str:
    """What it was measured on, and with which code."""
    environment = record["environment"]
    hardware = environment["hardware"]
    name = hardware.get("accelerator") or f"{hardware['cores']} cores of {hardware['processor']}"
    return f"{name}, torch {environment['packages']['torch']}, commit {commit(record)}" + (
        " with changes" if environment["dirty"] else "")


def commit(record: Record) -> str:
    return (record["environment"]["git_commit"] or "unknown")[:7]


def network(record: Record) -> str:
    more = {key: value for key, value in record["kwargs"].items() if key != "img_size"}
    return " ".join([record["model"], *(f"{key}={value}" for key, value in more.items())])


def _side(row: Mapping[str, Any]) -> str:
    return " ".join([row["side"], row["precision"], *(word for word in ("fused", "compiled") if row[word])])


def pairs(record: Record) -> list[Mapping[str, Any]]:
    """Our steps with mmpretrain's, but for ours in fp32 with its in bf16: nobody would choose between those."""
    return [pair for pair in record["ratios"] if pair["peer"].startswith(PEER)
            and not (pair["ours"].startswith("ours fp32") and pair["peer"] == f"{PEER} bf16")]


def beside_peers(records: Iterable[Record]) -> list[Sequence[Any]]:
    """Rows of the table: each of our steps beside the peer's that took turns with it."""
    rows = []
    for record in records:
        speeds = {(row["objective"], _side(row)): row for row in record["rows"]}
        for pair in pairs(record):
            ours, peer = (speeds[pair["objective"], pair[side]] for side in ("ours", "peer"))
            rows.append([
                f"`{pair['objective']}`", record["batch"], pair["ours"].removeprefix("ours "),
                pair["peer"].removeprefix(f"{PEER} "), f"**{pair['ratio']:.2f}**",
                f"{pair['low']:.2f}–{pair['high']:.2f}",
                *(f"{mine:{form}} / {theirs:{form}}" for form, mine, theirs in (
                    (".2f", ours["images_per_second"], peer["images_per_second"]),
                    (".0f", 100 * ours["ceiling_share"], 100 * peer["ceiling_share"]),
                    (",.0f", ours["memory_mb"], peer["memory_mb"]),
                )),
                network(record), commit(record),
            ])
    return sorted(rows, key=lambda row: (row[0], row[2], row[3], row[1]))


def steps(records: Sequence[Record]) -> str:
    """Our training steps beside mmpretrain's."""
    head = ["objective", "batch", "ours", "mmpretrain", "images/s, ours over mmpretrain's", "quartiles",
            "images/s", "% of ceiling", "peak MiB", "network", "commit"]
    return table(head, beside_peers(records))


def alone(record: Record) -> str:
    """The steps of several objectives, as measured in one call."""
    head = ["objective", "how", "images/s", "± half quartiles", "GFLOPs a picture", "% of ceiling", "peak MiB"]
    rows = [[f"`{row['objective']}`", _side(row), f"{row['images_per_second']:.2f}", f"{row['spread']:.2f}",
             f"{row['gflops_per_image']:.1f}", f"{100 * row['ceiling_share']:.0f}", f"{row['memory_mb']:,.0f}"]
            for row in record["rows"]]
    return f"{network(record)}, {record['input_size']} px, batch {record['batch']}; {machine(record)}.\n\n" + table(
        head, rows)


def reading(record: Record) -> str:
    head = ["reader", "images/s", "± half quartiles", "ratio", "core-ms a picture", "ratio by core time"]
    rows = [[row["name"], f"{row['images_per_second']:.1f}", f"{row['spread']:.1f}", f"{row['ratio']:.2f}",
             f"{row['core_ms_per_image']:.2f}", f"{row['core_ratio']:.2f}"] for row in record["rows"]]
    return (f"{record['pictures']:,} JPEGs of {record['bytes_per_picture'] / 1024:.0f} KiB from class folders to "
            f"{record['input_size']} px, batch {record['batch']}, {record['workers']} workers; {machine(record)}.\n\n"
            + table(head, rows))


def heads(record: Record) -> str:
    head = ["trained", "seconds", "± half quartiles", "times one head"]
    rows = [[row["name"], f"{row['seconds']:.2f}", f"{row['spread']:.2f}", f"{row['ratio']:.2f}"]
            for row in record["rows"]]
    return (f"Linear heads on the cached features of {record['pictures']:,} pictures, {record['epochs']} epochs, batch "
            f"{record['batch']}; {machine(record)}.\n\n" + table(head, rows))


def overhead(record: Record) -> str:
    return (f"Whole pre-trainings of `{record['objective']}` on suite `{record['suite']}` ({record['images_seen']:,} "
            f"images): **{100 * record['overhead']:.1f} %** of the time is spent outside of the training steps "
            f"(planning, reading, hooks, log, checkpoints; {len(record['rows'])} runs); {machine(record)}.")


def gpu(record: Record | None) -> str:
    """What ``make gpu-check`` found."""
    if record is None:
        return NO_GPU
    parts = record["parts"]
    texts = [f"{machine(next(iter(parts.values())))}."] if parts else []
    took = {JOBS[name]: seconds for name, seconds in record["seconds"].items() if name in JOBS}
    texts += [f"{words}: {seconds:,.0f} s." for words, seconds in took.items()]
    if beside := [part for part in parts.values() if pairs(part)]:
        texts.append(steps(beside))
    texts += [f"### {name}\n\n{alone(part)}" for name, part in parts.items()]  # some have no peer there
    texts += [f"`{name}` failed: {reason}" for name, reason in record["failed"].items()]
    return "\n\n".join(texts)


def page(folder: Path) -> str:
    """The whole document, from the records of a folder."""
    of_kind: dict[str, list[Record]] = {}
    for record in read(folder):
        of_kind.setdefault(record.get("kind", "steps"), []).append(record)
    measured = of_kind.get("steps", [])
    sections = {
        "Training steps beside mmpretrain's": (
            "On the same random pictures in one process, taking turns; each through its model's own `train_step`, with "
            "masks, loss, clipping and AdamW. mmpretrain's models, settings and optimisers are those of its configs. "
            "Ours in bf16 is `--fast`: autocast, fused AdamW, no token computed that the loss does not look at. "
            "Ceiling: a large matrix product of the same precision, measured in the same turns. Columns with a stroke: "
            "ours / mmpretrain's. Two cores.\n\n" + steps(measured)) if measured else "",
        "Objectives beside each other": "\n\n".join(alone(record) for record in measured if not pairs(record)),
        "Reading": "\n\n".join(map(reading, of_kind.get("data", []))),
        "A grid of heads": "\n\n".join(map(heads, of_kind.get("heads", []))),
        "What surrounds the steps": "\n\n".join(map(overhead, of_kind.get("overhead", []))),
        "On a GPU": "\n\n".join(map(gpu, of_kind.get("gpu", [None]))),
    }
    return "\n\n".join([
        "# How fast\n\nMade by `python docs/make.py` from `benchmarks/speed/`; do not edit. `bench speed --output "
        "FILE` writes such records; [scaling.md](scaling.md) holds the cost against batch, picture size and depth.",
        *(f"## {title}\n\n{text}" for title, text in sections.items() if text),
    ]) + "\n"

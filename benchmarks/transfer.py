"""Layer-wise transfer and cut backbones of ``bench analyze``: jobs of the suite's tasks, a record for each backbone."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import data as data_module
from benchmarks import studies
from benchmarks.errors import RequestError, unknown
from benchmarks.plan import digest
from benchmarks.progress import Reporter
from benchmarks.suite import Suite
from downstream.task import TASKS, Job, TaskError, TaskInfo
from leaderboard.details import CUT, LAYERS
from leaderboard.records import Metric, Record

VERSION = 2  # of the numbers beside the task's own: raise it when a backbone gets others
PROTOCOLS = {LAYERS: "frozen", CUT: "finetune"}  # of the record -> of the task


def chosen_tasks(suite: Suite, wanted: Sequence[str], kind: str) -> list[TaskInfo]:
    """The tasks of these names, or with ``all`` those of the suite that have the protocol.

    Raises:
        RequestError: none, an unknown name, or a task without data or protocol in the suite.
    """
    protocol = PROTOCOLS[kind]
    fitting = [task for task in suite.data if protocol in suite.settings[task]]
    if not wanted:
        raise RequestError(f"--tasks: name at least one of {', '.join(fitting)}, or `all`")
    for task in () if list(wanted) == ["all"] else wanted:
        if task not in fitting:
            raise unknown(f"task of suite {suite.name} with protocol {protocol}", task, fitting)
    return [TASKS[task] for task in (fitting if list(wanted) == ["all"] else dict.fromkeys(wanted))]


def score(
    folders: Iterable[Path], suite: Suite, root: Path, tasks: Sequence[TaskInfo], kind: str, device: str,
    overwrite: str, reporter: Reporter, dropped: Sequence[int] = (),
) -> tuple[list[Record], list[str]]:
    """The records of the backbones on the tasks; what is up to date is read, not made again.

    Args:
        kind: ``layers`` (frozen, each layer) or ``cut`` (fine-tuned, each of ``dropped`` numbers of last blocks away;
            0 is the whole).

    Returns:
        Records, and a line for each backbone and task that could not be scored.

    Raises:
        RequestError: a folder is no backbone.
    """
    from benchmarks.execute import resolve_device, set_threads

    set_threads()
    device = resolve_device(device)
    found, failed = [], []
    for folder in folders:
        subject = studies.subject(folder)
        for task in tasks:
            try:
                found.append(_score(subject, suite, root, task, kind, device, overwrite, reporter, dropped))
            except (TaskError, data_module.DataError) as error:
                failed.append(f"{subject.label}, {task.name}.{kind}: {error}")
                reporter.say(failed[-1])
    return found, failed


def _score(
    subject: studies.Subject, suite: Suite, root: Path, task: TaskInfo, kind: str, device: str, overwrite: str,
    reporter: Reporter, dropped: Sequence[int],
) -> Record:
    from downstream.layers import cut_scores, frozen_scores

    name = f"{subject.label} {task.name}.{kind}"
    reporter.begin(name)
    own = replace(suite, model=subject.about["model"], kwargs=subject.about["kwargs"])
    family = str(subject.about.get("recipe") or subject.objective)
    settings = own.settings_of(task.name, PROTOCOLS[kind], family, subject.budget)
    section = data_module.section(suite, task.name, root)
    data = data_module.fingerprint(section)
    config: dict[str, Any] = {"task": task.name, "protocol": PROTOCOLS[kind], "settings": settings,
                              "dropped": sorted(dropped) if kind == CUT else []}
    fingerprint = digest([VERSION, task.version, config, subject.seed, subject.weights, data])
    old = studies.up_to_date(subject, task.name, kind, fingerprint, overwrite)
    if old is not None:
        reporter.say(f"{name}: scored already")
        return old
    place = subject.place(task.name, kind)
    place.mkdir(parents=True, exist_ok=True)
    started = time.time()
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=place))
    try:
        job = Job(
            backbone=subject.folder, task=task.name, protocol=PROTOCOLS[kind], data=section, settings=settings,
            seed=subject.seed, device=device, work_dir=work, progress=reporter.report,
        )
        scores = frozen_scores(job) if kind == LAYERS else cut_scores(job, sorted(dropped, reverse=True))
        layers, images = [], 0
        for layer, outcome in scores:
            numbers = {metric.name: float(outcome.metrics[metric.name]) for metric in task.metrics}
            layers.append({"name": layer, "metrics": numbers, "chosen": outcome.chosen})
            images += outcome.train_images
            main = task.metrics[0]
            reporter.say(f"{name}, layer {layer}: {main.name} {numbers[main.name]:.2f}{main.unit}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if not any(place.iterdir()):
            place.rmdir()
    metrics: dict[str, Metric] = {
        metric.name: {
            "value": studies.rounded(layers[-1]["metrics"][metric.name]), "higher_is_better": metric.higher_is_better,
            "unit": metric.unit, "main": i == 0, "low": metric.low, "high": metric.high,
        }
        for i, metric in enumerate(task.metrics)
    }
    return studies.write(
        subject, task.name, kind, version=task.version, metrics=metrics, details={"layers": layers}, config=config,
        fingerprint=fingerprint, data=data, device=device, started=started, train_images=images,
    )


def table(records: Sequence[Record], kind: str) -> str:
    """The main metric by layer, a row a backbone, a table a task."""
    from tabulate import tabulate

    parts = []
    for task in dict.fromkeys(record.task for record in records):
        own = [record for record in records if record.task == task]
        names = list(dict.fromkeys(layer["name"] for record in own for layer in (record.details or {})["layers"]))
        rows = []
        for record in own:
            assert record.main_metric is not None
            assert record.details is not None
            metric = record.main_metric[0]
            by_name = {layer["name"]: layer["metrics"][metric] for layer in record.details["layers"]}
            label = f"{record.objective} ({record.budget}) seed{record.seed}"
            rows.append([label, *(by_name.get(name) for name in names)])
        metric, facts = own[0].main_metric or ("", {"unit": "", "higher_is_better": True})
        arrow = "↑" if facts["higher_is_better"] else "↓"
        what = "frozen, layer" if kind == LAYERS else "fine-tuned, blocks kept"
        heads = [f"{task} {metric} ({facts['unit']}) {arrow}, {what}", *names]
        parts.append(tabulate(rows, headers=heads, floatfmt=".2f" if facts["unit"] == "%" else ".3f", missingval="–"))
    return "\n\n".join(parts)


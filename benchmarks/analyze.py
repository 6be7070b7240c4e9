"""``bench analyze``: each backbone over the same pictures, the result kept as a record beside those of its tasks."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import studies
from benchmarks.data import DataError, central_square, read_picture
from benchmarks.errors import RequestError
from benchmarks.plan import digest
from benchmarks.progress import Reporter
from benchmarks.suite import Suite
from leaderboard.analyses import BASELINES, HEADINGS, PROTOCOL, convention, summary_of
from leaderboard.records import ANALYSIS, Metric, Record, read_record, write_record
from objectives.pictures.source import SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

    from downstream.analysis.study import Settings

BATCH = 32  # pictures; CKA compares pictures within a batch, so it is part of the conventions
FEWEST = 8  # pictures worth an analysis
TASK = "backbone"  # of the record
GRAMS = "grams.npy"  # (batches, layers, n, n) float32: for CKA between backbones


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of an analysis: ``files`` in a fixed, shuffled order; ``source`` as a reader knows them."""

    files: tuple[Path, ...]
    root: Path
    source: str

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over their names and sizes in bytes, in order."""
        return digest([(str(path.relative_to(self.root)), path.stat().st_size) for path in self.files])

    def read(self, path: Path, size: int):
        """Its central square, uint8 (size, size, 3)."""
        return central_square(read_picture(path), size)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Normalised pictures (BATCH, 3, size, size), read when asked for; the last batch may be smaller."""
        for start in range(0, len(self.files), BATCH):
            yield self.normalised(self.files[start : start + BATCH], size)

    def normalised(self, files: Sequence[Path], size: int) -> Tensor:
        """Those files as (B, 3, size, size), normalised as in pre-training."""
        import numpy as np
        import torch

        from downstream.backbone import MEAN, STD

        images = torch.from_numpy(np.stack([self.read(path, size) for path in files])).permute(0, 3, 1, 2).float()
        return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def choose_pictures(folder: Path, count: int, source: str) -> Pictures:
    """``count`` pictures spread evenly over a folder and those below it, shuffled by a fixed seed.

    Evenly, so that every class of an image folder is there; shuffled, so that a batch holds several of them.

    Raises:
        RequestError: the folder is missing or holds fewer than 8 pictures.
    """
    if not folder.is_dir():
        raise RequestError(f"pictures to analyse: no folder {folder}; name one by --pictures DIR")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < FEWEST or count < FEWEST:
        raise RequestError(f"an analysis needs at least {FEWEST} pictures; {folder} has {len(files)}, --images {count}")
    count = min(count, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return Pictures(tuple(chosen), folder, source)


def suite_pictures(suite: Suite, root: Path, count: int) -> Pictures:
    """Held-out pictures of the suite's classification data, or its pre-training pictures where it has none."""
    part = suite.data.get("classification")
    folder = Path(part["root"]) / part["val"] if part else Path(suite.pictures["root"]) / suite.pictures["train"]
    return choose_pictures((root / folder).resolve(), count, f"{suite.name}: {folder}")


def settings_of(keys: str, entropy: str, kl: str, cka: str, cka_features: str) -> Settings:
    """The settings of those names.

    Raises:
        RequestError: one of them is not known.
    """
    from downstream.analysis.attention import Convention
    from downstream.analysis.probe import AnalysisError
    from downstream.analysis.study import Settings

    try:
        return Settings(Convention(keys, entropy, kl), cka_features, cka)
    except AnalysisError as error:
        raise RequestError(str(error)) from error


def analyze(
    folders: Iterable[Path], pictures: Pictures, settings: Settings, device: str, overwrite: str, reporter: Reporter,
) -> list[Record]:
    """The analyses of the folders, each the record that stands below ``backbone.analysis``.

    An analysis of the same weights, pictures, settings and version is read, not made again, unless ``overwrite`` is
    "always"; with "never" an outdated one is shown as it is.

    Raises:
        RequestError: a folder is no backbone, or its network cannot be analysed; the others before it are kept.
    """
    from benchmarks.execute import resolve_device, set_threads
    from downstream.analysis.probe import load_network
    from downstream.analysis.study import VERSION, analyse
    from downstream.task import TaskError

    set_threads()
    device = resolve_device(device)
    found = []
    for folder in folders:
        subject = studies.subject(folder)
        reporter.begin(f"analyze {subject.label}")
        try:
            net, _, size = load_network(folder)
        except TaskError as error:
            raise RequestError(str(error)) from error
        fingerprint = digest([VERSION, subject.weights, pictures.fingerprint, size, settings.as_dict(), BATCH])
        place = subject.place(TASK, PROTOCOL)
        old = studies.up_to_date(subject, TASK, PROTOCOL, fingerprint, overwrite)
        if old is not None and (place / GRAMS).is_file():
            reporter.say(f"{subject.label}: analysed already")
            found.append(old)
            continue
        started = time.time()
        batch = len(pictures.files) if settings.cka == "exact" else min(BATCH, len(pictures.files))
        try:
            with _GramFile(place / GRAMS, len(pictures.files) // batch) as grams:
                result = analyse(net, _told(pictures, size, reporter), settings, device, grams.add)
        except (TaskError, DataError) as error:
            raise RequestError(f"{subject.label}: {error}") from error
        images = {"count": len(pictures.files), "size": size, "source": pictures.source}
        new = studies.write(
            subject, TASK, PROTOCOL, version=VERSION, metrics=_metrics(result["summary"], settings),
            details={key: result[key] for key in ("layers", "cka", "note")},
            config={"settings": settings.as_dict(), "images": images, "batch": BATCH}, fingerprint=fingerprint,
            data=pictures.fingerprint, device=device, started=started,
        )
        note = f"; {result['note']}" if result["note"] else ""
        reporter.say(f"{subject.label}: {new.cost['seconds']:.1f} s{note}")
        found.append(new)
    return found


def _metrics(summary: Mapping[str, float | None], settings: Settings) -> dict[str, Metric]:
    """The summary in the schema of records, which asks for a main metric and a direction that an analysis has not."""
    units = {"attention_distance_last": "px", "attention_distance_mean": "px",
             "attention_entropy_last": settings.convention.entropy, "head_kl_last3": settings.convention.entropy}
    known = {name: value for name, value in summary.items() if value is not None}
    return {
        name: {"value": studies.rounded(value), "higher_is_better": False, "unit": units.get(name, ""),
               "main": i == 0, "low": None, "high": None}
        for i, (name, value) in enumerate(known.items())
    }


def _told(pictures: Pictures, size: int, reporter: Reporter) -> Iterator[Tensor]:
    done = 0
    for images in pictures.batches(size):
        yield images
        done += len(images)
        reporter.report("pictures", done, len(pictures.files))


class _GramFile:
    """Gram matrices on the disk, so that memory stays the same however many pictures there are; whole or not at all."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.batches, self.done = path, batches, 0
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self.array: Any = None

    def __enter__(self) -> _GramFile:
        return self

    def add(self, grams: Tensor) -> None:
        """(layers, n, n) of the next batch."""
        import numpy as np

        if self.array is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shape = (self.batches, *grams.shape)
            self.array = np.lib.format.open_memmap(self.temporary, mode="w+", dtype=np.float32, shape=shape)
        self.array[self.done] = grams.numpy()
        self.done += 1

    def __exit__(self, kind: object, *_: object) -> None:
        if self.array is None:
            return
        self.array.flush()
        self.array = None
        if kind is None:
            os.replace(self.temporary, self.path)
        else:
            self.temporary.unlink(missing_ok=True)


def comparable(a: Record, b: Record) -> bool:
    """Whether CKA between two analyses has a meaning: the same pictures in the same batches, the same settings.

    Sides in pixels may differ: a backbone sees a picture at its own size.
    """
    same = a.fingerprints["data"] == b.fingerprints["data"] and a.config["settings"] == b.config["settings"]
    return same and all((record.path.parent / GRAMS).is_file() for record in (a, b) if record.path)


def cka_between(a: Record, b: Record) -> list[list[float | None]]:
    """CKA of every layer of ``a`` (rows) with every layer of ``b``, from their Gram files, a batch at a time."""
    import numpy as np
    import torch

    from downstream.analysis.attention import Convention
    from downstream.analysis.study import Settings, cross_cka

    files = [np.load(record.path.parent / GRAMS, mmap_mode="r") for record in (a, b) if record.path]
    chosen = a.config["settings"]
    settings = Settings(Convention(**chosen["convention"]), chosen["cka_features"], chosen["cka"])
    pairs = ((torch.from_numpy(k.astype(np.float64)), torch.from_numpy(m.astype(np.float64)))
             for k, m in zip(*files, strict=True))
    return cross_cka(pairs, settings)


def relate(analyses: Sequence[Record]) -> list[Record]:
    """The analyses, each with CKA between its backbone and the supervised one of the same row and seed in its record.

    Where there is no such analysis among them, or not of the same pictures and settings, a record stays as it is.

    Raises:
        RecordError: a record cannot be written.
    """
    place = {
        (a.suite, a.budget, a.backbone, a.seed): a for a in analyses if a.objective == BASELINES[0] and not a.variant
    }
    found = []
    for analysis in analyses:
        other = place.get((analysis.suite, analysis.budget, analysis.backbone, analysis.seed))
        old = (analysis.details or {}).get("between") or {}
        known = other is not None and old.get("backbone") == other.fingerprints["backbone"]
        if other is None or other is analysis or known or analysis.path is None or not comparable(analysis, other):
            found.append(analysis)
            continue
        between = {"objective": other.objective, "backbone": other.fingerprints["backbone"],
                   "cka": studies.rounded(cka_between(analysis, other))}
        new = replace(analysis, details={**(analysis.details or {}), "between": between})
        found.append(read_record(write_record(analysis.path.parent, new, ANALYSIS)))
    return found


def brief(record: Record) -> dict[str, Any]:
    """An analysis for programs: what it is of, by which conventions, and its summary."""
    names = ("suite", "objective", "variant", "budget", "seed")
    return {
        **{name: getattr(record, name) for name in names}, "model": record.backbone,
        "weights": record.fingerprints["backbone"], "images": record.config["images"],
        "conventions": convention(record), "note": (record.details or {})["note"], "summary": summary_of(record),
        "file": str(record.path),
    }


def table(analyses: Sequence[Record]) -> str:
    """A row a backbone; the conventions below, and a line for each backbone to which something does not apply."""
    from tabulate import tabulate

    names = [f"{a.objective} ({a.budget}) seed{a.seed}" for a in analyses]
    rows = [[name, a.backbone, *summary_of(a).values()] for name, a in zip(names, analyses, strict=True)]
    text = tabulate(rows, headers=["backbone", "model", *HEADINGS.values()], floatfmt=".3f", missingval="–")
    lines = [f"conventions: {name}" for name in sorted({convention(a) for a in analyses})]
    sources = {(a.config["images"]["count"], a.config["images"]["source"]) for a in analyses}
    lines += [f"pictures: {count} of {source}" for count, source in sorted(sources)]
    noted = [(name, (a.details or {})["note"]) for name, a in zip(names, analyses, strict=True)]
    lines += [f"{name}: {note}" for name, note in noted if note]
    return "\n".join([text, "", *lines])

"""``bench analyze``: finds backbones, analyses each over the same pictures, keeps the result beside its weights."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.data import DataError, central_square, read_picture
from benchmarks.errors import RequestError
from benchmarks.plan import digest
from benchmarks.progress import Reporter
from benchmarks.suite import Suite
from leaderboard.analyses import FILE_NAME, SCHEMA
from objectives.pictures.source import SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

    from downstream.analysis.study import Settings

BATCH = 32  # pictures; CKA compares pictures within a batch, so it is part of the conventions
FEWEST = 8  # pictures worth an analysis
GRAMS = "analysis-grams.npy"  # (batches, layers, n, n) float32: for CKA between backbones


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


def find_backbones(runs: Path, suite: str, objectives: Sequence[str] = ()) -> list[Path]:
    """Folders with a ``backbone.json`` and weights below ``runs/<suite>``, in the order of their paths.

    Raises:
        RequestError: there are none.
    """
    folders = sorted(path.parent for path in (runs / suite).rglob("backbone.json"))
    folders = [folder for folder in folders if (folder / "backbone.safetensors").is_file()]
    if objectives:
        folders = [f for f in folders if any(p.split("@")[0] in objectives or p in objectives for p in f.parts)]
    if not folders:
        what = f" of {', '.join(objectives)}" if objectives else ""
        raise RequestError(f"no backbone{what} under {runs / suite}; first: bench run --suite {suite}, "
                           "or name folders by --backbone")
    return folders


def label_of(folder: Path) -> str:
    """A backbone as a reader knows it: "simmim seed0" of a run, else the folder's name."""
    folder = folder.resolve()
    return f"{folder.parent.parent.name} {folder.parent.name}" if folder.name == "pretrain" else folder.name


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
) -> list[dict[str, Any]]:
    """The analyses of the folders, each what stands in its ``analysis.json``, with "folder" added.

    An analysis of the same weights, pictures, settings and version is read, not made again, unless ``overwrite`` is
    "always"; with "never" an outdated one is shown as it is.

    Raises:
        RequestError: a folder is no backbone, or its network cannot be analysed; the others before it are kept.
    """
    from benchmarks.execute import resolve_device, set_threads, sha256
    from downstream.analysis.probe import load_network
    from downstream.analysis.study import VERSION, analyse
    from downstream.task import TaskError

    set_threads()
    device = resolve_device(device)
    found = []
    for folder in folders:
        label = label_of(folder)
        reporter.begin(f"analyze {label}")
        try:
            net, about, size = load_network(folder)
        except TaskError as error:
            raise RequestError(str(error)) from error
        weights = sha256(folder)
        fingerprint = digest([SCHEMA, VERSION, weights, pictures.fingerprint, size, settings.as_dict(), BATCH])
        old = _read(folder / FILE_NAME)
        if old and overwrite != "always" and (overwrite == "never" or old.get("fingerprint") == fingerprint):
            reporter.say(f"{label}: analysed already")
            found.append({**old, "folder": str(folder)})
            continue
        started = time.time()
        batch = len(pictures.files) if settings.cka == "exact" else min(BATCH, len(pictures.files))
        try:
            with _GramFile(folder / GRAMS, len(pictures.files) // batch) as grams:
                result = analyse(net, _told(pictures, size, reporter), settings, device, grams.add)
        except (TaskError, DataError) as error:
            raise RequestError(f"{label}: {error}") from error
        new = {
            "schema": SCHEMA, "label": label, "suite": about.get("suite") or "", "seed": about.get("seed"),
            "objective": about.get("objective") or label, "model": about["model"], "weights": weights,
            "images": {"count": len(pictures.files), "size": size, "source": pictures.source,
                       "fingerprint": pictures.fingerprint},
            "settings": settings.as_dict(), "fingerprint": fingerprint, "device": device,
            "seconds": round(time.time() - started, 2), **_rounded(result),
        }
        temporary = folder / f".{FILE_NAME}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(new, indent=1, allow_nan=False) + "\n")
        os.replace(temporary, folder / FILE_NAME)
        reporter.say(f"{label}: {new['seconds']:.1f} s" + (f"; {new['note']}" if new["note"] else ""))
        found.append({**new, "folder": str(folder)})
    return found


def _told(pictures: Pictures, size: int, reporter: Reporter) -> Iterator[Tensor]:
    done = 0
    for images in pictures.batches(size):
        yield images
        done += len(images)
        reporter.report("pictures", done, len(pictures.files))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    known = isinstance(found, dict) and found.get("schema") == SCHEMA and (path.parent / GRAMS).is_file()
    return found if known else None


def _rounded(value: Any) -> Any:
    """Seven digits of every number: more than float32 sums hold, and files that a reader can compare."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


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


def comparable(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether CKA between two analyses has a meaning: the same pictures in the same batches, the same settings.

    Sides in pixels may differ: a backbone sees a picture at its own size.
    """
    return a["images"]["fingerprint"] == b["images"]["fingerprint"] and a["settings"] == b["settings"]


def cka_between(a: dict[str, Any], b: dict[str, Any]) -> list[list[float | None]]:
    """CKA of every layer of ``a`` (rows) with every layer of ``b``, from their Gram files, a batch at a time."""
    import numpy as np
    import torch

    from downstream.analysis.attention import Convention
    from downstream.analysis.study import Settings, cross_cka

    files = [np.load(Path(analysis["folder"]) / GRAMS, mmap_mode="r") for analysis in (a, b)]
    settings = Settings(Convention(**a["settings"]["convention"]), a["settings"]["cka_features"], a["settings"]["cka"])
    pairs = ((torch.from_numpy(k.astype(np.float64)), torch.from_numpy(m.astype(np.float64)))
             for k, m in zip(*files, strict=True))
    return cross_cka(pairs, settings)


def brief(analysis: dict[str, Any]) -> dict[str, Any]:
    """An analysis for programs: what it is of, by which conventions, and its summary."""
    names = ("label", "folder", "suite", "objective", "seed", "model", "weights", "images", "note", "summary")
    return {**{name: analysis[name] for name in names}, "conventions": analysis["settings"]["name"]}


HEADINGS = {
    "attention_distance_last": "distance, last (px)", "attention_distance_mean": "distance, mean (px)",
    "attention_distance_relative": "of uniform", "attention_entropy_last": "entropy, last",
    "head_kl_last3": "head KL, last 3", "effective_rank_last": "rank, last", "variance_within_last": "within, last",
    "high_frequency_share_last": "high freq., last",
}


def table(analyses: Sequence[dict[str, Any]]) -> str:
    """A row a backbone; the conventions below, and a line for each backbone to which something does not apply."""
    from tabulate import tabulate

    rows = [[a["label"], a["model"], *(a["summary"].get(name) for name in HEADINGS)] for a in analyses]
    text = tabulate(rows, headers=["backbone", "model", *HEADINGS.values()], floatfmt=".3f", missingval="–")
    lines = [f"conventions: {name}" for name in sorted({a["settings"]["name"] for a in analyses})]
    sources = {(a["images"]["count"], a["images"]["source"]) for a in analyses}
    lines += [f"pictures: {count} of {source}" for count, source in sorted(sources)]
    lines += [f"{a['label']}: {a['note']}" for a in analyses if a["note"]]
    return "\n".join([text, "", *lines])


def correlations(runs: Sequence[Path], records: Sequence[Path], suite: str) -> list[dict[str, Any]]:
    """Spearman's ρ of every number with every task, over the objectives of a suite (see ``leaderboard.analyses``)."""
    from leaderboard.analyses import correlate, read_analyses
    from leaderboard.records import read_records

    mine = [analysis for analysis in read_analyses(runs) if analysis.suite == suite]
    found = correlate(mine, read_records(records)[0], suite)
    return [
        {"number": c.number, "column": c.column, "rho": c.rho, "p": c.p, "objectives": list(c.objectives)}
        for c in found
    ]


def correlation_table(found: Sequence[dict[str, Any]]) -> str:
    """Numbers by columns: "ρ (p)"; above 0 where more of the number goes with a better score."""
    from tabulate import tabulate

    if not found:
        return "correlations: fewer than 3 objectives have both an analysis and a score of the same weights"
    columns = list(dict.fromkeys(c["column"] for c in found))
    cells = {(c["number"], c["column"]): "–" if c["rho"] is None else f"{c['rho']:+.2f} ({c['p']:.2f})" for c in found}
    numbers = [name for name in HEADINGS if any(c["number"] == name for c in found)]
    rows = [[HEADINGS[name], *(cells.get((name, column), "–") for column in columns)] for name in numbers]
    most = max(len(c["objectives"]) for c in found)
    return tabulate(rows, headers=[f"Spearman ρ (p), up to {most} objectives", *columns], disable_numparse=True)

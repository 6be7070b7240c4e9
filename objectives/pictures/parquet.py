"""Hugging Face parquet files: a column ``image`` with the encoded bytes, a column ``label`` (or ``labels``).

Parquet gives no single row without its whole row group, so the pictures are unpacked once, still encoded, into an
Arrow file of the cache folder that is then memory-mapped (as the library ``datasets`` does). Light (no torch).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objectives.files import whole
from objectives.pictures.source import PictureError

ROWS = 64  # of a batch in the Arrow file


def arrow() -> Any:
    """The package pyarrow.

    Raises:
        PictureError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PictureError(
            "pictures in parquet files need the package pyarrow: pip install -e '.[parquet]'"
        ) from error
    return pyarrow


class ParquetStore:
    """See ``source.Store``.

    Args:
        files: the parquet files.
        cache: folder for the Arrow file; it takes as much room as the pictures.
        key: names the files' contents.

    Raises:
        PictureError: pyarrow is missing, a file is damaged, or a column is missing.
    """

    def __init__(self, files: Sequence[Path], cache: Path, key: str) -> None:
        pyarrow = arrow()
        self.path = cache / f"pictures-{key[:16]}.arrow"
        if not self.path.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            _unpack(pyarrow, files, self.path)
        self._open()
        counts = [self._reader.get_batch(k).num_rows for k in range(self._reader.num_record_batches)]
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        labels = [self._reader.get_batch(k)["label"].to_numpy(zero_copy_only=False) for k in range(len(counts))]
        self.labels = np.concatenate(labels).astype(np.int64)
        self.classes = _classes(self._reader.schema, int(self.labels.max()) + 1)
        self.blocks = counts
        self.nbytes = self.path.stat().st_size

    def _open(self) -> None:
        pyarrow = arrow()
        self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))

    def read(self, index: int) -> memoryview:
        batch = int(np.searchsorted(self.starts, index, side="right")) - 1
        value = self._reader.get_batch(batch)["image"][index - int(self.starts[batch])]
        return memoryview(value.as_buffer())

    def name(self, index: int) -> str:
        return f"picture {index} of {self.path}"

    def __getstate__(self) -> dict[str, Any]:  # a process that is not forked opens the file itself
        return {k: v for k, v in self.__dict__.items() if k != "_reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _unpack(pyarrow: Any, files: Sequence[Path], path: Path) -> None:
    label = None
    with whole(path) as temporary, pyarrow.OSFile(str(temporary), "wb") as sink:
        writer = None
        for file in files:
            try:
                parquet = pyarrow.parquet.ParquetFile(file)
            except (pyarrow.ArrowException, OSError) as error:
                raise PictureError(f"{file} cannot be read as parquet ({str(error).splitlines()[0]})") from error
            with parquet:
                names = parquet.schema_arrow.names
                label = next((name for name in ("label", "labels") if name in names), None)
                if "image" not in names or label is None:
                    raise PictureError(f"{file}: columns `image` and `label` are wanted, it has {', '.join(names)}")
                if writer is None:
                    about = {**(parquet.schema_arrow.metadata or {}), b"label": label.encode()}
                    schema = pyarrow.schema(
                        [("image", pyarrow.large_binary()), ("label", pyarrow.int64())], metadata=about
                    )
                    writer = pyarrow.ipc.new_file(sink, schema)
                for batch in parquet.iter_batches(ROWS, columns=["image", label]):
                    images = batch["image"]
                    encoded = images.field("bytes") if pyarrow.types.is_struct(images.type) else images
                    if encoded.null_count:
                        raise PictureError(f"{file}: pictures without bytes (only paths); embed them")
                    columns = [encoded.cast(pyarrow.large_binary()), batch[label].cast(pyarrow.int64())]
                    writer.write_batch(pyarrow.record_batch(columns, schema=schema))
        if writer is None:
            raise PictureError(f"pre-training pictures: no parquet file for {path}")
        writer.close()


def _classes(schema: Any, count: int) -> tuple[str, ...]:
    """The names that ``datasets`` keeps in the files' metadata; else numbers."""
    about = schema.metadata or {}
    features = json.loads(about.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(about.get(b"label", b"label").decode(), {}).get("names")
    return tuple(names) if names else tuple(str(number) for number in range(count))

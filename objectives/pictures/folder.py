"""Class folders of picture files, as of ImageNet. Light (no torch)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from objectives.pictures.source import SUFFIXES, PictureError


def class_folders(folder: Path) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """The picture files below the class folders of ``folder``, in order: paths relative to it, labels, classes."""
    classes = tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    files: list[str] = []
    counts = []
    for name in classes:
        own = [
            os.path.relpath(os.path.join(parent, file), folder)
            for parent, _, found in os.walk(folder / name) for file in found
            if os.path.splitext(file)[1].lower() in SUFFIXES
        ]
        files += sorted(own, key=lambda path: path.split(os.sep))  # as paths are ordered: folder by folder
        counts.append(len(own))
    return files, np.repeat(np.arange(len(classes)), counts), classes


class FolderStore:
    """See ``source.Store``.

    Args:
        folder: holds a folder for each class.

    Raises:
        PictureError: no picture in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix = folder, os.fsencode(folder)
        files, self.labels, self.classes = class_folders(folder)
        if not files:
            raise PictureError(f"pre-training pictures: no picture in the folders of {folder}")
        # one array, not a million objects: each worker process would copy these as soon as it counts its references
        self.files = np.array([os.fsencode(file) for file in files])
        self.blocks = [len(files)]  # any file is as near as another
        probed = self.files[:: max(1, len(files) // 256)]
        self.nbytes = int(np.mean([self._path(file).stat().st_size for file in probed]) * len(files))

    def _path(self, file: bytes) -> Path:
        return self.folder / os.fsdecode(file)

    def read(self, index: int) -> bytes:
        try:
            with open(os.path.join(self.prefix, self.files[index]), "rb") as file:
                return file.read()
        except OSError as error:
            raise PictureError(f"{self.name(index)}: {error.strerror}; check the data set") from error

    def name(self, index: int) -> str:
        return str(self._path(self.files[index]))

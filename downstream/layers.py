"""Where in a backbone a task finds what it needs: the frozen score from each layer, and fine-tuning without the last.

No training code of its own: every number is a job of the task under its ordinary protocol (Xie et al., CVPR 2023, drop
the last layers before fine-tuning). For the frozen scores the backbone sees each picture once; its maps of all layers
lie on the disk and stand in for it in the jobs of the other layers, so that memory holds those of one layer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from downstream.backbone import TimmBackbone, build, load_strict, read_about
from downstream.task import Job, Outcome, TaskError, evaluate


class LayerMaps:
    """Maps of every layer, a call of the backbone after another: written in the first pass, read in later ones.

    Args:
        folder: an empty one on a disk with room for the maps: float32, all layers, training and test pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[Any, list[tuple[int, ...]]]] = []  # what came in, and the maps' shapes
        self.places: list[list[int]] = []  # bytes before the call's map, a layer
        self.written = False
        self.call = 0

    def begin(self) -> None:
        """The next pass over the same pictures in the same order."""
        self.written, self.call = bool(self.calls), 0

    def __call__(self, backbone: LayerBackbone, pictures: Tensor, layer: int) -> Tensor:
        """The map of ``layer`` for these pictures.

        Raises:
            TaskError: not the pictures that the first pass had at this place.
        """
        seen = (tuple(pictures.shape), float(pictures.sum(dtype=torch.float64)))
        number, self.call = self.call, self.call + 1
        if not self.written:
            maps = backbone.every_layer(pictures)
            self._append(seen, maps)
            return maps[layer]
        if number >= len(self.calls) or self.calls[number][0] != seen:
            raise TaskError("layers: the task reads other pictures for this layer than for the first one; "
                            "its pipeline must not draw at random")
        shape = self.calls[number][1][layer]
        count, place = int(np.prod(shape)), self.places[number][layer]
        values = np.fromfile(self._file(layer), np.float32, count, offset=place)
        return torch.from_numpy(values).view(shape).to(pictures.device)

    def _append(self, seen: Any, maps: Sequence[Tensor]) -> None:
        places = []
        for layer, found in enumerate(maps):
            with open(self._file(layer), "ab") as file:
                places.append(file.tell())
                found.detach().float().cpu().numpy().tofile(file)
        self.calls.append((seen, [tuple(found.shape) for found in maps]))
        self.places.append(places)

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer{layer}.float32"


@MODELS.register_module()
class LayerBackbone(TimmBackbone):
    """A frozen :class:`TimmBackbone` of one ``out_indices`` whose maps come through a :class:`LayerMaps`."""

    def __init__(self, maps: LayerMaps, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(self.out_indices) != 1:
            raise TaskError(f"layers: the task reads {len(self.out_indices)} maps at once; take a head that reads one")
        self.maps = maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.maps(self, x, self.out_indices[0]),)

    def every_layer(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the maps of all blocks (ViT) or stages (Swin)."""
        one, self.out_indices = self.out_indices, tuple(range(len(_parts(self.net))))
        try:
            return super().forward(x)
        finally:
            self.out_indices = one


def _parts(net: nn.Module) -> Sequence[nn.Module]:
    return net.blocks if hasattr(net, "blocks") else net.layers


def layer_names(folder: Path) -> list[str]:
    """The layers that a task can read, in order: "1" to "12" of a ViT, the stages of a Swin.

    Raises:
        TaskError: neither ViT nor Swin, or the folder cannot be read.
    """
    net = _network(folder, read_about(folder))
    return [str(i) for i, _ in enumerate(_parts(net), 1)]


def _network(folder: Path, about: Mapping[str, Any]) -> nn.Module:
    net = build(about["model"], about["kwargs"], str(folder))
    if not hasattr(net, "blocks") and not hasattr(net, "layers"):
        raise TaskError(f"layers: tasks read ViTs and Swins, not a {type(net).__name__}")
    return net


def frozen_scores(job: Job, layers: Sequence[str] = ()) -> Iterator[tuple[str, Outcome]]:
    """Name and outcome of each layer under protocol ``frozen``; the last layer's are those of the ordinary cell.

    A tracker reads two crops of sizes of its own and computes the features of each layer anew.

    Args:
        layers: names of :func:`layer_names`; empty: all.

    Raises:
        TaskError: as the task; or it reads several maps at once.
    """
    names = layer_names(job.backbone)
    tracks = job.task.startswith("tracking")
    with tempfile.TemporaryDirectory(prefix=".maps-", dir=job.work_dir) as folder:
        maps = None if tracks else LayerMaps(Path(folder))
        for index, name in enumerate(names):
            if layers and name not in layers:
                continue
            # features are kept, so pictures are not augmented; a grid of layers of the task's own would mix them
            one = {"out_index": index} if tracks else {"out_indices": (index,), "cache": True}
            if "layers" in job.settings:
                one["layers"] = None
            if maps is not None:
                maps.begin()
            yield name, evaluate(replace(job, protocol="frozen", settings={**job.settings, **one}, maps=maps))


def cut(folder: Path, keep: int, target: Path) -> Path:
    """Write the backbone without its last blocks: ``keep`` blocks, and the final norm of the whole.

    Raises:
        TaskError: not so many blocks, or a Swin would lose a whole stage, whose norm has another width.
    """
    about = read_about(folder)
    net = _network(folder, about)
    load_strict(net, folder)
    if hasattr(net, "blocks"):
        total, least = len(net.blocks), 1
        kwargs = {**about["kwargs"], "depth": keep}
    else:
        depths = [len(stage.blocks) for stage in net.layers]
        total, least = sum(depths), sum(depths[:-1]) + 1
        kwargs = {**about["kwargs"], "depths": (*depths[:-1], keep - sum(depths[:-1]))}
    if not least <= keep <= total:
        raise TaskError(f"cut: {folder} has {total} blocks, of which {least} to {total} can be kept, not {keep}")
    small = build(about["model"], kwargs, str(folder))
    wanted = small.state_dict()
    state = {key: value for key, value in load_file(folder / "backbone.safetensors").items() if key in wanted}
    target.mkdir(parents=True, exist_ok=True)
    save_file(state, target / "backbone.safetensors")
    (target / "backbone.json").write_text(json.dumps({**about, "kwargs": kwargs}))
    load_strict(small, target)
    return target


def block_count(folder: Path) -> int:
    """Blocks of a ViT, or of all stages of a Swin."""
    net = _network(folder, read_about(folder))
    return len(net.blocks) if hasattr(net, "blocks") else sum(len(stage.blocks) for stage in net.layers)


def cut_scores(job: Job, dropped: Sequence[int]) -> Iterator[tuple[str, Outcome]]:
    """Kept blocks and outcome of fine-tuning without the last ``dropped`` blocks, for each number of them.

    Learning rates that fall with depth count the layers that are left.

    Raises:
        TaskError: as :func:`cut` and the task; or the task reads layers that are gone.
    """
    total = block_count(job.backbone)
    with tempfile.TemporaryDirectory(prefix=".cut-", dir=job.work_dir) as folder:
        for number in dropped:
            keep = total - number
            backbone = cut(job.backbone, keep, Path(folder) / str(keep)) if number else job.backbone
            count = len(layer_names(backbone))
            indices = job.settings.get("out_indices", ())  # or a word, which counts the layers that are left
            gone = [i for i in indices if not isinstance(indices, str) and not -count <= i < count]
            if gone:
                raise TaskError(f"cut: {job.task} reads layer {gone[0] + 1}, which is cut off; drop fewer blocks")
            yield str(keep), evaluate(replace(job, backbone=backbone, protocol="finetune"))

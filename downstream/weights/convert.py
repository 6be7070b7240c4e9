"""Any source of weights as a timm network that fits them to the last key, with what a backbone folder says of it."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from downstream.backbone import WeightsError, build, check_fit, load_strict, read_about
from downstream.weights import architecture
from downstream.weights.layouts import IMAGENET, Pixels, layout_named, recognised, to_timm
from downstream.weights.read import State, file_sha256, read_state


@dataclass(frozen=True)
class Converted:
    """A network without classifier, for pictures normalised by ImageNet's mean and standard deviation.

    Attributes:
        model, kwargs: as timm builds it.
        source: what the weights came from: layout, file, sha256, …
        about: more of ``backbone.json`` where the source was a backbone folder of a suite.
    """

    network: nn.Module
    model: str
    kwargs: dict[str, Any]
    source: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def input_size(self) -> int:
        """Side of the pictures that its tables of places are for, in pixels."""
        return int(self.network.patch_embed.img_size[0])


def convert(
    source: str, layout: str | None = None, heads: int | None = None, patch_size: int | None = None
) -> Converted:
    """Weights by their name: ``timm:NAME[.TAG]``, ``timm:NAME=FILE``, a backbone folder, or a checkpoint file.

    Args:
        layout: of the file, where it is not to be recognised; see ``downstream.weights.layouts``.
        heads: of a plain ViT that has none of the published widths.
        patch_size: resample the patch embedding to patches of so many pixels; the grid of places stays.

    Raises:
        WeightsError: not there, not readable, or not every weight of backbone and source found its partner.
    """
    if source.startswith("timm:"):
        name, found, file = source.removeprefix("timm:").partition("=")
        converted = from_timm(name, Path(file) if found else None, layout)
    elif Path(source).is_dir():
        converted = from_folder(Path(source))
    else:
        converted = from_file(Path(source), layout, heads)
    return _patched(converted, patch_size) if patch_size else converted


def from_file(path: Path, layout: str | None = None, heads: int | None = None) -> Converted:
    """An official checkpoint; the network is deduced from the shapes."""
    state = read_state(path)
    try:
        rules = layout_named(layout) if layout else recognised(state)
        state = to_timm(state, rules)
        model, kwargs = architecture.deduce(state, heads, rules.heads)
        state = {key: value for key, value in state.items() if not architecture.BUFFERS.match(key)}
        source = {"layout": rules.name, "file": path.name, "sha256": file_sha256(path)}
        return _checked(model, kwargs, with_pixels(state, rules.pixels), source, rules.pixels)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def from_timm(name: str, file: Path | None = None, layout: str | None = None) -> Converted:
    """A network of timm's by name, with the weights of its tag (downloaded, or in the cache) or of a file."""
    model = name.partition(".")[0]
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=1, cutoff=0.4)
        raise WeightsError(f"timm has no model {model!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells each retry; the error below says enough
    try:
        network = timm.create_model(name, pretrained=file is None, num_classes=0)
    except Exception as error:  # timm and the hub raise many kinds; each means that the weights cannot be had
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(f"timm:{name}: no weights ({reason}); give them as timm:{name}=FILE") from error
    sized = hasattr(getattr(network, "patch_embed", None), "img_size") and hasattr(network, "forward_intermediates")
    if not sized or not (hasattr(network, "blocks") or hasattr(network, "layers")):
        raise WeightsError(f"timm:{name}: a {type(network).__name__} is neither ViT nor Swin")
    kwargs: dict[str, Any] = {"img_size": network.patch_embed.img_size[0]}
    config = network.pretrained_cfg
    pixels = (tuple(config["mean"]), tuple(config["std"]))
    if file is None:
        state = network.state_dict()
        source = {"timm": name, "tag": config.get("tag"), "hub": config.get("hf_hub_id")}
    else:
        state = read_state(file)
        rules = layout_named(layout) if layout else None
        try:
            rules = rules or recognised(state)
        except WeightsError:  # timm's own keys of a family that has no layout here
            rules = layout_named("timm")
        pixels = pixels if rules.name in ("timm", "swin") else rules.pixels
        state = {k: v for k, v in to_timm(state, rules).items() if not architecture.BUFFERS.match(k)}
        resized = getattr(importlib.import_module(type(network).__module__), "checkpoint_filter_fn", None)
        try:
            state = resized(state, network) if resized else state
        except (AttributeError, RuntimeError, ValueError) as error:  # a table for a module that the network lacks
            raise WeightsError(f"{file} does not fit timm's {model}: {str(error).splitlines()[0]}") from error
        source = {"timm": name, "layout": rules.name, "file": file.name, "sha256": file_sha256(file)}
    try:
        return _checked(model, kwargs, with_pixels(state, pixels), source, pixels)
    except WeightsError as error:
        raise WeightsError(f"{file or f'timm:{name}'}: {error}") from error


def from_folder(folder: Path) -> Converted:
    """A backbone folder of a suite, or the folder above it."""
    folder = folder / "pretrain" if not (folder / "backbone.json").is_file() else folder
    about = read_about(folder)
    kwargs = {key: value for key, value in about["kwargs"].items() if key != "num_classes"}
    network = build(about["model"], kwargs, str(folder))
    load_strict(network, folder)
    source = {"layout": "folder", "file": str(folder), "sha256": file_sha256(folder / "backbone.safetensors")}
    return Converted(network, about["model"], kwargs, source, about)


def with_pixels(state: State, pixels: Pixels, suite: Pixels = IMAGENET) -> State:
    """The same function of the same picture where it is normalised by ``suite`` instead of ``pixels``.

    A suite shows every backbone the same tensors. Normalising is affine and so is the patch embedding, whose patches
    are not padded: the change goes into its weight and bias, or, where it has no bias, into the table of positions.

    Raises:
        WeightsError: neither a bias nor a table that could take it.
    """
    if all(abs(a - b) < 1e-6 for a, b in zip((*pixels[0], *pixels[1]), (*suite[0], *suite[1]), strict=True)):
        return state
    if "patch_embed.proj.weight" not in state:
        return state  # whatever is missing is named by the caller's check
    (mean, std), (own_mean, own_std) = ([torch.tensor(v) for v in pair] for pair in (pixels, suite))
    weight = state["patch_embed.proj.weight"]  # (D, 3, P, P)
    shift = torch.einsum("dcij,c->d", weight, (own_mean - mean) / std)
    changed = {"patch_embed.proj.weight": weight * (own_std / std).view(1, 3, 1, 1)}
    if "patch_embed.proj.bias" in state:
        changed["patch_embed.proj.bias"] = state["patch_embed.proj.bias"] + shift
    elif "pos_embed" in state:
        table = state["pos_embed"].clone()
        side = int((table.shape[1]) ** 0.5)
        table[:, table.shape[1] - side * side :] += shift  # not the class token's
        changed["pos_embed"] = table
    else:
        raise WeightsError("patch_embed.proj.bias missing: the pictures' normalisation cannot be taken into account")
    return {**state, **changed}


def _checked(
    model: str, kwargs: Mapping[str, Any], state: State, source: dict[str, Any], pixels: Pixels
) -> Converted:
    network = build(model, kwargs, source.get("file") or model)
    check_fit(network, state)
    network.load_state_dict(state)
    return Converted(network, model, dict(kwargs), {**source, "mean": list(pixels[0]), "std": list(pixels[1])})


def _patched(converted: Converted, patch_size: int) -> Converted:
    """The patch embedding resampled to another patch; as many patches as before, so that the places stay."""
    old = converted.network.patch_embed.patch_size[0]
    if patch_size == old:
        return converted
    if not hasattr(converted.network, "set_input_size"):
        raise WeightsError(f"--patch-size: timm's {type(converted.network).__name__} takes no other patch")
    size = converted.input_size // old * patch_size
    converted.network.set_input_size(img_size=size, patch_size=patch_size)
    kwargs = {**converted.kwargs, "img_size": size, "patch_size": patch_size}
    network = build(converted.model, kwargs, converted.model)
    state = converted.network.state_dict()
    check_fit(network, state)
    network.load_state_dict(state)
    return Converted(network, converted.model, kwargs, {**converted.source, "patch_size_was": old}, converted.about)

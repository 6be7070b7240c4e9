"""MaskDistill with a student of visible tokens (2210.10615): MAE's architecture, a frozen teacher's features.

    bench run --objective maskdistill_sparse --tasks all

The unified view's other student: hidden patches are dropped, a light decoder predicts at them. We found no public
source for mask ratio and decoder (UNVERIFIED); chosen: MAE's (75 %, 8 x 512). Target, normalisation, loss and
schedule are those of `maskdistill`.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="maskdistill_sparse",
    summary="visible tokens only; a decoder predicts the normalised features of a frozen teacher",
    paper="2210.10615",
    corruption={"type": "RandomMask", "ratio": 0.75, "rounding": "keep_floor"},
    student={"type": "VisibleStudent", "position": "sincos2d"},
    teacher={"type": "FrozenNetwork", "source": "efficientnet-lite0"},
    normalisation={"type": "LayerNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 512, "depth": 8, "heads": 16},
    loss={"type": "SmoothL1", "beta": 2.0, "region": "masked"},
    optimiser=Optimiser(lr=1.5e-3, batch=2048, warmup=10 / 300, min_lr=1e-5 / 1.5e-3, clip=3.0, drop_path=0.1),
    crop=Crop(scale=(0.2, 1.0)),
)

"""Zoomed-in and masked (Beyond Masking, 2203.14313): a whole view is predicted from a quarter of its middle.

    bench run --objective zoomed_in_mask --tasks all

The authors' best task, (a)+(m) in their paper: 75 % of the patches are dropped after zooming, the middle's loss
looks at dropped patches only, the borders' at all. Encoder on visible patches only, mask tokens in the decoder; the
rest as `zoomed_in`.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="zoomed_in_mask",
    summary="the middle of a view is seen, the whole view is predicted; 75 % masked",
    paper="2203.14313",
    corruption={"type": "ZoomIn", "mask": {"type": "RandomMask", "ratio": 0.75, "rounding": "keep_floor"}},
    student={"type": "VisibleStudent", "position": "sincos1d"},
    teacher={"type": "ViewPixels", "centre": True},
    normalisation={"type": "PatchChannelNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 384, "depth": 4, "heads": 6, "position": "sincos1d"},
    loss={"type": "ZoomedIn", "region": "masked"},
    optimiser=Optimiser(
        lr=1.5e-4 * 2048 / 256, batch=2048, betas=(0.9, 0.95), warmup=20 / 300, min_lr=1e-5 / 1.2e-3,
    ),
    crop=Crop(scale=(0.2, 1.0)),
)

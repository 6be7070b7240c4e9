"""Zoomed-in (Beyond Masking, 2203.14313): the middle of a view is seen, the whole view is predicted.

    bench run --objective zoomed_in --tasks all

The authors (sunsmarterjie/beyond_masking: zoomed_in): the student sees the middle 224 of a 288-px view, all tokens,
no mask; the decoder's 224-px output stands for the view: .8 x MSE of the middle + .2 x the four borders' MSE
(summed). Targets are pixels in [0, 1], normalised per patch and colour; 1-D sinusoid positions, decoder 4 x 384
with 6 heads.

Ours differs: margin and view are carried to small pictures in whole patches; the student is the suite's backbone,
class token and all.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="zoomed_in",
    summary="the middle of a view is seen, the whole view is predicted",
    paper="2203.14313",
    corruption={"type": "ZoomIn"},
    student={"type": "MaskTokenStudent", "position": "sincos1d"},
    teacher={"type": "ViewPixels", "centre": True},
    normalisation={"type": "PatchChannelNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 384, "depth": 4, "heads": 6, "position": "sincos1d"},
    loss={"type": "ZoomedIn", "region": "all"},
    optimiser=Optimiser(
        lr=1.5e-4 * 2048 / 256, batch=2048, betas=(0.9, 0.95), warmup=20 / 300, min_lr=1e-5 / 1.2e-3,
    ),
    crop=Crop(scale=(0.2, 1.0)),
)

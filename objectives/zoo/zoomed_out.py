"""Zoomed-out (Beyond Masking, 2203.14313): a small view in a mirrored frame is predicted at full size.

    bench run --objective zoomed_out --tasks all

The authors (sunsmarterjie/beyond_masking: zoomed_out): a 160-px view pasted at random into a 224-px canvas, the
rest its mirror image, all tokens, no mask; prediction and target stand for the view and are compared pasted the
same way. Targets are pixels in [0, 1], normalised per patch and colour; 1-D sinusoid positions, decoder 4 x 384
with 6 heads.

Ours differs: margin and view are carried to small pictures in whole patches; the student is the suite's backbone,
class token and all.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="zoomed_out",
    summary="a small view in a mirrored frame is seen, the view is predicted at full size",
    paper="2203.14313",
    corruption={"type": "ZoomOut"},
    student={"type": "MaskTokenStudent", "position": "sincos1d"},
    teacher={"type": "ViewPixels"},
    normalisation={"type": "PatchChannelNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 384, "depth": 4, "heads": 6, "position": "sincos1d"},
    loss={"type": "ZoomedOut", "region": "all"},
    optimiser=Optimiser(
        lr=1.5e-4 * 2048 / 256, batch=2048, betas=(0.9, 0.95), warmup=20 / 300, min_lr=1e-5 / 1.2e-3,
    ),
    crop=Crop(scale=(0.2, 1.0)),
)

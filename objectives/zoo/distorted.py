"""Distorted (Beyond Masking, 2203.14313): a fisheye warp is undone.

    bench run --objective distorted --tasks all

The authors (sunsmarterjie/beyond_masking: distorted): a warp with a random centre and strength for each picture, all
tokens, no mask; MSE on all patches.
Targets are pixels in [0, 1], normalised per patch and colour; 1-D sinusoid positions, decoder 4 x 384 with 6 heads.

Ours differs: The student is the suite's backbone, class token and all.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="distorted",
    summary="a fisheye warp is undone",
    paper="2203.14313",
    corruption={"type": "Distort"},
    student={"type": "MaskTokenStudent", "position": "sincos1d"},
    teacher={"type": "Pixels", "unit": True},
    normalisation={"type": "PatchChannelNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 384, "depth": 4, "heads": 6, "position": "sincos1d"},
    loss={"type": "MSE", "region": "all"},
    optimiser=Optimiser(
        lr=1.5e-4 * 2048 / 256, batch=2048, betas=(0.9, 0.95), warmup=20 / 300, min_lr=1e-5 / 1.2e-3,
    ),
    crop=Crop(scale=(0.2, 1.0)),
)

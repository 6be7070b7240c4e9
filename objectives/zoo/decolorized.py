"""Decolorized (Beyond Masking, 2203.14313): colour is predicted from grey.

    bench run --objective decolorized --tasks all

The authors (sunsmarterjie/beyond_masking: decolorized): one grey channel with random weights, all tokens, no mask;
MSE of the three colours on all patches. Their patch embedding takes one channel; ours sees the grey thrice, the
same function. Targets are pixels in [0, 1], normalised per patch and colour; 1-D sinusoid positions, decoder 4 x
384 with 6 heads. Crops of scale (.08, 1) without a flip, unlike their other four tasks.

Ours differs: the student is the suite's backbone, class token and all.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="decolorized",
    summary="colour is predicted from grey",
    paper="2203.14313",
    corruption={"type": "Decolorize"},
    student={"type": "MaskTokenStudent", "position": "sincos1d"},
    teacher={"type": "Pixels", "unit": True},
    normalisation={"type": "PatchChannelNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 384, "depth": 4, "heads": 6, "position": "sincos1d"},
    loss={"type": "MSE", "region": "all"},
    optimiser=Optimiser(
        lr=1.5e-4 * 2048 / 256, batch=2048, betas=(0.9, 0.95), warmup=20 / 300, min_lr=1e-5 / 1.2e-3,
    ),
    crop=Crop(scale=(0.08, 1.0), flip=False),
)

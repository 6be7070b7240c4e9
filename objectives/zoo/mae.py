"""MAE (2111.06377): encode the visible quarter of the patches, decode the pixels of the hidden ones.

    bench run --objective mae --tasks all

The authors (facebookresearch/mae): 75 % random patches hidden, the encoder sees only the rest, a light decoder
(8 blocks of 512) fills in; MSE on the hidden patches, pixels normalised by the patch's own mean and variance (the
setting of the released checkpoints; off by default in their code); ViT-B, batch 4096, base rate 1.5e-4 x batch/256,
betas (.9, .95), 40 of 800 epochs of warm-up, fixed 2-D sine-cosine positions.

Ours differs: suites with small backbones give a smaller decoder (`suite.decoder`), in proportion to the encoder.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="mae",
    summary="visible patches only are encoded; a light decoder predicts the hidden pixels",
    paper="2111.06377",
    corruption={"type": "RandomMask", "ratio": 0.75, "rounding": "keep_floor"},
    student={"type": "VisibleStudent", "position": "sincos2d"},
    teacher={"type": "Pixels"},
    normalisation={"type": "PatchNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 512, "depth": 8, "heads": 16},
    loss={"type": "MSE", "region": "masked"},
    optimiser=Optimiser(lr=1.5e-4 * 4096 / 256, batch=4096, betas=(0.9, 0.95), warmup=40 / 800),
    crop=Crop(scale=(0.2, 1.0)),
)

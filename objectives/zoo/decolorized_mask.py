"""Decolorized and masked (Beyond Masking, 2203.14313): colour is predicted from grey, from a quarter of the patches.

    bench run --objective decolorized_mask --tasks all

Only zoom-in with masking is in the authors' code; this combination is built in the same way and UNVERIFIED: 75 % of the
patches are dropped after degrading, the loss looks at dropped patches only (`objective.loss.region=all` changes that).
Encoder on visible patches only, mask tokens in the decoder; the rest as `decolorized`.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="decolorized_mask",
    summary="colour is predicted from grey; 75 % masked",
    paper="2203.14313",
    corruption={"type": "Decolorize", "mask": {"type": "RandomMask", "ratio": 0.75, "rounding": "keep_floor"}},
    student={"type": "VisibleStudent", "position": "sincos1d"},
    teacher={"type": "Pixels", "unit": True},
    normalisation={"type": "PatchChannelNorm", "eps": 1e-6},
    head={"type": "LightDecoder", "width": 384, "depth": 4, "heads": 6, "position": "sincos1d"},
    loss={"type": "MSE", "region": "masked"},
    optimiser=Optimiser(
        lr=1.5e-4 * 2048 / 256, batch=2048, betas=(0.9, 0.95), warmup=20 / 300, min_lr=1e-5 / 1.2e-3,
    ),
    crop=Crop(scale=(0.08, 1.0), flip=False),
)

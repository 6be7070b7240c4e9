"""SimMIM on Swin V2 (2111.09886, as used by 2205.13543): pixels normalised in a sliding window are predicted.

    bench run --objective simmim_v2 --tasks all

The authors (microsoft/Swin-Transformer: models/simmim.py, configs/simmim/simmim_pretrain__swinv2_base__*): as `simmim`,
but each pixel of the target is normalised by the mean and deviation of the 47 x 47 window around it (at 192 px; other
sizes keep the share), Swin V2-B (1,024 channels), drop path .1, 1e-4 x batch/512 over 800 epochs, warm-up 10, a tenth
of the rate from epoch 700.

Ours differs: a cosine to that tenth instead of the step at epoch 700.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="simmim_v2",
    summary="as SimMIM, target pixels normalised in a sliding window",
    paper="2205.13543",
    corruption={"type": "RandomMask", "ratio": 0.6, "unit": 2, "rounding": "ceil"},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "Pixels"},
    normalisation={"type": "WindowNorm", "share": 47 / 192, "eps": 1e-6},
    head={"type": "PixelShuffleHead"},
    loss={"type": "L1", "region": "masked"},
    optimiser=Optimiser(
        lr=1e-4 * 2048 / 512, batch=2048, width=1024, warmup=10 / 800, min_lr=0.1, clip=5.0, drop_path=0.1
    ),
    crop=Crop(scale=(0.67, 1.0)),
)

"""SimMIM (2111.09886): all tokens, a learned mask token for the hidden ones, raw pixels by one linear layer and L1.

    bench run --objective simmim --tasks all

The authors (microsoft/SimMIM): mask units of 32 px, 60 % of them hidden (rounded up), 1x1 convolution and pixel
shuffle as head, L1 over the hidden pixels of the ImageNet-normalised picture. Optimiser: Swin-B's over 100 epochs
(configs/swin_base__100ep: 1,024 channels, no drop path), batch 2048, base rate 2e-4 x batch/512, warm-up 10 epochs,
cosine to 1e-5, clip 5, crops of scale (.67, 1). Version 1 mixed ViT-B's width and drop path (800 epochs, half the rate)
with that rate.

Ours differs: on the suite's ViT the position table is absolute (theirs: shared relative bias); a unit is 2 x 2 patches
whatever the patch (32 px at theirs), and one token where a token is 32 px or more (Swin). The cosine ends at the rate
that their configuration names; their code carries that one to the batch, too (main_simmim.py), and ends at 4e-5:
`optimiser.min_lr=0.05`.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="simmim",
    summary="masked patches are predicted as raw pixels by one linear layer, L1",
    paper="2111.09886",
    corruption={"type": "RandomMask", "ratio": 0.6, "unit": 2, "rounding": "ceil"},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "Pixels"},
    normalisation={"type": "NoNorm"},
    head={"type": "PixelShuffleHead"},
    loss={"type": "L1", "region": "masked"},
    optimiser=Optimiser(
        lr=2e-4 * 2048 / 512, batch=2048, width=1024, warmup=10 / 100, min_lr=1e-5 / 8e-4, clip=5.0
    ),
    crop=Crop(scale=(0.67, 1.0)),
    version=2,
)

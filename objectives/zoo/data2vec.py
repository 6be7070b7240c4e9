"""data2vec (2202.03555): masked tokens predict what the student's own moving average makes of the whole picture.

    bench run --objective data2vec --tasks all

The authors (facebookresearch/data2vec_vision: beit): block-wise mask of 120 of 196, learned mask token, target the
mean of the last 6 of 12 blocks' layer-normalised outputs of the moving average (.9998), layer-normalised again; one
linear layer, smooth-L1 with beta 2 on masked patches; drop path .25, cosine to 1e-5, BEiT's crops of scale (.08, 1).

Ours differs: the mask always hides the exact number, where theirs may stop earlier
(`objective.corruption.exact=False`); absolute positions of the suite's ViT instead of shared relative ones; no layer
scale, no dropout of attention (theirs: .05); flips and crops but no colour jitter.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="data2vec",
    version=3,
    summary="masked tokens predict averaged layers of the student's moving average",
    paper="2202.03555",
    corruption={"type": "BlockMask", "ratio": 120 / 196},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "LayerAverage", "share": 0.5, "momentum": 0.9998},
    normalisation={"type": "LayerNorm", "eps": 1e-5},
    head={"type": "LinearHead"},
    loss={"type": "SmoothL1", "beta": 2.0, "region": "masked"},
    optimiser=Optimiser(lr=2e-3, batch=2048, warmup=10 / 800, min_lr=1e-5 / 2e-3, clip=3.0, drop_path=0.25),
    crop=Crop(scale=(0.08, 1.0)),
)

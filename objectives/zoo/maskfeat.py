"""MaskFeat (2112.09133): hidden patches' histograms of oriented gradients are predicted.

    bench run --objective maskfeat --tasks all

The authors (facebookresearch/SlowFast: slowfast/models/masked.py, in1k_VIT_B_MaskFeat_PT.yaml): block-wise mask of
40 % (rounded, blocks of at least a fifth of it), learned mask token, HOG of 9 bins in 8-px cells without Gaussian
window, unit length over the bins of a cell and colour, one linear layer, MSE on masked patches; gradient norm
clipped at .02.

Ours differs: cells are half a patch at any patch size; the mask always hides the exact number, theirs may
hide less (`objective.corruption.exact=False`).
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="maskfeat",
    summary="masked tokens predict histograms of oriented gradients",
    paper="2112.09133",
    corruption={"type": "BlockMask", "ratio": 0.4, "rounding": "round", "min_block": 15 / 196},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "HOG", "bins": 9},
    normalisation={"type": "CellNorm", "bins": 9},
    head={"type": "LinearHead"},
    loss={"type": "MSE", "region": "masked"},
    optimiser=Optimiser(lr=1.6e-3, batch=2048, warmup=30 / 300, min_lr=1e-6 / 1.6e-3, clip=0.02),
    crop=Crop(scale=(0.5, 1.0)),
)

"""EVA (2211.07636): masked tokens predict the direction of a frozen teacher's features.

    bench run --objective eva --tasks all

The authors (baaivision/EVA): 105 of 256 patches hidden block-wise, learned mask token, CLIP-L/14 features of the whole
picture, one linear layer, both sides of unit length, negative cosine on masked patches; betas (.9, .98), clip 3.
mmpretrain writes the loss as 2 - 2 cos, and so do we.

Ours differs: the teacher is EfficientNet-Lite0. CLIP, `objective.teacher.source=timm:vit_large_patch14_clip_224`, goes
with `objective.teacher.projection=True`: mmpretrain's configuration predicts features in the space shared with texts;
`objective.teacher.norm=True` stops at the last norm. AdamW's eps is 1e-8, the authors' 1e-6 (`optimiser.eps=1e-6`).
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="eva",
    summary="masked tokens predict the direction of a frozen teacher's features",
    paper="2211.07636",
    corruption={"type": "BlockMask", "ratio": 105 / 256},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "FrozenNetwork", "source": "efficientnet-lite0"},
    normalisation={"type": "L2Norm"},
    head={"type": "LinearHead"},
    loss={"type": "Cosine", "region": "masked"},
    optimiser=Optimiser(lr=1e-3, batch=4096, width=1408, betas=(0.9, 0.98), warmup=2 / 150, clip=3.0),
    crop=Crop(scale=(0.2, 1.0)),
)

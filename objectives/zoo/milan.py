"""MILAN (2208.06049): what a frozen teacher attends to is kept; all its features are predicted.

    bench run --objective milan --tasks all

The authors (zejiangh/MILAN): 75 % of the patches dropped, the kept ones drawn with the teacher's class attention as
weights; the student sees these only; a prompting decoder (8 x 512) updates mask tokens alone; targets CLIP-B/16's
tokens, class token first, of unit length; 2 - 2 cos over all of them.

Ours differs: the teacher is EfficientNet-Lite0, whose mean feature stands in for the class token and whose attention is
the likeness to it (FrozenNetwork.attention). CLIP as in the paper, with its class token, that token's attention in the
last block, and features in the 512 channels shared with texts, as mmpretrain's configuration predicts them:
`objective.teacher.source=timm:vit_base_patch16_clip_224` with `objective.teacher.projection=True`.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="milan",
    summary="attended patches are seen, a frozen teacher's features of all are predicted",
    paper="2208.06049",
    corruption={"type": "AttentionMask", "ratio": 0.75, "rounding": "keep_floor"},
    student={"type": "VisibleStudent", "position": "sincos2d"},
    teacher={"type": "FrozenNetwork", "source": "efficientnet-lite0", "summary": True},
    normalisation={"type": "L2Norm"},
    head={"type": "PromptingDecoder", "width": 512, "depth": 8, "heads": 16},
    loss={"type": "Cosine", "region": "all"},
    optimiser=Optimiser(lr=1.5e-4 * 4096 / 256, batch=4096, betas=(0.9, 0.95), warmup=40 / 400),
    crop=Crop(scale=(0.2, 1.0)),
)

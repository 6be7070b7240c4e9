"""MVP (2203.05175): masked tokens predict the features of a vision-language model.

    bench run --objective mvp --tasks all

The paper: masked image modelling guided by CLIP's image features. We found no public source for mask, head,
normalisation and schedule, which are UNVERIFIED; chosen here: BEiT's mask of 75 of 196 and schedule, one linear layer,
raw features, 2 - 2 cos on every patch, masked and visible. Each can be switched, for example
`objective.loss.region=masked`.

Ours differs: the teacher is EfficientNet-Lite0 (`objective.teacher.source=timm:vit_base_patch16_clip_224` takes CLIP;
whether the paper's features are those after the last norm, `objective.teacher.norm=True`, or after the projection,
`objective.teacher.projection=True`, is UNVERIFIED too; alone, the residual stream of the last block).
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="mvp",
    summary="all tokens of a masked picture predict a frozen teacher's features",
    paper="2203.05175",
    corruption={"type": "BlockMask", "ratio": 75 / 196},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "FrozenNetwork", "source": "efficientnet-lite0"},
    normalisation={"type": "NoNorm"},
    head={"type": "LinearHead"},
    loss={"type": "Cosine", "region": "all"},
    optimiser=Optimiser(lr=1.5e-3, batch=2048, warmup=10 / 300, min_lr=1e-5 / 1.5e-3, clip=3.0, drop_path=0.1),
    crop=Crop(scale=(0.2, 1.0)),
)

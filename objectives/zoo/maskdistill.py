"""MaskDistill (A Unified View of Masked Image Modeling, 2210.10615): masked tokens predict a frozen teacher's features.

    bench run --objective maskdistill --tasks all

The authors: block-wise mask of 40 %, learned mask token, CLIP as teacher on the full uncorrupted picture, LayerNorm
without affine on its features, one linear layer, smooth-L1 on the masked positions; ViT-B, 300 epochs, batch 2048.
Their code was never published; learning rate, clip and crop are those of a reproduction (drkostas/MaskDistill-PyTorch)
and UNVERIFIED, as is beta (2.0 here; reproductions use 1.0 and 2.0).

Ours differs: the teacher is EfficientNet-Lite0 with its ImageNet weights, which come inside a package, so that the
first run needs no download from a hub (`objective.teacher.source=timm:vit_base_patch16_clip_224` takes CLIP: as the
last block leaves its tokens, `objective.teacher.norm=True` after its last norm, `objective.teacher.projection=True` in
the space shared with texts; which of these the authors take we found in no public source: UNVERIFIED), and the
suite's ViT keeps its absolute position table where the authors share a relative position bias.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="maskdistill",
    summary="masked tokens predict the normalised features of a frozen teacher",
    paper="2210.10615",
    corruption={"type": "BlockMask", "ratio": 0.4},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "FrozenNetwork", "source": "efficientnet-lite0"},
    normalisation={"type": "LayerNorm", "eps": 1e-6},
    head={"type": "LinearHead"},
    loss={"type": "SmoothL1", "beta": 2.0, "region": "masked"},
    optimiser=Optimiser(lr=1.5e-3, batch=2048, warmup=10 / 300, min_lr=1e-5 / 1.5e-3, clip=3.0, drop_path=0.1),
    crop=Crop(scale=(0.2, 1.0)),
)

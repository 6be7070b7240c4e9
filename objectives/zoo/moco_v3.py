"""MoCo v3 (2104.02057): two views of a picture must find each other in the batch; a momentum encoder gives the keys.

    bench run --objective moco_v3 --tasks all

The authors (facebookresearch/moco-v3): two augmented crops (area .08 to 1), class token, three-layer projection
(4096, out 256) and two-layer predictor with batch norm, momentum .99 rising to 1 by a cosine, cosines at
temperature .2; patch embedding frozen at its random start, sine-cosine positions; AdamW, base rate
1.5e-4 x batch/256 at 4096, weight decay .1, 40 of 300 epochs of warm-up.

Ours differs: hidden layers of at most 4·D where the suite's backbone is small; the blur shrinks with the picture; the
order of the colour changes is drawn once a batch; crops are taken from the central square of a picture that is not
square (suite paper: a quarter of a 4:3 picture is never seen); negatives come from the suite's batch, far below 4096;
the momentum changes by the step; but for the patch embedding, weights start as timm has them.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="moco_v3",
    version=3,
    summary="two views find each other among the batch; momentum encoder",
    paper="2104.02057",
    corruption={"type": "TwoViews", "scale": (0.08, 1.0), "blur": (1.0, 0.1), "solarize": (0.0, 0.2)},
    student={"type": "PooledStudent", "position": "sincos2d", "freeze_patch_embed": True},
    teacher={"type": "MomentumTeacher", "momentum": 0.99},
    normalisation={"type": "L2Norm"},
    head={"type": "ProjectionMLP", "hidden": 4096, "out": 256},
    loss={"type": "InfoNCE", "temperature": 0.2},
    optimiser=Optimiser(lr=1.5e-4 * 4096 / 256, batch=4096, weight_decay=0.1, warmup=40 / 300),
    crop=Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False),  # the views are cropped and flipped, not the picture
)

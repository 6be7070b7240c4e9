"""DINO (2104.14294): small and large crops predict what a moving average makes of the other large crop.

    bench run --objective dino --tasks all

The authors (facebookresearch/dino): 2 crops of area .4 to 1 and 8 of .05 to .4 at 96/224 of the size; class token,
three-layer head to 65,536 prototypes; teacher with momentum .996 rising to 1 by a cosine, outputs centred
(momentum .9) and sharpened (.04; student .1); ViT-S/16, AdamW, 5e-4 x batch/256 at 1024, weight decay .04 rising to
.4, 10 of 100 epochs of warm-up, gradients clipped at 3, drop path .1, prototypes frozen in the first epoch.

Ours differs: at most 16·D prototypes and hidden layers of 4·D where the suite's backbone is small; the blur shrinks
with the picture; the order of the colour changes is drawn once a batch; crops are bilinear, and taken from the central
square of a picture that is not square (suite paper: a quarter of a 4:3 picture is never seen); the gradient is clipped
as a whole, not matrix by matrix. A Swin takes objective.corruption.local=0.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="dino",
    version=3,
    summary="crops predict a centred, sharpened moving average's view of another crop",
    paper="2104.14294",
    corruption={"type": "MultiCrop", "scale": (0.4, 1.0), "local": 8, "local_scale": (0.05, 0.4)},
    student={"type": "PooledStudent"},
    teacher={"type": "CentredTeacher", "momentum": 0.996, "centre_momentum": 0.9, "temperature": 0.04},
    normalisation={"type": "Softmax"},
    head={"type": "DINOHead", "prototypes": 65536, "hidden": 2048, "bottleneck": 256},
    loss={"type": "CrossViews", "temperature": 0.1},
    optimiser=Optimiser(
        lr=5e-4 * 1024 / 256, batch=1024, width=384, weight_decay=0.04, weight_decay_end=0.4, warmup=10 / 100,
        min_lr=1e-6 / 2e-3, clip=3.0, drop_path=0.1,
    ),
    crop=Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False),  # the views are cropped and flipped, not the picture
)

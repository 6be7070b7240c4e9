"""Supervised baseline: the class label of the picture, from scratch.

    bench run --objective supervised --tasks all

The recipe is MAE's from-scratch ViT (2111.06377, appendix A.2; mmpretrain `vit-base-p16_32xb128-mae_in1k.py`): base
rate 1e-4 x batch/256 at batch 4096, betas (.9, .95), weight decay .3, 20 of 300 epochs of warm-up, label smoothing
.1, drop path .1.

Ours differs: no mixup, cutmix or weight average (they pay off over hundreds of epochs, not over the small suites'
budgets), so the `paper` suite's figure will lie below the published 82.3. The tokens' mean feeds the classifier.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="supervised",
    summary="class labels, cross-entropy (baseline)",
    paper="-",
    corruption={"type": "Clean"},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "Labels"},
    normalisation={"type": "NoNorm"},
    head={"type": "ClassifierHead"},
    loss={"type": "CrossEntropy", "label_smoothing": 0.1, "region": "picture"},
    optimiser=Optimiser(
        lr=1e-4 * 4096 / 256, batch=4096, betas=(0.9, 0.95), weight_decay=0.3, warmup=20 / 300,
        min_lr=1e-5 / 1.6e-3, drop_path=0.1,
    ),
    crop=Crop(scale=(0.08, 1.0)),
)

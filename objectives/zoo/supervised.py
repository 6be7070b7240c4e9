"""Supervised baseline: the class label of the picture, from scratch.

    bench run --objective supervised --tasks all

The recipe is DeiT's (2012.12877, table 9; facebookresearch/deit `main.py`), one for widths of 192, 384 and 768: base
rate 5e-4 x batch/512 at batch 1,024, AdamW's own betas (.9, .999), weight decay .05, 5 of 300 epochs of warm-up, cosine
to 1e-5, label smoothing .1, drop path .1.

Ours differs: no mixup, cutmix, erasing, RandAugment or repeated augmentation (they pay off over hundreds of epochs, not
over the small suites' budgets), so the `paper` suite's figure will lie below the published 81.8; the tokens' mean feeds
the classifier, not a class token. Version 1 was MAE's from-scratch recipe, whose rate, carried from ViT-B to a narrow
backbone, is so high that the classes were not learnt at all.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="supervised",
    summary="class labels, cross-entropy (baseline)",
    paper="2012.12877",
    corruption={"type": "Clean"},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "Labels"},
    normalisation={"type": "NoNorm"},
    head={"type": "ClassifierHead"},
    loss={"type": "CrossEntropy", "label_smoothing": 0.1, "region": "picture"},
    optimiser=Optimiser(
        lr=5e-4 * 1024 / 512, batch=1024, width=(192, 768), warmup=5 / 300, min_lr=1e-5 / 1e-3, drop_path=0.1
    ),
    crop=Crop(scale=(0.08, 1.0)),
    version=2,
)

"""BEiT (2106.08254): masked tokens predict the ids that a discrete VAE gives the picture's patches.

    bench run --objective beit --tasks all

The authors (microsoft/unilm: beit): block-wise mask of 75 of 196 patches, learned mask token, ids of DALL-E's
tokenizer (8192 codes) on a view of half the size; the backbone's last norm, one linear layer, cross-entropy on masked
patches; ViT-B, 800 epochs, batch 2048.

Ours differs: the tokenizer is a small discrete VAE of 512 codes that the suite trains on its own pictures, once for all
seeds, at the student's size (`objective.teacher.weights=FILE` takes one trained so elsewhere, together with
`objective.teacher.type=DallETokenizer` DALL-E's encoder, see objectives/published.py); its views come on top of
the budget's pictures (`tokenizer` in backbone.json), where the authors' was trained elsewhere; the mask always hides
the exact number, where theirs may stop earlier (`objective.corruption.exact=False`); absolute positions of the suite's
ViT instead of shared relative ones; no layer scale (beitv2.py names the settings of the authors' network); flips and
crops but no colour jitter; ImageNet's mean and deviation.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="beit",
    summary="masked tokens predict the ids of a discrete VAE",
    paper="2106.08254",
    corruption={"type": "BlockMask", "ratio": 75 / 196},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "DiscreteVAE", "codes": 512, "steps": 400},
    normalisation={"type": "NoNorm"},
    head={"type": "LinearHead"},
    loss={"type": "TokenCrossEntropy", "region": "masked"},
    optimiser=Optimiser(lr=1.5e-3, batch=2048, warmup=10 / 800, min_lr=1e-5 / 1.5e-3, clip=3.0, drop_path=0.1),
    crop=Crop(scale=(0.08, 1.0)),
)

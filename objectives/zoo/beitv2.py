"""BEiT v2 (2208.06366): masked tokens predict the ids of a tokenizer that was distilled from a frozen teacher.

    bench run --objective beitv2 --tasks all

The authors (microsoft/unilm: beit2): block-wise mask of exactly 75 of 196 patches, learned mask token, ids of VQ-KD
(8192 unit codes of 32 channels, CLIP-B/16 as teacher); one linear layer, cross-entropy on masked patches, summed with
that of a second path: the final class token and block 9's patches through two blocks more, same norm, same linear
layer. ViT-B, 300 epochs, batch 2048, no drop path (1600 epochs: `optimiser.betas=(0.9,0.999)`,
`optimiser.drop_path=0.1`, and about `objective.student.drop_path=0.1` for the second path, whose blocks have the rates
of blocks 10 and 11).

Ours differs: VQ-KD is a small one of 512 codes that the suite trains on its own pictures, once for all seeds, with
EfficientNet-Lite0 as teacher (`objective.teacher.source=timm:vit_base_patch16_clip_224` takes CLIP,
`objective.teacher.weights=FILE` a tokenizer trained so elsewhere, together with
`objective.teacher.type=BEiTv2Tokenizer` the authors' own, see objectives/published.py); its views come on top of
the budget's pictures (`tokenizer` in backbone.json), as the authors' 100 epochs do; absolute positions of the suite's
ViT instead of relative ones that the blocks of both paths share; no layer scale (the authors' network:
`suite.model=beit_base_patch16_224 suite.kwargs.use_rel_pos_bias=False suite.kwargs.use_shared_rel_pos_bias=True
suite.kwargs.use_fc_norm=False`); flips and crops but no colour jitter.
"""

from objectives.recipe import Crop, Optimiser, Recipe

recipe = Recipe(
    name="beitv2",
    summary="masked tokens and class token predict the ids of a distilled tokenizer",
    paper="2208.06366",
    corruption={"type": "BlockMask", "ratio": 75 / 196},
    student={"type": "TwoPathStudent", "early": 0.75, "blocks": 2},
    teacher={"type": "VQKD", "source": "efficientnet-lite0", "codes": 512, "steps": 400},
    normalisation={"type": "NoNorm"},
    head={"type": "LinearHead", "paths": 2},
    loss={"type": "TokenCrossEntropy", "region": "masked"},
    optimiser=Optimiser(
        lr=1.5e-3, batch=2048, betas=(0.9, 0.98), warmup=10 / 300, min_lr=1e-5 / 1.5e-3, clip=3.0
    ),
    crop=Crop(scale=(0.2, 1.0)),
)

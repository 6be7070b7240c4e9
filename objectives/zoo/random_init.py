"""Random initialisation: timm's own, untouched. The floor that every objective has to beat.

    bench run --objective random_init --tasks all

Frozen protocols train the same heads, with the same budget and search, on its features; `finetune` is training from
scratch. It costs no pre-training.
"""

from objectives.recipe import Optimiser, Recipe

recipe = Recipe(
    name="random_init",
    summary="the backbone as initialised, no pre-training (baseline)",
    paper="-",
    corruption={"type": "Clean"},
    student={"type": "MaskTokenStudent"},
    teacher={"type": "NoTeacher"},
    normalisation={"type": "NoNorm"},
    head={"type": "NoHead"},
    loss={"type": "NoLoss"},
    optimiser=Optimiser(lr=0.0, batch=1),
    trains=False,
)

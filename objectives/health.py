"""Whether a pre-training went wrong without an error: its features collapsed, or its loss never left chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from objectives.objective import resize
from objectives.pictures.source import Source

PICTURES = 64  # at most
COLLAPSED = 0.05  # of the value at initialisation; our choice: trained backbones of the suites keep a seventh and more
AT_CHANCE = 0.98  # of the loss at chance, our choice: 2.26 of ln 10, where the hits have risen from 10 to 15 %
_NAMES = {
    "effective_rank": "effective rank", "within_std": "spread of tokens within a picture",
    "between_std": "spread of a place's token over pictures",
}


@torch.no_grad()
def feature_health(backbone: nn.Module, pictures: Source, input_size: int) -> dict[str, float]:
    """:func:`health` of the last layer's tokens of up to :data:`PICTURES` pictures, on the CPU."""
    training = backbone.training
    backbone.eval()
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1)
    images = pictures.squares(torch.arange(min(PICTURES, len(pictures))), input_size).contiguous()
    x = resize((images.float() / 255 - mean) / std, input_size)
    feature = backbone.forward_features(x)
    backbone.train(training)
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    return health(feature[:, prefix:] if feature.ndim == 3 else feature.flatten(1, 2))


def health(maps: Tensor) -> dict[str, float]:
    """Numbers of the tokens (B, L, D) of B pictures; all but the first in the unit of the features.

    * ``effective_rank``: exp of the entropy of the normalised singular values of the centred tokens (Roy & Vetterli,
      2007): 1 when all tokens lie on a line, at most D.
    * ``token_std``: standard deviation over all tokens of all pictures, mean over channels.
    * ``within_std``: over a picture's tokens, mean over channels and pictures; 0 when a picture's tokens are alike.
    * ``between_std``: over the pictures' tokens at one place, mean over channels and places; 0 when the features do
      not depend on the picture.
    """
    tokens = maps.flatten(0, 1)
    tokens = tokens - tokens.mean(0)
    values = torch.linalg.svdvals(tokens.double())
    share = values / values.sum().clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    return {
        "effective_rank": round(float(entropy.exp()), 3), "token_std": round(float(tokens.std(0).mean()), 6),
        "within_std": round(float(maps.double().std(1, correction=0).mean()), 6),
        "between_std": round(float(maps.double().std(0, correction=0).mean()), 6),
    }


def collapse(found: Mapping[str, float], start: Mapping[str, float]) -> str | None:
    """Why features have collapsed, in one line; None where they have not.

    They have where one of the numbers, but for ``token_std``, is below :data:`COLLAPSED` of that of the same network
    at its initialisation, with the same pictures.
    """
    lost = [
        f"{name} {found[key]:.3g}, at initialisation {start[key]:.3g}"
        for key, name in _NAMES.items() if not found[key] >= COLLAPSED * start[key]
    ]
    return "; ".join(lost) or None


def untaught(losses: Sequence[float], chance: float) -> str | None:
    """Why nothing was learned, in one line: the last tenth of ``losses`` stayed at that of chance; None otherwise."""
    last = losses[-max(1, len(losses) // 10) :]
    found = sum(last) / len(last)
    if found < AT_CHANCE * chance:
        return None
    return f"the loss ended at {found:.3g}, that of guessing is {chance:.3g}"

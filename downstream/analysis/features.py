"""Signs of collapse and of detail in feature maps, from running sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIGH = 0.25  # cycles per token: half of the highest frequency that a grid of tokens can carry along one axis


class RunningMoments:
    """Mean and scatter of tokens over all pictures, merged batch by batch (Chan, Golub & LeVeque, 1979).

    Needs D² numbers for width D, whatever the pictures; in float64, since rounding in float32 looks like directions.
    """

    def __init__(self) -> None:
        self.tokens = self.pictures = 0
        self.mean = self.scatter = self.picture_scatter = torch.zeros(())

    def add(self, maps: Tensor) -> None:
        """Feature maps (B, D, h, w)."""
        tokens = maps.flatten(2).transpose(1, 2).double()  # (B, L, D)
        means = tokens.mean(1)  # (B, D)
        mean = means.mean(0)
        centred = (tokens - mean).flatten(0, 1)
        scatter = centred.T @ centred
        between = ((means - mean) ** 2).sum(0)
        count, pictures = centred.shape[0], tokens.shape[0]
        if not self.tokens:
            self.mean, self.scatter, self.picture_scatter = mean, scatter, between
        else:
            gap, total = mean - self.mean, self.tokens + count
            self.scatter = self.scatter + scatter + gap[:, None] * gap * (self.tokens * count / total)
            self.picture_scatter = self.picture_scatter + between + gap**2 * (
                self.pictures * pictures / (self.pictures + pictures)
            )
            self.mean = self.mean + gap * (count / total)
        self.tokens, self.pictures = self.tokens + count, self.pictures + pictures

    def result(self) -> dict[str, float]:
        """Numbers of one layer.

        * ``variance``: of a token's channel over all tokens of all pictures (divisor n), mean over channels.
        * ``within``: its share, 0 to 1, between tokens of one picture; the rest lies between pictures' means. 0 when
          a picture's tokens are all alike, 1 when pictures differ in no mean. 0 without any variance.
        * ``effective_rank``: exp of the entropy of the normalised singular values of the centred tokens (Roy &
          Vetterli, "The effective rank", 2007): from 1, all tokens on a line, to D; 0 when tokens are all equal.
        """
        variance = float(self.scatter.diagonal().mean()) / self.tokens
        between = float(self.picture_scatter.mean()) / self.pictures
        values = torch.linalg.eigvalsh(self.scatter).clamp(min=0)
        values = torch.where(values > values.max() * 1e-12, values, 0.0).sqrt()  # below: rounding, no direction
        total = float(values.sum())
        share = values / total if total > 0 else values
        entropy = float(torch.special.entr(share).sum())
        return {
            "variance": variance, "within": min(1.0, max(0.0, 1 - between / variance)) if variance > 0 else 0.0,
            "effective_rank": math.exp(entropy) if total > 0 else 0.0,
        }


class RunningSpectrum:
    """Fourier power and log amplitude of feature maps: h × w numbers each, whatever the pictures."""

    def __init__(self) -> None:
        self.count = 0
        self.power = self.log_amplitude = torch.zeros(())

    def add(self, maps: Tensor) -> None:
        """Feature maps (B, D, h, w)."""
        amplitude = torch.fft.fft2(maps.float(), norm="ortho").abs().flatten(0, 1)
        self.power = self.power + amplitude.square().sum(0, dtype=torch.float64)
        self.log_amplitude = self.log_amplitude + amplitude.clamp(min=1e-12).log().sum(0, dtype=torch.float64)
        self.count += maps.shape[0] * maps.shape[1]

    def result(self, cutoff: float = HIGH) -> dict[str, float | None]:
        """Numbers of one layer; None where the map is a single token.

        * ``high_frequency_share``: share, 0 to 1, of the power at √(fx² + fy²) ≥ ``cutoff`` cycles per token, the
          mean of the map (frequency 0) left out; white noise has the share of bins that lie there.
        * ``relative_log_amplitude``: mean ln amplitude at the highest frequency of the diagonal minus that at
          frequency 0 (Park & Kim, "How Do Vision Transformers Work?", ICLR 2022, figure 2): the lower, the smoother.
        """
        h, w = self.power.shape
        if h * w == 1:
            return {"high_frequency_share": None, "relative_log_amplitude": None}
        radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)[None])
        high = radius >= cutoff - 1e-9
        power = self.power.cpu().clone()
        power[0, 0] = 0
        total = float(power.sum())
        log = self.log_amplitude.cpu() / self.count
        return {
            "high_frequency_share": min(1.0, float(power[high].sum()) / total) if total > 0 else 0.0,
            "relative_log_amplitude": float(log[h // 2, w // 2] - log[0, 0]),
        }

"""Tokenizers as teachers: the clean picture -> an id per token (B, L), from a codebook that the suite learns first.

They are trained once, on the suite's own pictures, before pre-training begins (:meth:`Tokenizer.prepare`), and then
stay frozen. Seeds of an objective share the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from objectives.files import contents, spent
from objectives.frozen import FrozenNetwork, load_strictly, read_weights
from objectives.precision import exact
from objectives.recipe import ObjectiveError
from objectives.registry import TEACHERS, Geometry
from objectives.student import sincos_positions
from objectives.teacher import Progress, Teacher, Views

VERSION = 1  # raised when the same settings would train another tokenizer
SEED = 0  # of weights and noise; the same for every seed of an objective
BATCH = 64  # views per step, and pictures per batch when codes are counted
MIN_PERPLEXITY, MIN_SHARE = 2.0, 0.02  # below either, the codebook has collapsed: there is nothing to tell apart
WARMUP = 0.05  # share of the steps over which the learning rate rises linearly; a cosine to 0 follows


@contextmanager
def _fixed_noise() -> Iterator[None]:
    """The global generator at :data:`SEED` inside, as it was outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


class IdTeacher(Teacher, ABC):
    """An id per token from a codebook. Subclasses give ``logits`` and set ``ready`` in :meth:`prepare`.

    Args:
        geometry: of the student; there is one id for each of its tokens, L = grid².
        codes: entries of the codebook, ids lie in [0, codes).

    Attributes:
        counts: how often each code stands for a token of the pictures, undistorted, int64 (codes,).

    Raises:
        ObjectiveError: on the call, a tokenizer that was not prepared or a view of another size.
    """

    cacheable = True
    discrete = True

    def __init__(self, geometry: Geometry, codes: int) -> None:
        super().__init__()
        self.geometry, self.width, self.codes, self.ready = geometry, codes, codes, False
        self.register_buffer("counts", torch.zeros(codes, dtype=torch.int64))

    @property
    def name(self) -> str:
        """As a recipe names it."""
        return f"objective.teacher.type={type(self).__name__}"

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Normalised views (B, 3, S, S) -> how well each code fits each token (B, L, codes)."""

    def tokenize(self, images: Tensor) -> Tensor:
        """Normalised views (B, 3, S, S) -> ids (B, L), int64; prepared or not."""
        with torch.no_grad(), exact(images.device):
            return self.logits(images.float()).argmax(-1)

    def picture(self, ids: Tensor) -> Tensor | None:
        """Ids (B, L) -> ImageNet-normalised pictures (B, 3, S, S); None where the codes stand for no pixels."""
        return None

    def rehearse(self) -> None:
        self.ready = True

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if not self.ready:
            raise ObjectiveError(f"{self.name} is untrained; call objectives.pretrain.prepare first")
        if images.shape[-1] != self.geometry.input_size:
            raise ObjectiveError(f"{self.name} needs views of the student's size; the corruption must not zoom")
        return self.tokenize(images)

    def train(self, mode: bool = True) -> IdTeacher:
        return super().train(False)

    @property
    def used(self) -> int:
        """Codes that stand for at least one token."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """exp of the entropy of the codes' use: ``codes`` where all are used alike, 1 where one is used."""
        share = self.counts.double() / self.counts.sum().clamp(min=1)
        return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))

    def about(self) -> dict[str, dict[str, object]]:
        return {"tokenizer": {"codes": self.codes, "used": self.used, "perplexity": round(self.perplexity, 2)}}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _count(self, views: Views, device: str) -> None:
        total = torch.zeros(self.codes, dtype=torch.int64)
        for images in views.whole(BATCH):
            total += torch.bincount(self.tokenize(images.to(device)).flatten().cpu(), minlength=self.codes)
        self.counts.copy_(total)


class Tokenizer(IdTeacher):
    """One that the suite trains. Subclasses build their network in ``_build`` and give ``logits``, ``step_loss``,
    ``reconstruction``.

    Args:
        geometry, codes: see :class:`IdTeacher`.
        steps: of its training, with :data:`BATCH` views each.
        lr: peak learning rate of AdamW.
        weights: a safetensors file of the same tokenizer, loaded instead of training.

    Raises:
        ObjectiveError: fewer than two codes, no steps; on :meth:`prepare`, weights that are missing or do not fit,
            or a collapsed codebook; on the call, as :class:`IdTeacher`.
    """

    batches: int | None = None  # how many different batches the training goes through; None: a new one each step

    def __init__(self, geometry: Geometry, codes: int, steps: int, lr: float, weights: str | None) -> None:
        if codes < 2 or steps < 1:
            raise ObjectiveError(f"objective.teacher: codes={codes} and steps={steps}; at least 2 codes and 1 step")
        super().__init__(geometry, codes)
        self.steps, self.lr, self.weights = steps, lr, weights
        with _fixed_noise():
            self._build()
        self.requires_grad_(False)

    @abstractmethod
    def _build(self) -> None:
        """Make the network, from the global generator."""

    def settings(self) -> dict[str, object]:
        """What, beside the pictures, decides the trained tokenizer."""
        return {"type": type(self).__name__, "version": VERSION, "codes": self.codes, "steps": self.steps,
                "lr": self.lr, "batch": BATCH, "input_size": self.geometry.input_size, "stride": self.geometry.stride}

    @abstractmethod
    def step_loss(self, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
        """The training loss (scalar) of a batch of views at step ``step``, counted from 0."""

    @abstractmethod
    def reconstruction(self, images: Tensor) -> Tensor:
        """How far the decoded ids are from what the tokenizer should keep of the views: a scalar, 0 is perfect."""

    def about(self) -> dict[str, dict[str, object]]:
        """Its codes, and its training, which is no part of the budget: views drawn, the same ones again counted too."""
        trained = {"images_seen": 0 if self.weights is not None else self.steps * BATCH}
        return {"tokenizer": {**super().about()["tokenizer"], **trained}}

    def prepare(self, views: Views, device: str, cache: Path | None, progress: Progress) -> None:
        path = None
        if self.weights is not None:
            load_strictly(self, read_weights(Path(self.weights)), self.weights)
            self.to(device)
            self._count(views, device)
        else:
            if cache is not None:
                path = self._place(views, device, cache)
            if path is None or not self._load(path):
                started = time.time()
                self.to(device)
                self._fit(views, device, progress)
                self._count(views, device)
                self.seconds = {"tokenizer": round(time.time() - started, 2)}
                if path is not None:
                    self._save(path)
            self.to(device)
        if self.perplexity < MIN_PERPLEXITY or self.used < MIN_SHARE * self.codes:
            raise ObjectiveError(
                f"{self.name}: the codebook collapsed ({self.used} of {self.codes} codes used, "
                f"perplexity {self.perplexity:.1f}); raise objective.teacher.steps, or change its lr or codes"
            )
        self.ready = True

    def recall(self, views: Views, trained_on: str, cache: Path, progress: Progress) -> None:
        if self.weights is not None:
            super().recall(views, trained_on, cache, progress)
            return
        path = self._place(views, trained_on, cache)
        try:
            self.load_state_dict(load_file(path))
        except Exception as error:  # missing or damaged
            raise ObjectiveError(
                f"{self.name}: the tokenizer that was trained on {torch.device(trained_on).type} cannot be read from "
                f"{path} ({type(error).__name__}); name the folder that has it by BENCH_CACHE, or train here anew"
            ) from error
        self.ready = True

    def _place(self, views: Views, device: str, cache: Path) -> Path:
        """Where it is kept once it is trained; the device counts: its rounding gives another tokenizer."""
        key = json.dumps([self.settings(), views.key, torch.device(device).type], sort_keys=True)
        return cache / f"tokenizer-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"

    def _fit(self, views: Views, device: str, progress: Progress) -> None:
        generator = torch.Generator(device).manual_seed(SEED)
        self.requires_grad_(True)
        # betas and decay: VQ-KD's (microsoft/unilm: beit2/TOKENIZER.md); clip: of the BEiT family's pre-training
        optimiser = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], betas=(0.9, 0.99),
                                      weight_decay=1e-4)
        warmup = max(1, round(WARMUP * self.steps))
        with _fixed_noise():
            for step in range(self.steps):
                rise = min(1.0, (step + 1) / warmup)
                fall = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, self.steps - warmup)))
                optimiser.param_groups[0]["lr"] = self.lr * rise * fall
                images = views.draw(step % (self.batches or self.steps), BATCH).to(device)
                loss = self.step_loss(images, step, generator)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters(), 3.0)
                optimiser.step()
                if (step + 1) % 10 == 0 or step + 1 == self.steps:
                    if not math.isfinite(loss.item()):
                        raise ObjectiveError(
                            f"{self.name}: the tokenizer's loss is {loss.item()} at step {step + 1} of "
                            f" {self.steps}; lower objective.teacher.lr"
                        )
                    progress("tokenizer", step + 1, self.steps)
        optimiser.zero_grad()
        self.requires_grad_(False)

    def _load(self, path: Path) -> bool:
        if not path.is_file():
            return False
        try:
            self.load_state_dict(load_file(path))
            self.seconds = spent(path, "tokenizer")
        except Exception as error:  # a damaged cache file costs its training, not the run; say so and train again
            print(f"tokenizer {path} cannot be read ({type(error).__name__}); training it again", file=sys.stderr)
            with _fixed_noise():
                self._build()
            return False
        return True

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self.state_dict().items()}
        save_file(state, temporary, {"seconds": str(self.seconds["tokenizer"])})
        os.replace(temporary, path)


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Unit vectors (…, W) -> index of the nearest of the unit vectors (K, W), int64 (…); nearest is most alike."""
    return (vectors @ codebook.t()).argmax(-1)


def spherical_kmeans(vectors: Tensor, count: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """Unit vectors (N, W) -> ``count`` unit centres (count, W); a centre that nothing is near to stays where it is."""
    order = torch.randperm(len(vectors), generator=generator, device=vectors.device)
    centres = vectors[order.repeat(-(-count // len(vectors)))[:count]].clone()
    for _ in range(rounds):
        centres = _towards(centres, vectors, nearest(vectors, centres), 0.0)
    return centres


def _towards(centres: Tensor, vectors: Tensor, ids: Tensor, decay: float) -> Tensor:
    """Each centre moved to ``decay`` · itself + (1 - decay) · mean direction of its vectors, of unit length."""
    total = torch.zeros_like(centres).index_add_(0, ids, vectors)
    moved = F.normalize(decay * centres + (1 - decay) * F.normalize(total, dim=-1), dim=-1)
    return torch.where((total != 0).any(-1, keepdim=True), moved, centres)


class _Residual(nn.Module):
    """x + two 3x3 convolutions of it, (B, W, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@TEACHERS.register_module()
class DiscreteVAE(Tokenizer):
    """BEiT's tokenizer (2106.08254): DALL-E's discrete VAE (2102.12092) in small.

    Residual convolutions at twice the token grid and at the grid give each token logits over the codes; a
    Gumbel-softmax sample mixes the codes, the mirrored network decodes them. Loss: squared error of the normalised
    pixels + ``kl`` · KL of the codes' use to the uniform distribution, in nats. The sample's temperature falls from 1
    to 1/16 along a cosine, as in DALL-E (appendix A.2, there over 150,000 updates, here over the whole training).

    Ours, so that a few hundred steps suffice: the logits are ``sharpness`` · cosine of a vector and the codes that the
    decoder reads (DALL-E's encoder ends in free logits), the codes begin as the first batch's k-means centres, and the
    KL is that of the batch's mean distribution, not each token's: a token may be certain, the codebook must be used
    (the split of Hoffman & Johnson, "ELBO surgery", 2016). With free logits and each token's KL, 5 codes were in use
    after 100 steps on Tiny-ImageNet; thus, after 50, some 270 of 512 by perplexity and half the squared error.

    Args:
        codes: 512 here, for suites of a few thousand small pictures; 8192 in the paper.
        steps, lr: of its training, a minute or two on one core for 64-pixel pictures. DALL-E: 3,000,000 steps, 1e-4.
        kl, sharpness, code_width: chosen on Tiny-ImageNet by perplexity and squared error, as above.
        channels: at the token grid; half of them at twice the grid.
        weights: see :class:`Tokenizer`.

    Target: ids (B, L), int64.
    """

    def __init__(
        self, geometry: Geometry, codes: int = 512, steps: int = 400, lr: float = 2e-3, kl: float = 0.1,
        sharpness: float = 20.0, code_width: int = 16, channels: int = 64, weights: str | None = None,
    ) -> None:
        self.kl, self.sharpness, self.code_width, self.channels = kl, sharpness, code_width, channels
        super().__init__(geometry, codes, steps, lr, weights)

    def settings(self) -> dict[str, object]:
        return {**super().settings(), "kl": self.kl, "sharpness": self.sharpness, "code_width": self.code_width,
                "channels": self.channels}

    def _build(self) -> None:
        ratio = 2 if self.geometry.stride % 2 == 0 else 1  # an odd patch goes to the grid at once
        fold, wide, code = self.geometry.stride // ratio, self.channels, self.code_width
        narrow = wide // 2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(fold), nn.Conv2d(3 * fold**2, narrow, 1), _Residual(narrow),
            nn.Conv2d(narrow, wide, ratio, stride=ratio), _Residual(wide), nn.ReLU(), nn.Conv2d(wide, code, 1),
        )
        self.codebook = nn.Parameter(F.normalize(torch.randn(self.codes, code), dim=-1))
        self.decoder = nn.Sequential(
            nn.Conv2d(code, wide, 1), _Residual(wide), nn.ConvTranspose2d(wide, narrow, ratio, stride=ratio),
            _Residual(narrow), nn.ReLU(), nn.Conv2d(narrow, 3 * fold**2, 1), nn.PixelShuffle(fold),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Normalised views (B, 3, S, S) -> unit vectors (B, L, code_width)."""
        return F.normalize(self.encoder(images).flatten(2).transpose(1, 2), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        return self.sharpness * self.encode(images) @ F.normalize(self.codebook, dim=-1).t()

    def decode(self, mixture: Tensor) -> Tensor:
        """Shares of the codes (B, L, codes) -> pictures (B, 3, S, S), ImageNet-normalised."""
        code = mixture @ F.normalize(self.codebook, dim=-1) * self.code_width**0.5  # of deviation 1
        return self.decoder(code.transpose(1, 2).unflatten(2, (self.geometry.grid,) * 2))

    def step_loss(self, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
        if step == 0:
            with torch.no_grad():
                self.codebook.copy_(spherical_kmeans(self.encode(images).flatten(0, 1), self.codes, generator))
        temperature = 1 / 16 + (1 - 1 / 16) * 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps - 1)))
        logits = self.logits(images)
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(1e-9, 1 - 1e-7)
        noise = uniform.log_().neg_().log_().neg_()  # Gumbel
        reconstructed = self.decode(((logits + noise) / temperature).softmax(-1))
        use = logits.softmax(-1).mean((0, 1))
        divergence = (use * use.clamp(min=1e-9).log()).sum() + math.log(self.codes)
        return F.mse_loss(reconstructed, images) + self.kl * divergence

    @torch.no_grad()
    def reconstruction(self, images: Tensor) -> Tensor:
        return F.mse_loss(self.picture(self.tokenize(images)), images)

    def picture(self, ids: Tensor) -> Tensor:
        return self.decode(F.one_hot(ids, self.codes).float())


class _Transformer(nn.Module):
    """Blocks between two linear layers with fixed positions: (B, L, inputs) -> (B, L, outputs)."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int, grid: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.blocks = nn.Sequential(*[Block(width, max(1, width // 32), qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(self.norm(self.blocks(self.embed(x) + self.positions)))


@TEACHERS.register_module()
class VQKD(Tokenizer):
    """BEiT v2's tokenizer (2208.06366): vector-quantised knowledge distillation.

    A small transformer maps each patch to a vector of unit length; the nearest of the codebook's unit vectors stands
    for it (straight-through); a decoder predicts the frozen teacher's features from the codes. Loss: 1 - cosine, plus
    ``commitment`` · squared distance to the code. The codebook begins as the first batch's k-means centres (10 rounds)
    and follows by moving averages (``microsoft/unilm: beit2/norm_ema_quantizer.py``, facts only). Ours: every 25 steps
    of the first four fifths, codes that no view chose are put on vectors of the batch at hand.

    Args:
        source, source_weights: the frozen teacher, as in :class:`~objectives.frozen.FrozenNetwork`; CLIP-B/16 in the
            paper.
        codes: 512 here, for suites of a few thousand small pictures; 8192 in the paper.
        code_width: 32 in the paper.
        width, encoder_depth, decoder_depth: 768, 12 and 1 or 3 in the authors' models.
        steps, lr: of its training, some two minutes on one core for 64-pixel pictures; 100 epochs of ImageNet in the
            authors' example, whose learning rate is not said there.
        views: different views that it is trained on, again and again: the frozen teacher is most of the cost, and sees
            each once. Rounded up to whole batches of :data:`BATCH`.
        decay, commitment: .99 and 1 in the paper's code.
        weights: see :class:`Tokenizer`.

    Target: ids (B, L), int64.
    """

    REVIVE = 25

    def __init__(
        self, geometry: Geometry, source: str = "efficientnet-lite0", source_weights: str | None = None,
        codes: int = 512, code_width: int = 32, width: int = 96, encoder_depth: int = 2, decoder_depth: int = 1,
        steps: int = 400, lr: float = 1e-3, views: int = 2048, decay: float = 0.99, commitment: float = 1.0,
        weights: str | None = None,
    ) -> None:
        self.source, self.source_weights, self.code_width, self.channels = source, source_weights, code_width, width
        self.depths, self.decay, self.commitment = (encoder_depth, decoder_depth), decay, commitment
        self.batches = max(1, -(-views // BATCH))
        self.wanted: dict[int, Tensor] = {}  # the frozen teacher's features of each batch, while training
        # in a list: not a part of the tokenizer's weights
        self.frozen = [FrozenNetwork(geometry, source, source_weights)]
        super().__init__(geometry, codes, steps, lr, weights)

    def settings(self) -> dict[str, object]:
        files = contents({"source": self.source, "source_weights": self.source_weights})
        return {**super().settings(), **({"files": files} if files else {}), "source": self.source,
                "source_weights": self.source_weights, "code_width": self.code_width, "width": self.channels,
                "depths": self.depths, "decay": self.decay, "batches": self.batches, "commitment": self.commitment}

    def _build(self) -> None:
        grid, patch = self.geometry.grid, self.geometry.stride
        self.fold = nn.PixelUnshuffle(patch)
        self.encoder = _Transformer(3 * patch**2, self.channels, self.depths[0], self.code_width, grid)
        self.decoder = _Transformer(self.code_width, self.channels, self.depths[1], self.frozen[0].width, grid)
        self.register_buffer("codebook", F.normalize(torch.randn(self.codes, self.code_width), dim=-1))
        self.register_buffer("recent", torch.zeros(self.codes, dtype=torch.bool), persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Normalised views (B, 3, S, S) -> unit vectors (B, L, code_width)."""
        return F.normalize(self.encoder(self.fold(images).flatten(2).transpose(1, 2)), dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        return self.encode(images) @ self.codebook.t()

    def _fit(self, views: Views, device: str, progress: Progress) -> None:
        super()._fit(views, device, progress)
        self.wanted.clear()
        self.frozen[0].to("cpu")

    def _features(self, images: Tensor) -> Tensor:
        return self.frozen[0].to(images.device)(images, None)

    def _distance(self, codes: Tensor, wanted: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(self.decoder(codes), wanted, dim=-1)).mean()

    def step_loss(self, images: Tensor, step: int, generator: torch.Generator) -> Tensor:
        vectors = self.encode(images)
        flat = vectors.detach().flatten(0, 1)
        if step == 0:
            self.codebook.copy_(spherical_kmeans(flat, self.codes, generator))
        ids = nearest(flat, self.codebook)
        codes = self.codebook[ids].view_as(vectors)
        batch = step % self.batches
        if batch not in self.wanted:
            self.wanted[batch] = self._features(images).half()  # the rounding, 2^-11, is far below the loss
        loss = self._distance(vectors + (codes - vectors).detach(), self.wanted[batch].float())
        loss = loss + self.commitment * F.mse_loss(vectors, codes)
        self._follow(flat, ids, step, generator)
        return loss

    @torch.no_grad()
    def _follow(self, vectors: Tensor, ids: Tensor, step: int, generator: torch.Generator) -> None:
        self.codebook.copy_(_towards(self.codebook, vectors, ids, self.decay))
        self.recent[ids] = True
        if (step + 1) % self.REVIVE == 0:
            dead = torch.nonzero(~self.recent).squeeze(1)
            if step < 0.8 * self.steps and len(dead):
                chosen = torch.randint(len(vectors), (len(dead),), generator=generator, device=vectors.device)
                self.codebook[dead] = vectors[chosen]
            self.recent.zero_()

    @torch.no_grad()
    def reconstruction(self, images: Tensor) -> Tensor:
        return self._distance(self.codebook[self.tokenize(images)], self._features(images))

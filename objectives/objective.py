"""An objective at work: the six parts of a recipe put together around a backbone, as an mmengine model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from mmengine.dist import is_main_process
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from objectives.backbone import create_backbone, geometry_of, has_class_token, prefix_of
from objectives.corruption import Seen
from objectives.head import LightDecoder
from objectives.patches import at, places_of
from objectives.pictures.augment import finish
from objectives.precision import exact, sent
from objectives.processes import alone, anywhere, average_gradients, draw, gather, mixes, share, weight
from objectives.recipe import Crop, ObjectiveError
from objectives.registry import build
from objectives.student import VisibleStudent

T = TypeVar("T")


class _Placed(BaseDataPreprocessor):
    """A batch on the device, but for its places in the data, which are looked up on the processor."""

    def forward(self, data: dict[str, Tensor], training: bool = False) -> dict[str, Tensor]:
        return {**self.cast_data(data), "index": data["index"]}


class Objective(BaseModel):
    """``loss = L(N(T(x)), H(S(C(x))))``.

    Args:
        slots: the recipe's six parts, ``{"corruption": {"type": …}, …}``.
        model, kwargs: the backbone, as timm names it.
        input_size: side of the student's picture, in pixels.
        crop: RandomResizedCrop and flip; with ``fixed_crop`` only the flip.
        drop_path, num_classes, decoder: see ``recipe.Optimiser`` and ``registry.Geometry``.

    Raises:
        ObjectiveError: the parts do not fit each other or the backbone.
    """

    def __init__(
        self, slots: Mapping[str, Mapping[str, Any]], model: str, kwargs: Mapping[str, Any], input_size: int,
        crop: Crop, fixed_crop: bool = False, drop_path: float = 0.0, num_classes: int = 0,
        decoder: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(_Placed(non_blocking=True))  # batches in pinned memory do not wait
        backbone = create_backbone(model, kwargs, drop_path)
        self.geometry = geometry_of(backbone, input_size, num_classes=num_classes, decoder=decoder)
        self.corruption = build("corruption", slots["corruption"], geometry=self.geometry)
        self.student = build("student", slots["student"], backbone=backbone, geometry=self.geometry)
        self.teacher = build("teacher", slots["teacher"], geometry=self.geometry)
        self.normalisation = build("normalisation", slots["normalisation"])
        if self.teacher.discrete and slots["normalisation"]["type"] != "NoNorm":
            raise ObjectiveError(
                f"objective.normalisation.type={slots['normalisation']['type']} takes continuous targets, but "
                f"objective.teacher.type={slots['teacher']['type']} gives ids; use NoNorm"
            )
        bins = [getattr(part, "bins", None) for part in (self.teacher, self.normalisation)]
        if None not in bins and bins[0] != bins[1]:
            raise ObjectiveError(
                f"objective.normalisation.bins: {bins[1]} of a histogram of {bins[0]}; set it to objective.teacher.bins"
            )
        self.head = build("head", slots["head"], geometry=self.geometry, out_width=self.teacher.width)
        class_token_alone = has_class_token(backbone) and prefix_of(backbone) == 1
        if getattr(self.head, "needs_class_token", False) and not class_token_alone:
            raise ObjectiveError(
                f"objective.head.type={slots['head']['type']} needs a backbone with a class token and no registers"
            )
        self.loss = build("loss", slots["loss"], geometry=self.geometry)
        if isinstance(self.head, LightDecoder):
            self.head.dropped = isinstance(self.student, VisibleStudent)
        if isinstance(self.student, VisibleStudent) and not self.corruption.even:
            raise ObjectiveError(
                "objective.corruption.exact=False hides another number of patches in each picture, but VisibleStudent "
                "takes as many visible tokens of all; choose objective.student.type=MaskTokenStudent"
            )
        self._check_views(slots)
        asked = {name for part in (self.student, self.head, self.loss) for name in getattr(part, "takes", ())}
        self.needs_places = bool(asked & {"visible", "hidden"})
        self.economical = False  # see economise
        self.mixes = mixes(self.student, self.head)
        self.crop, self.fixed_crop, self.view = crop, fixed_crop, self.corruption.view
        self.cropped = False  # whether pictures come cropped already
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1), persistent=False)
        self.generator = torch.Generator()
        self.steps = 1
        self.now = (0, 0)  # seed and step of the last begin_step
        self.pieces = 1  # micro-batches of a step
        self.targets: Tensor | None = None  # (N, 2, L, C) or ids (N, 2, L) of all pictures, plain and flipped

    def _check_views(self, slots: Mapping[str, Mapping[str, Any]]) -> None:
        corruption = f"objective.corruption.type={slots['corruption']['type']}"
        teacher = f"objective.teacher.type={slots['teacher']['type']}"
        if self.teacher.sees == "seen" and not self.corruption.several:
            raise ObjectiveError(
                f"{teacher} looks at two crops of a picture, {corruption} gives one; use TwoViews or MultiCrop"
            )
        if self.corruption.several and self.teacher.sees == "clean":
            raise ObjectiveError(
                f"{corruption} gives two crops of a picture, {teacher} looks at the picture; "
                "use MomentumTeacher or CentredTeacher"
            )

    def init_weights(self) -> None:
        """Nothing: the parts initialised themselves from the seed, and mmengine's Runner must not do it again."""

    def economise(self, wanted: bool = True) -> None:
        """Compute no token that the loss does not look at, where every picture hides as many and the parts allow it.

        The student's last block and the head then see masked tokens alone. The loss is the same but for rounding
        (and, where a backbone has dropout, other draws of it).
        """
        parts = (self.student, self.head, self.loss)
        able = self.corruption.hides is not None and all(getattr(part, "narrows", False) for part in parts)
        self.economical = wanted and able and self.loss.region == "masked"

    def begin_step(self, seed: int, step: int) -> None:
        """Every draw of a step depends on (seed, step) alone, so that a resumed run goes on bit-equal."""
        self.now = (seed, step)
        mixed = (seed * 1_000_003 + step) % (2**63)
        self.generator.manual_seed(mixed)
        # drop path draws from the device's global generator; torch.manual_seed would seed those of all other devices
        # as well, and where CUDA sleeps note down each call with its stack
        torch.default_generator.manual_seed(mixed)
        if self.mean.is_cuda:  # of this device, which need not be the current one
            torch.cuda.default_generators[self.mean.device.index].manual_seed(mixed)
        if hasattr(self.head, "begin_step"):
            self.head.begin_step(step, self.steps)

    def augment(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, S, S) -> normalised views (B, 3, V, V) and which were flipped (B,), on the processor."""
        flip = torch.zeros(len(images), dtype=torch.bool)
        if self.crop.flip:
            flip = draw(lambda count: torch.rand(count, generator=self.generator), len(images)) < 0.5
        if self.cropped:
            return finish(images, sent(flip, images.device), self.mean, self.std), flip
        x = images.float().div_(255).sub_(self.mean).div_(self.std)
        if self.fixed_crop:
            x = resize(x, self.view)
            return torch.where(sent(flip, x.device).view(-1, 1, 1, 1), x.flip(-1), x), flip
        return self._random_resized_crop(x, flip), flip

    def _random_resized_crop(self, x: Tensor, flip: Tensor) -> Tensor:
        """RandomResizedCrop of a batch by one grid_sample: torchvision's distribution, kept inside the picture."""
        low, high = self.crop.scale
        draws = draw(lambda count: torch.rand(count, 4, generator=self.generator), len(x))
        area = low + draws[:, 0] * (high - low)
        log_low, log_high = (torch.log(torch.tensor(r)) for r in self.crop.ratio)
        ratio = torch.exp(log_low + draws[:, 1] * (log_high - log_low))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        centre_x, centre_y = (2 * draws[:, 2] - 1) * (1 - width), (2 * draws[:, 3] - 1) * (1 - height)
        zero = torch.zeros_like(width)
        theta = torch.stack([torch.where(flip, -width, width), zero, centre_x, zero, height, centre_y], 1)
        theta = sent(theta.view(-1, 2, 3), x.device)
        grid = F.affine_grid(theta, [len(x), 3, self.view, self.view], align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def attach(self, steps: int) -> None:
        """Before a training of ``steps`` steps."""
        self.steps = steps
        self.teacher.attach(self.student, self.head, steps)

    def after_step(self, step: int) -> None:
        """After optimiser step ``step`` (counted from 1)."""
        self.teacher.update(self.student, self.head, step)

    @torch.no_grad()
    def raw_target(self, clean: Tensor, labels: Tensor, index: Tensor, flipped: Tensor) -> Tensor:
        """T(x), from the cache where the crops are fixed."""
        if self.targets is not None:
            kept = sent(self.targets[index.cpu(), flipped.long()], clean.device)
            return kept.float() if kept.is_floating_point() else kept.long()
        return self.teacher(clean, labels)

    def forward(  # type: ignore[override]
        self, images: Tensor, labels: Tensor, index: Tensor, mode: str = "loss"
    ) -> dict[str, Tensor]:
        """uint8 pictures (B, 3, S, S), labels (B,) and places in the data (B,) -> ``{"loss": scalar}``.

        The places are on the processor. Within autocast, student, head and moving averages of them compute in its
        type; views, targets and the loss are float32.

        ``mode="tensor"`` gives the parts instead: clean view, what the student sees, small crops (or None),
        mask, target, prediction.
        """
        clean, raw, seen = self._views(images, labels, index)
        target = self._target(raw)
        if mode == "tensor":
            return {"clean": clean, "corrupted": seen.images, "local": seen.local, "mask": seen.mask, "raw": raw,
                    "target": target, "prediction": self._predict(seen)}
        return {"loss": self._loss(seen, target, self._weight(seen))}

    def _views(self, images: Tensor, labels: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Seen]:
        """The clean view, the raw target and what the student sees: all that is drawn at random for the batch."""
        with exact(images.device):
            clean, flipped = self.augment(images)
        of_views = self.teacher.sees == "seen"
        raw = None if of_views else self.raw_target(clean, labels, index, flipped)
        with exact(images.device):
            attention = self.teacher.attention(raw) if self.corruption.attentive else None
            seen = self.corruption(clean, self.generator, attention)
            needed = self.needs_places or self.economical
            if needed and seen.mask is not None and self.corruption.hides is not None:
                visible, hidden = places_of(seen.mask, self.corruption.hides)
                seen = seen._replace(visible=visible, hidden=hidden)
        return clean, self.teacher.of_views(seen) if of_views else raw, seen

    def _target(self, raw: Tensor) -> Tensor:
        with torch.no_grad(), exact(raw.device):
            wanted = self.teacher.to_predict(raw)
            return self.normalisation(wanted.float() if wanted.is_floating_point() else wanted)

    def _predict(self, seen: Seen) -> Tensor:
        tokens = self.student(seen.images, seen.mask, **_more(self.student, seen))
        if seen.local is not None:
            tokens = torch.cat([tokens, self.student(seen.local, None)])
        if self.mixes:
            return share(self.head(gather(tokens), gather(seen.mask), **_more(self.head, seen, gather)))
        return self.head(tokens, seen.mask, **_more(self.head, seen))

    def _predict_masked(self, seen: Seen) -> tuple[Tensor, Seen]:
        """The prediction at masked tokens (B, M, C), and ``seen`` as if there were no others."""
        tokens = self.student(seen.images, seen.mask, only=seen.hidden, **_more(self.student, seen))
        places = torch.arange(seen.hidden.shape[1], device=tokens.device).expand_as(seen.hidden)
        alone = seen._replace(mask=torch.ones_like(places, dtype=torch.bool), hidden=places, visible=places[:, :0])
        return self.head(tokens, alone.mask, **_more(self.head, alone)), alone

    def _loss(self, seen: Seen, target: Tensor, weight: Tensor | float) -> Tensor:
        """Student, head and loss of pictures with their target."""
        # a target that is none of the tokens is for the loss to refuse
        if self.economical and target.ndim > 1 and target.shape[1] == seen.mask.shape[1]:
            target = at(target, seen.hidden)
            prediction, seen = self._predict_masked(seen)
        else:
            prediction = self._predict(seen)
        mask, more = seen.mask, _more(self.loss, seen, gather if self._compares else None)
        if self._compares:
            prediction, target, mask = (gather(part) for part in (prediction, target, mask))
        with exact(prediction.device):
            loss = self.loss(prediction, target, mask, **more)
        return loss if self._compares or not self._only_masked(seen) else loss * weight

    @property
    def _compares(self) -> bool:
        """Whether the loss holds all pictures of a batch against each other."""
        return getattr(self.loss, "compares", not self._apart)

    @property
    def _apart(self) -> bool:
        """Whether the loss of a batch is the mean of those of its parts."""
        where_even = getattr(self.loss, "divisible_where_even", False) and self.corruption.even
        return where_even or getattr(self.loss, "divisible", True)

    def _only_masked(self, seen: Seen) -> bool:
        return seen.mask is not None and self.loss.region == "masked"

    def _weight(self, seen: Seen) -> Tensor | float:
        """What the loss of this process's pictures weighs in the mean of the processes' losses."""
        return weight(seen.mask.sum()) if not self._compares and self._only_masked(seen) else 1.0

    # --- a step that may not fit into memory --------------------------------------------------------------------------

    def train_step(self, data: Mapping[str, Tensor], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One optimiser step. Where the device's memory does not hold the batch, it is made of smaller pieces.

        Draws and targets are those of the whole batch, and each piece's loss weighs as much as it contributes to the
        batch's mean: the gradient is the same, but for drop path, whose draws depend on how the batch is divided.
        Several processes divide alike: as the one whose memory ran out has to.

        Raises:
            ObjectiveError: the pictures of a batch depend on each other, or one picture alone does not fit.
        """
        batch = self.data_preprocessor(dict(data), True)
        while (loss := self._gradients(batch, optim_wrapper)) is None:
            self._halve(len(batch["images"]))
            optim_wrapper.zero_grad()
            self.begin_step(*self.now)
        average_gradients(self)
        optim_wrapper.step()  # outside: a step that runs out of memory half-way could not be made again
        optim_wrapper.zero_grad()
        return {"loss": loss}

    def _gradients(self, batch: Mapping[str, Tensor], optim_wrapper: OptimWrapper) -> Tensor | None:
        """Backward through the batch; its loss, or None where memory ran out, in any process."""
        if not self._divisible or (alone() and self.pieces == 1):
            return _in_memory(lambda: self._at_once(batch, optim_wrapper))
        made = _in_memory(lambda: self._prepared(batch, optim_wrapper))
        if anywhere(made is None):
            return None
        seen, target = made
        weight = self._weight(seen)  # the processes meet here, and must not where memory may run out
        loss = _in_memory(lambda: self._piece_by_piece(seen, target, weight, optim_wrapper))
        return None if anywhere(loss is None) else loss

    def _at_once(self, batch: Mapping[str, Tensor], optim_wrapper: OptimWrapper) -> Tensor:
        with optim_wrapper.optim_context(self):
            loss = self(**batch, mode="loss")["loss"]
        optim_wrapper.backward(loss)
        return loss.detach()

    @torch.no_grad()
    def _prepared(self, batch: Mapping[str, Tensor], optim_wrapper: OptimWrapper) -> tuple[Seen, Tensor]:
        """What is drawn and computed for the whole batch: what the student sees, and the target."""
        with optim_wrapper.optim_context(self):
            _, raw, seen = self._views(**batch)
            return seen, self._target(raw)

    def _piece_by_piece(
        self, seen: Seen, target: Tensor, weight: Tensor | float, optim_wrapper: OptimWrapper
    ) -> Tensor:
        total = torch.zeros((), device=target.device)
        for portion, part, wanted in self._divided(seen, target):
            with optim_wrapper.optim_context(self):
                loss = portion * self._loss(part, wanted, weight)
            optim_wrapper.backward(loss)
            total += loss.detach()
        return total

    def _divided(self, seen: Seen, target: Tensor) -> Iterator[tuple[Tensor, Seen, Tensor]]:
        """The batch in ``pieces`` parts, each with its share in the batch's mean."""
        count = len(seen.images)
        size = -(-count // self.pieces)
        masked = self._only_masked(seen)
        for start in range(0, count, size):
            part = Seen(*(None if value is None else value[start : start + size] for value in seen))
            share = part.mask.sum() / seen.mask.sum() if masked else torch.tensor(len(part.images) / count)
            yield share, part, target[start : start + size]

    @property
    def _divisible(self) -> bool:
        """Whether the pictures of a batch can be taken one part after another."""
        return not self.mixes and self._apart and self.teacher.sees != "seen"

    def _halve(self, count: int) -> None:
        if not self._divisible:
            raise ObjectiveError(
                f"out of memory with {count} pictures a step, and this objective compares the pictures of a batch with "
                "each other, so that they cannot be taken one part after another; lower suite.batch_size"
            )
        if self.pieces >= count:
            raise ObjectiveError("out of memory with one picture at a time; choose a smaller backbone or input size")
        self.pieces *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if is_main_process():
            size = -(-count // self.pieces)
            print(f"out of memory: micro-batches of {size} of {count} pictures, gradients accumulated", file=sys.stderr)


def _in_memory(work: Callable[[], T]) -> T | None:
    """What ``work`` gives, or None where the device's memory ran out."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return None  # and not handled here: the error holds on to the memory that it could not get


def _more(
    part: object, seen: Seen, through: Callable[[Tensor | None], Tensor | None] | None = None
) -> dict[str, Tensor | None]:
    """What a part asks for beside the mask, sent ``through`` a function: ``takes`` names fields of :class:`Seen`."""
    asked = {name: getattr(seen, name) for name in getattr(part, "takes", ())}
    return asked if through is None else {name: through(value) for name, value in asked.items()}


def resize(x: Tensor, size: int) -> Tensor:
    """(B, 3, S, S) -> (B, 3, size, size), averaging where it shrinks."""
    if x.shape[-1] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)

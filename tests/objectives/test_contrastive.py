"""MoCo v3 and DINO: crops, heads, moving averages and losses."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torchvision.transforms import functional as vision

from benchmarks.visualize import _columns, _grid
from objectives import recipe as recipes
from objectives.backbone import create_backbone, geometry_of
from objectives.contrastive import CrossViews, InfoNCE
from objectives.ema import CentredTeacher, MomentumTeacher
from objectives.objective import Objective
from objectives.pretrain import build, pretrain
from objectives.projection import DINOHead, ProjectionMLP
from objectives.recipe import Crop, ObjectiveError, weight_decay_at
from objectives.registry import Geometry
from objectives.student import PooledStudent
from objectives.views import MultiCrop, TwoViews, blur, draw_boxes, jitter, rotate_hue

GEOMETRY = Geometry(32, 8, False, 32)
SMALL = Geometry(32, 8, False, 32, decoder={"width": 32})
PLAIN = {"jitter": 0, "grey": 0, "solarize": (0, 0)}
VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})
SWIN = ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": (1, 1, 1, 1),
                                         "num_heads": (1, 2, 4, 8)})


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=4, size=64):
    return torch.randn(count, 3, size, size, generator=seeded(9)) * 0.3


def objective(name, model, size, **changes):
    slots = recipes.get(name).slots()
    for slot, arguments in changes.items():
        slots[slot] = {**slots[slot], **arguments} if "type" not in arguments else arguments
    return Objective(slots, *model, size, Crop(), True, decoder={"width": 32, "depth": 1, "heads": 2})


def test_views_are_given_by_the_seed_and_differ_between_pictures_and_crops():
    same = noise(1).expand(3, -1, -1, -1)
    corruption = MultiCrop(GEOMETRY, local=3)
    one, again, other = (corruption(same, seeded(s)) for s in (0, 0, 1))
    assert one.images.shape == (6, 3, 32, 32)
    assert one.local.shape == (9, 3, 16, 16)  # 96/224 of 4 patches are 1.7: at least 2
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.local, again.local)
    assert not torch.equal(one.images, other.images)
    for crops in (one.images, one.local):
        assert torch.isfinite(crops).all()
        assert len({tuple(c.flatten()[:64].tolist()) for c in crops}) == len(crops)


def test_small_crops_keep_the_papers_share_of_the_side():
    assert MultiCrop(Geometry(224, 16, False, 384)).local_size == 96
    assert MultiCrop(Geometry(64, 8, False, 128)).local_size == 24
    assert MultiCrop(Geometry(32, 8, False, 32), local=0)(noise(), seeded()).local is None


def test_crops_of_a_constant_picture_stay_constant_without_colour_changes():
    constant = torch.tensor([0.5, -0.2, 0.1]).view(1, 3, 1, 1).expand(4, 3, 64, 64)
    seen = MultiCrop(GEOMETRY, **PLAIN)(constant, seeded())
    assert torch.allclose(seen.images, constant[:1, :, :32, :32].expand_as(seen.images), atol=1e-5)
    assert torch.allclose(seen.local, constant[:1, :, :16, :16].expand_as(seen.local), atol=1e-5)


def test_a_crop_of_everything_is_the_resized_picture_and_a_flip_its_mirror():
    picture, whole = noise(), {"scale": (1, 1), "ratio": (1, 1), "blur": (0, 0), **PLAIN}
    small = F.interpolate(picture, size=(32, 32), mode="area")
    for flip, expected in ((0, small), (1, small.flip(-1))):
        for view in TwoViews(GEOMETRY, flip=flip, **whole)(picture, seeded()).images.chunk(2):
            assert torch.allclose(view, expected, atol=1e-4)


def test_boxes_keep_to_the_picture_and_to_their_area():
    boxes = draw_boxes(4000, (0.2, 0.5), (3 / 4, 4 / 3), 0.5, seeded())
    width, height, x, y, sign = boxes.unbind(1)
    assert ((x.abs() + width <= 1 + 1e-6) & (y.abs() + height <= 1 + 1e-6)).all()
    assert ((width * height >= 0.2 - 1e-6) & (width * height <= 0.5 + 1e-6)).all()
    assert (width * height).mean().item() == pytest.approx(0.35, abs=0.01)
    assert sign.mean().item() == pytest.approx(0, abs=0.05)


def test_colours_change_as_in_torchvision():
    x = torch.rand(3, 3, 8, 8, generator=seeded())
    for kind, name, values in (
        (0, "brightness", (0.6, 1, 1.4)), (1, "contrast", (0.6, 1, 1.4)), (2, "saturation", (0.8, 1, 1.2)),
        (3, "hue", (-0.1, 0, 0.1)),
    ):
        factors = torch.tensor([[1.0, 1, 1, 0]]).repeat(3, 1)
        factors[:, kind] = torch.tensor(values)
        expected = torch.stack([getattr(vision, f"adjust_{name}")(p, v) for p, v in zip(x, values, strict=True)])
        # torchvision rounds the weights of luma: .2989, .587, .114
        assert torch.allclose(jitter(x, factors, [kind]), expected, atol=5e-4), name
    assert torch.allclose(rotate_hue(x, torch.ones(3, 1, 1)), x, atol=1e-5)  # a whole turn


def test_blur_is_torchvisions_and_none_where_none_is_drawn():
    x = torch.rand(2, 3, 12, 12, generator=seeded())
    out = blur(x, torch.tensor([0.0, 1.0]), 1.0)
    assert torch.equal(out[0], x[0])
    inner = vision.gaussian_blur(x[1], [7, 7], [1.0, 1.0])[:, 3:-3, 3:-3]  # there edges are reflected
    assert torch.allclose(out[1, :, 3:-3, 3:-3], inner, atol=1e-6)


@pytest.mark.parametrize("options", [{"scale": (0, 1)}, {"flip": 2}, {"scale": (0.9, 0.1)}, {"blur": (1, -1)}])
def test_ranges_that_make_no_sense_are_refused(options):
    with pytest.raises(ObjectiveError, match=r"objective\.corruption"):
        TwoViews(GEOMETRY, **options)


def test_info_nce_by_hand():
    queries = torch.tensor([[2.0, 0], [0, 3], [1, 1], [0, 1]])  # two pictures; first views, then second
    keys = F.normalize(torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 1]]), dim=1)
    tau, half = 0.5, math.sqrt(0.5)

    def entropy(right, wrong):
        return math.log(1 + math.exp((wrong - right) / tau))

    first = (entropy(1, half) + entropy(half, 0)) / 2  # queries 0 and 1 against keys 2 and 3
    second = (entropy(half, half) + entropy(1, 0)) / 2  # queries 2 and 3 against keys 0 and 1
    assert InfoNCE(tau)(queries, keys).item() == pytest.approx(2 * tau * (first + second), abs=1e-6)


def test_cross_views_by_hand():
    logits = torch.randn(4, 2, 5, generator=seeded())  # two large and two small crops of two pictures
    target = torch.randn(2, 2, 5, generator=seeded(1)).softmax(-1)
    expected, pairs = 0.0, 0
    for t in range(2):
        for s in range(4):
            if s != t:
                log = (logits[s] / 0.1).log_softmax(-1)
                expected, pairs = expected - (target[t] * log).sum(-1).mean(), pairs + 1
    value = CrossViews(0.1)(logits.flatten(0, 1), target.flatten(0, 1))
    assert value.item() == pytest.approx(float(expected) / pairs, rel=1e-5)


@pytest.mark.parametrize("loss", [InfoNCE(), CrossViews()])
def test_losses_refuse_what_are_not_crops(loss):
    with pytest.raises(ObjectiveError, match="crops as vectors"):
        loss(torch.zeros(2, 4, 8), torch.zeros(2, 4, 8))


def test_loss_equals_mmpretrains_moco_v3():
    torch.manual_seed(0)
    head = ProjectionMLP(SMALL, 0, hidden=24, out=16)
    theirs = MODELS.build({
        "type": "MoCoV3Head", "_scope_": "mmpretrain", "temperature": 0.2,
        "loss": {"type": "CrossEntropyLoss", "loss_weight": 2 * 0.2},
        "predictor": {"type": "NonLinearNeck", "in_channels": 16, "hid_channels": 24, "out_channels": 16,
                      "num_layers": 2, "with_bias": False, "with_last_bn": True, "with_last_bn_affine": False,
                      "with_last_bias": False, "with_avg_pool": False},
    }).train()
    ours = head.predictor.network
    for name, our in (("fc0", ours[0]), ("bn0", ours[1]), ("fc1", ours[3])):
        their = getattr(theirs.predictor, name)
        our.load_state_dict({k: v for k, v in their.state_dict().items() if k in our.state_dict()})
    projections, keys = torch.randn(12, 16), torch.randn(12, 16)
    (q1, q2), (k1, k2) = projections.chunk(2), keys.chunk(2)
    expected = theirs.loss(q1, k2) + theirs.loss(q2, k1)
    value = InfoNCE(0.2)(head.predictor(projections), F.normalize(keys, dim=-1))
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)


def test_each_view_is_normalised_for_itself():
    head, vectors = ProjectionMLP(SMALL, 0).eval(), torch.randn(8, 32)
    changed = torch.cat([vectors[:4], vectors[4:] * 3 + 1])
    assert torch.equal(head(vectors, None)[:4], head(changed, None)[:4])
    with pytest.raises(ObjectiveError, match="two views"):
        head(vectors[:2], None)


def test_heads_shrink_only_where_the_suite_has_a_small_backbone():
    with torch.device("meta"):
        assert ProjectionMLP(GEOMETRY, 0).projection.network[0].out_features == 4096
        assert ProjectionMLP(SMALL, 0).projection.network[0].out_features == 128
    assert DINOHead(GEOMETRY, 0, prototypes=600).directions.shape == (600, 256)
    assert DINOHead(SMALL, 0).directions.shape == (512, 256)
    for head in (DINOHead(SMALL, 0), ProjectionMLP(SMALL, 0)):
        with pytest.raises(ObjectiveError, match="PooledStudent"):
            head(torch.zeros(2, 16, 32), None)


def test_prototypes_give_cosines_and_stand_still_at_first():
    head = DINOHead(SMALL, 0)
    head.begin_step(0, 100)
    head(torch.randn(4, 32)).sum().backward()
    assert head.directions.grad is None
    head.begin_step(1, 100)
    out = head(torch.randn(4, 32))
    out.sum().backward()
    assert head.directions.grad is not None
    assert out.abs().max() <= 1 + 1e-5


def test_momentum_and_weight_decay_follow_half_a_cosine():
    teacher = MomentumTeacher(GEOMETRY, momentum=0.9)
    teacher.steps = 10
    assert teacher.momentum_at(0) == pytest.approx(0.9)
    assert teacher.momentum_at(5) == pytest.approx(0.95)
    assert teacher.momentum_at(10) == 1
    optimiser = recipes.get("dino").optimiser
    assert [weight_decay_at(optimiser, s, 10) for s in (0, 5, 10)] == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay_at(recipes.get("mae").optimiser, 5, 10) == 0.05
    assert "weight_decay_end" not in recipes.get("mae").optimiser.config()
    assert optimiser.config()["weight_decay_end"] == 0.4


def test_eps_reaches_adamw_and_leaves_digests_alone(make_job, pictures, monkeypatch):
    recipe = recipes.get("mae").optimiser
    assert "eps" not in recipe.config()
    other = replace(recipe, eps=1e-6)
    assert other.config() == {**recipe.config(), "eps": 1e-6}
    with pytest.raises(ObjectiveError, match=r"optimiser\.eps=0"):
        replace(recipe, eps=0.0)
    seen = []
    monkeypatch.setattr("objectives.pretrain._Steps.before_train", lambda self, runner: seen.append(
        {group["eps"] for group in runner.optim_wrapper.optimizer.param_groups}))
    for number, settings in enumerate((recipe, other)):
        pretrain(make_job("mae", folder=f"run{number}", images_seen=16, optimiser=settings), pictures)
    assert seen == [{1e-8}, {1e-6}]


@pytest.mark.parametrize("steps", [125_000, 100])
@pytest.mark.parametrize(("name", "first"), [("dino", 0.996), ("moco_v3", 0.99)])
def test_the_first_momentum_is_the_papers_on_any_schedule(name, first, steps):
    part = objective(name, VIT, 32)
    part.attach(steps)
    assert part.teacher.momentum_at(0) == pytest.approx(first)
    assert part.teacher.momentum_at(steps) == 1


def test_weight_decay_reaches_the_optimiser(make_job, pictures, monkeypatch):
    from objectives import pretrain as module

    seen, after = [], module._Steps.after_train_iter

    def spy(self, runner, *args, **kwargs):
        seen.append([group["weight_decay"] for group in runner.optim_wrapper.optimizer.param_groups])
        after(self, runner, *args, **kwargs)

    monkeypatch.setattr(module._Steps, "after_train_iter", spy)
    job = make_job("dino")
    module.pretrain(job, pictures)
    assert [decayed for decayed, _ in seen] == [weight_decay_at(job.optimiser, s, 4) for s in range(4)]
    assert {plain for _, plain in seen} == {0.0}


def test_momentum_teacher_averages_student_and_projection_by_hand():
    part = objective("moco_v3", VIT, 32)
    part.attach(steps=4)
    before = part.teacher.student.backbone.blocks[0].attn.qkv.weight.clone()
    with torch.no_grad():
        for parameter in (*part.student.parameters(), *part.head.parameters()):
            parameter.add_(1)
    part.after_step(2)  # halfway: 1 - .01 / 2
    moved = part.teacher.student.backbone.blocks[0].attn.qkv.weight - before
    assert torch.allclose(moved, torch.full_like(moved, 0.005), atol=1e-5)
    assert not any("predictor" in name for name, _ in part.teacher.named_parameters())
    state = {k: v.clone() for k, v in part.teacher.state_dict().items()}
    part.after_step(4)  # the last: nothing moves any more
    assert all(torch.equal(v, state[k]) for k, v in part.teacher.state_dict().items())


def test_centre_moves_once_a_step_and_only_in_training():
    class Head(torch.nn.Linear):
        prototypes = 3

        def averaged(self):
            return self

    class Student(torch.nn.Identity):
        def forward(self, images, mask):
            return images

    teacher = CentredTeacher(GEOMETRY, temperature=0.5, temperature_end=1.0, temperature_warmup=0.5)
    head, student = Head(3, 3), Student()
    teacher.attach(student, head, steps=4)
    images = torch.randn(4, 3)
    from objectives.corruption import Seen

    logits = head(images).detach()
    assert torch.allclose(teacher.eval().of_views(Seen(images)), logits / 0.5)
    teacher.update(student, head, 1)
    assert not teacher.centre.any()
    assert teacher.temperature.item() == 0.75
    teacher.train()
    teacher.of_views(Seen(images))
    teacher.of_views(Seen(images))  # the step's last look counts
    assert not teacher.centre.any()
    teacher.update(student, head, 2)
    assert torch.allclose(teacher.centre, 0.1 * logits.mean(0), atol=1e-6)
    assert torch.allclose(teacher.of_views(Seen(images)), logits - teacher.centre, atol=1e-6)  # temperature 1 now
    assert {"centre", "temperature"} <= set(teacher.state_dict())
    assert not teacher.head.training


@pytest.mark.parametrize("more", [
    {}, {"no_embed_class": True}, {"class_token": False, "global_pool": "avg", "fc_norm": False}, {"reg_tokens": 2},
])
def test_small_crops_through_a_vit_equal_timms_dynamic_size(more):
    torch.manual_seed(0)
    model, kwargs = VIT[0], {**VIT[1], **more}
    backbone = create_backbone(model, kwargs)
    theirs = timm.create_model(model, **kwargs, num_classes=0, dynamic_img_size=True)
    theirs.load_state_dict(backbone.state_dict())
    student = PooledStudent(backbone, geometry_of(backbone, 32)).eval()
    for size in (16, 24, 32):
        images = torch.randn(2, 3, size, size)
        tokens = theirs.eval().forward_features(images)
        expected = tokens.mean(1) if "class_token" in more else tokens[:, 0]
        assert torch.allclose(student(images, None), expected, atol=1e-5)
    with pytest.raises(ObjectiveError, match="without a mask"):
        student(images, torch.zeros(2, 16, dtype=torch.bool))


def test_frozen_patch_embedding_and_positions_stay(make_job, pictures):
    part = build(make_job("moco_v3"), pictures)
    frozen = {k for k, p in part.student.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert part.student.backbone.patch_embed.proj.weight.abs().max() <= math.sqrt(6 / (3 * 64 + 32))


def test_a_swin_takes_large_crops_only():
    images, labels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.arange(2)
    for name in ("moco_v3", "dino"):
        part = objective(name, SWIN, 64, **({"corruption": {"local": 0}} if name == "dino" else {}))
        part.attach(steps=1)
        assert torch.isfinite(part(images, labels, labels)["loss"])
    part = objective("dino", ("swin_tiny_patch4_window7_224", {**SWIN[1], "img_size": 96, "window_size": 3}), 96)
    part.attach(steps=1)
    with pytest.raises(ObjectiveError, match=r"objective\.corruption\.local=0"):
        part(images, labels, labels)


def test_parts_that_do_not_fit_are_refused_in_a_line():
    with pytest.raises(ObjectiveError, match="gives one; use TwoViews"):
        objective("dino", VIT, 32, corruption={"type": "Clean"})
    with pytest.raises(ObjectiveError, match="use MomentumTeacher"):
        objective("moco_v3", VIT, 32, teacher={"type": "Pixels"})
    with pytest.raises(ObjectiveError, match="NoHead is"):
        objective("moco_v3", VIT, 32, teacher={"type": "MomentumTeacher"}, head={"type": "NoHead"}).attach(1)


@pytest.mark.parametrize(("name", "columns"), [
    ("moco_v3", ["original", "view 1", "view 2"]), ("dino", ["original", "view 1", "view 2", "small crop"])])
def test_sheets_show_the_views(name, columns, make_job, pictures):
    part = build(make_job(name), pictures).eval()
    part.begin_step(0, 0)
    with torch.no_grad():
        parts = part(pictures.images[:3], pictures.labels[:3], torch.arange(3), mode="tensor")
    shown = _columns(part, parts)
    assert list(shown) == columns
    assert {tuple(c.shape) for c in shown.values()} == {(3, 3, 32, 32)}
    assert _grid(shown, name, 32).size == (len(columns) * 68 + 4, 3 * 68 + 20)

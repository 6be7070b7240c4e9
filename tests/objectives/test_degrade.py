"""The degradations and their losses, against slow implementations written from the authors' formulas alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives import recipe as recipes
from objectives.corruption import AttentionMask, masked_count
from objectives.degrade import Blur, Decolorize, Distort, ZoomIn, ZoomOut, margin_of, reflect_into, shrunk_of
from objectives.loss import ZoomedIn, ZoomedOut
from objectives.normalisation import PatchChannelNorm
from objectives.patches import patchify
from objectives.recipe import ObjectiveError
from objectives.registry import Geometry, build
from objectives.teacher import ViewPixels

KINDS = {"ZoomIn": ZoomIn, "ZoomOut": ZoomOut, "Distort": Distort, "Blur": Blur, "Decolorize": Decolorize}
DEGRADED = ("zoomed_in", "zoomed_out", "distorted", "blurred", "decolorized")
PER_IMAGE = ("Distort", "Blur")  # the others draw once a batch, or not at all
MASK = {"type": "RandomMask", "ratio": 0.75, "rounding": "keep_floor"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def geometry(grid=4, patch=4):
    return Geometry(input_size=grid * patch, stride=patch, hierarchical=False, width=32)


def noise(count, size, seed=0):
    return torch.randn(count, 3, size, size, generator=generator(seed))


# --- slow implementations ---------------------------------------------------------------------------------------------


def area_matrix(inputs, outputs):
    """Averages of one axis: output i is the mean of the inputs that its share of the axis touches."""
    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        first, last = i * inputs // outputs, -(-(i + 1) * inputs // outputs)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def area(picture, size):
    """(C, H, H) -> (C, size, size)."""
    matrix = area_matrix(picture.shape[-1], size)
    return np.stack([matrix @ channel @ matrix.T for channel in picture])


def mirrored(picture, top, left, size):
    """Paste into a canvas; content beyond each edge is the picture, flipped over that edge."""
    tiled = np.concatenate([picture[:, ::-1], picture, picture[:, ::-1]], 1)
    tiled = np.concatenate([tiled[:, :, ::-1], tiled, tiled[:, :, ::-1]], 2)
    side = picture.shape[-1]
    return tiled[:, side - top : side - top + size, side - left : side - left + size]


def picture_of(tokens, patch):
    """Tokens (L, patch·patch·3) -> (3, S, S)."""
    grid = math.isqrt(len(tokens))
    out = np.zeros((3, grid * patch, grid * patch))
    for index, token in enumerate(tokens):
        row, column = divmod(index, grid)
        for place, value in enumerate(token):
            pixel, channel = divmod(place, 3)
            y, x = divmod(pixel, patch)
            out[channel, row * patch + y, column * patch + x] = value
    return out


def warped(picture, centre, strength):
    """Bilinear look-up of one picture (3, S, S), zero outside."""
    side = picture.shape[-1]
    out = np.zeros_like(picture)

    def at(y, x):
        return picture[:, y, x] if 0 <= y < side and 0 <= x < side else np.zeros(3)

    for row in range(side):
        for column in range(side):
            gx, gy = -1 + 2 * column / (side - 1), -1 + 2 * row / (side - 1)
            dx, dy = centre[0] - gx, centre[1] - gy
            distance = math.sqrt(dx * dx + dy * dy)
            x = (gx + dx * distance * strength + 1) / 2 * (side - 1)
            y = (gy + dy * distance * strength + 1) / 2 * (side - 1)
            x0, y0 = math.floor(x), math.floor(y)
            for yy, wy in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
                for xx, wx in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                    out[:, row, column] += wy * wx * at(yy, xx)
    return out


def convolved(picture, kernel):
    """(3, S, S) and (3 out, 3 in, k, k), zeros beyond the edge."""
    side, reach = picture.shape[-1], kernel.shape[-1] // 2
    padded = np.pad(picture, ((0, 0), (reach, reach), (reach, reach)))
    out = np.zeros_like(picture)
    for channel in range(3):
        for row in range(side):
            for column in range(side):
                window = padded[:, row : row + 2 * reach + 1, column : column + 2 * reach + 1]
                out[channel, row, column] = (window * kernel[channel]).sum()
    return out


def zoomed_in_loss(prediction, centre, view, mask, patch, margin, weight=0.8):
    """Means over pictures of equally many hidden patches."""
    count, grid = prediction.shape[0], math.isqrt(prediction.shape[1])
    size = grid * patch + 2 * margin
    middle, edges = [], []
    for b in range(count):
        guess, wanted = (area(picture_of(t[b], patch), size) for t in (prediction, view))
        target = picture_of(centre[b], patch)
        for index in range(grid**2):
            if mask is None or mask[b, index]:
                y, x = (place * patch for place in divmod(index, grid))
                block = guess[:, margin + y : margin + y + patch, margin + x : margin + x + patch]
                middle.append(((block - target[:, y : y + patch, x : x + patch]) ** 2).mean())
        square = (guess - wanted) ** 2
        edges.append(
            square[:, :margin].mean() + square[:, size - margin :].mean()
            + square[:, margin : size - margin, :margin].mean()
            + square[:, margin : size - margin, size - margin :].mean()
        )
    return weight * np.mean(middle) + (1 - weight) * np.mean(edges)


def zoomed_out_loss(prediction, target, mask, offset, patch, view):
    grid = math.isqrt(prediction.shape[1])
    values = []
    for b in range(len(prediction)):
        top, left = offset[b]
        pasted = [mirrored(area(picture_of(t[b], patch), view), top, left, grid * patch) for t in (prediction, target)]
        square = (pasted[0] - pasted[1]) ** 2
        for index in range(grid**2):
            if mask is None or mask[b, index]:
                y, x = (place * patch for place in divmod(index, grid))
                values.append(square[:, y : y + patch, x : x + patch].mean())
    return np.mean(values)


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_sizes_are_the_authors_at_theirs():
    theirs = geometry(grid=14, patch=16)
    assert (margin_of(theirs), ZoomIn(theirs).view, shrunk_of(theirs), ZoomOut(theirs).view) == (32, 288, 160, 160)
    seen = ZoomIn(theirs)(torch.zeros(1, 3, 288, 288), generator())
    assert seen.images.shape == (1, 3, 224, 224)
    out = ZoomOut(theirs, per_image=True)(torch.zeros(4096, 3, 1, 1).expand(-1, -1, 160, 160)[:300], generator())
    assert (out.offset.min().item(), out.offset.max().item()) == (0, 63)
    assert Blur(theirs).kernel == 7


@settings(max_examples=40, deadline=None)
@given(grid=st.integers(2, 20), patch=st.sampled_from([2, 4, 7]))
def test_sizes_are_whole_patches_and_fit_at_any_grid(grid, patch):
    where = geometry(grid, patch)
    margin, view = margin_of(where), shrunk_of(where)
    assert margin % patch == 0
    assert margin >= patch
    assert view % patch == 0
    assert patch <= view < where.input_size <= 2 * view
    images = noise(2, view)
    seen = ZoomOut(where)(images, generator(grid))
    assert seen.images.shape == (2, 3, where.input_size, where.input_size)


def test_zoom_out_needs_two_tokens_a_side():
    with pytest.raises(ObjectiveError, match="two tokens"):
        ZoomOut(geometry(grid=1))


# --- each degradation against the slow one, and pictures whose result is known ----------------------------------------


def test_zoom_in_gives_the_centre():
    corruption = ZoomIn(geometry())
    view = torch.arange(24 * 24.0).view(1, 1, 24, 24).expand(1, 3, -1, -1)
    seen = corruption(view, generator())
    assert corruption.view == 24
    assert seen.mask is None
    for row in range(16):
        for column in range(16):
            assert (seen.images[0, :, row, column] == (row + 4) * 24 + column + 4).all()


@pytest.mark.parametrize("per_image", [False, True])
def test_zoom_out_pastes_the_view_and_mirrors_the_rest(per_image):
    corruption = ZoomOut(geometry(), per_image=per_image)
    images = noise(6, corruption.view)
    seen = corruption(images, generator(3))
    assert corruption.view == 12
    for picture, canvas, (top, left) in zip(images, seen.images, seen.offset.tolist(), strict=True):
        assert 0 <= top < 4
        assert 0 <= left < 4
        assert torch.equal(canvas[:, top : top + 12, left : left + 12], picture)
        assert np.array_equal(canvas.numpy(), mirrored(picture.numpy(), top, left, 16))
    assert (len({tuple(o) for o in seen.offset.tolist()}) > 1) == per_image


def test_the_mirror_repeats_the_edge_pixel():
    line = torch.tensor([1.0, 2.0, 3.0]).expand(1, 1, 3, 3)
    canvas = reflect_into(line, torch.tensor([[0, 2]]), 6)
    assert canvas[0, 0, 0].tolist() == [2, 1, 1, 2, 3, 3]


def test_distortion_equals_the_slow_one():
    corruption, images = Distort(geometry()), noise(3, 16)
    draws = torch.rand(3, 3, generator=generator(5)).double().numpy()  # centre x, centre y, strength
    got = corruption(images, generator(5)).images
    for picture, warp, (x, y, m) in zip(images, got, draws, strict=True):
        expected = warped(picture.double().numpy(), (2 * x - 1, 2 * y - 1), 0.15 + 0.1 * m)
        assert np.abs(warp.numpy() - expected).max() < 1e-4  # places in fp32, 16 pixels, values up to about 4


def test_distortion_of_no_strength_is_the_identity():
    images = noise(3, 16)
    seen = Distort(geometry(), strength=(0.0, 0.0))(images, generator())
    assert torch.allclose(seen.images, images, atol=1e-5)


def test_distortion_leaves_a_constant():
    """The map draws places towards c by at most |c - g|·m < 1 of the way, so it never leaves the picture."""
    ones = torch.ones(8, 3, 16, 16)
    assert torch.allclose(Distort(geometry())(ones, generator(2)).images, ones, atol=1e-4)
    far = Distort(geometry(), strength=(3.0, 3.0))(ones, generator(2)).images
    assert far.min() == 0  # stronger, it does, and there it is zero


@pytest.mark.parametrize("mixing", [True, False])
@pytest.mark.parametrize("kernel", [7, 3, 1])
def test_blur_equals_the_slow_one(mixing, kernel):
    corruption, images = Blur(geometry(), kernel=kernel, mixing=mixing), noise(2, 16)
    weights = corruption.weights(2, generator(7)).double().numpy()
    got = corruption(images, generator(7)).images
    for picture, blurred, w in zip(images, got, weights, strict=True):
        full = w if mixing else np.zeros((3, 3, kernel, kernel))
        if not mixing:
            for channel in range(3):
                full[channel, channel] = w[channel, 0]
        expected = convolved(picture.double().numpy(), full)
        assert np.abs(blurred.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("mixing", [True, False])
def test_blur_of_a_constant_is_the_kernels_sum(mixing):
    corruption = Blur(geometry(), mixing=mixing)
    seen = corruption(torch.full((2, 3, 16, 16), 2.0), generator(1)).images
    total = corruption.weights(2, generator(1)).sum((2, 3, 4))
    assert torch.allclose(seen[..., 3:-3, 3:-3], (2 * total)[..., None, None].expand(-1, -1, 10, 10), atol=1e-5)


def test_blur_weights_have_the_authors_mean_and_deviation():
    weights = Blur(geometry(14, 16)).weights(400, generator())
    assert weights.shape == (400, 3, 3, 7, 7)
    assert weights.mean().item() == pytest.approx(1 / 49, abs=3e-4)  # standard error 5e-5
    assert weights.std().item() == pytest.approx(0.02, abs=3e-4)


@pytest.mark.parametrize("kernel", [0, 4, -1])
def test_an_even_kernel_is_refused(kernel):
    with pytest.raises(ObjectiveError, match=r"objective\.corruption\.kernel"):
        Blur(geometry(), kernel=kernel)


@pytest.mark.parametrize("per_image", [False, True])
def test_decolorised_channels_are_one_weighted_sum(per_image):
    corruption, images = Decolorize(geometry(), per_image=per_image), noise(4, 16)
    a, b, c = (0.667 * torch.rand(4 if per_image else 1, 3, generator=generator(9))).unbind(1)
    seen = corruption(images, generator(9)).images
    for k in range(4):
        i = k if per_image else 0
        grey = a[i] * images[k, 0] + b[i] * images[k, 1] + c[i] * images[k, 2]
        assert all(torch.allclose(seen[k, channel], grey, atol=1e-6) for channel in range(3))
        assert torch.equal(seen[k, 0], seen[k, 1])
        assert torch.equal(seen[k, 0], seen[k, 2])


def test_decolorised_coefficients_fill_their_range():
    red = torch.zeros(2000, 3, 1, 1)
    red[:, 0] = 1
    values = Decolorize(geometry(), per_image=True)(red, generator()).images[:, 0, 0, 0]
    assert values.min() >= 0
    assert values.max() <= 0.667
    assert values.mean().item() == pytest.approx(0.3335, abs=0.02)


# --- properties of every corruption -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), grid=st.integers(2, 6), patch=st.sampled_from([4, 8]),
       ratio=st.none() | st.floats(0.05, 0.95), seed=st.integers(0, 10_000))
def test_degradations_depend_on_the_seed_alone_and_leave_the_view(kind, grid, patch, ratio, seed):
    where = geometry(grid, patch)
    mask = None if ratio is None else {**MASK, "ratio": ratio}
    if ratio is not None and not 0 < int(grid**2 * (1 - ratio)) < grid**2:
        with pytest.raises(ObjectiveError, match="some must be hidden"):
            KINDS[kind](where, mask=mask)
        return
    corruption = KINDS[kind](where, mask=mask)
    images = noise(3, corruption.view, seed)
    before = images.clone()
    seen, again = corruption(images, generator(seed)), corruption(images, generator(seed))
    assert torch.equal(images, before)
    assert torch.equal(seen.images, again.images)
    again.images.zero_()  # a copy, not a window on the clean view
    assert torch.equal(images, before)
    assert seen.images.shape == (3, 3, where.input_size, where.input_size)
    assert (seen.offset is not None) == (kind == "ZoomOut")
    if mask is None:
        assert seen.mask is None
    else:
        assert torch.equal(seen.mask, again.mask)
        assert seen.mask.shape == (3, grid**2)
        assert (seen.mask.sum(1) == masked_count(grid**2, ratio, "keep_floor")).all()


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10_000))
def test_draws_are_per_picture_or_per_batch_as_in_the_paper(kind, seed):
    corruption = KINDS[kind](geometry(), mask=MASK)
    same = noise(1, corruption.view).expand(8, -1, -1, -1)
    seen = corruption(same, generator(seed))
    equal = [torch.equal(seen.images[0], other) for other in seen.images[1:]]
    assert not any(equal) if kind in PER_IMAGE else all(equal)
    if seen.offset is not None:
        assert (seen.offset == seen.offset[0]).all()
    assert len({tuple(m.tolist()) for m in seen.mask}) > 1
    if kind != "ZoomIn":  # which draws nothing
        others = [corruption(same, generator(seed + k)).images for k in range(1, 6)]
        assert any(not torch.equal(seen.images, other) for other in others)


@settings(max_examples=30, deadline=None)
@given(grid=st.integers(2, 14), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 10_000),
       zeros=st.integers(0, 4), rounding=st.sampled_from(["keep_floor", "ceil", "round", "floor"]))
def test_attention_masks_hide_the_exact_number_whatever_the_attention(grid, ratio, seed, zeros, rounding):
    try:
        corruption = AttentionMask(geometry(grid), ratio=ratio, rounding=rounding)
    except ObjectiveError:
        return
    attention = torch.rand(4, grid**2, generator=generator(seed))
    attention[:, : zeros * grid**2 // 4] = 0  # up to all of them
    before, images = attention.clone(), noise(4, grid * 4)
    seen = corruption(images, generator(seed), attention)
    assert torch.equal(attention, before)
    assert torch.equal(seen.images, images)
    assert (seen.mask.sum(1) == masked_count(grid**2, ratio, rounding)).all()
    assert torch.equal(seen.mask, corruption(images, generator(seed), attention).mask)


def test_attention_masks_keep_in_proportion_and_differ_between_pictures():
    corruption = AttentionMask(geometry(2), ratio=0.75)  # one of four is kept
    attention = torch.tensor([0.1, 0.2, 0.3, 0.4]).expand(20_000, -1)
    mask = corruption(torch.zeros(20_000, 3, 1, 1), generator(), attention).mask
    kept = (~mask).float().mean(0)
    assert torch.allclose(kept, attention[0], atol=0.015)  # standard error .0035
    certain = AttentionMask(geometry(4), ratio=0.75)
    peaked = torch.zeros(5, 16)
    peaked[:, [1, 6, 8, 15]] = 1.0
    hidden = certain(torch.zeros(5, 3, 1, 1), generator(), peaked).mask
    assert torch.equal(hidden, peaked == 0)


def test_attention_masks_need_attention():
    with pytest.raises(ObjectiveError, match="needs a teacher that attends"):
        AttentionMask(geometry())(noise(1, 16), generator())
    with pytest.raises(ObjectiveError, match=r"objective\.corruption\.mask"):
        Blur(geometry(), mask={"type": "AttentionMask"})
    with pytest.raises(ObjectiveError, match=r"objective\.corruption\.mask"):
        Blur(geometry(), mask={"type": "Decolorize"})


@pytest.mark.parametrize("name", DEGRADED)
def test_recipes_hide_nothing_and_their_masked_twins_three_quarters(name):
    theirs = geometry(grid=14, patch=16)
    plain = build("corruption", recipes.get(name).corruption, geometry=theirs)
    assert plain(noise(2, plain.view), generator()).mask is None
    masked = build("corruption", recipes.get(f"{name}_mask").corruption, geometry=theirs)
    mask = masked(noise(2, masked.view), generator()).mask
    assert mask.sum(1).tolist() == [147, 147]
    assert recipes.get(name).loss["region"] == "all"
    assert recipes.get(f"{name}_mask").loss["region"] == "masked"


@pytest.mark.parametrize("name", [f"{name}{mask}" for name in DEGRADED for mask in ("", "_mask")])
def test_the_target_is_made_from_the_clean_view(name, make_job, pictures):
    from objectives.pretrain import build as build_objective

    objective = build_objective(make_job(name), pictures).eval()
    index = torch.arange(4)
    targets = []
    for step in (0, 1):
        objective.begin_step(0, 0)
        clean, _ = objective.augment(pictures.images[:4])
        objective.generator.manual_seed(100 + step)  # the same views, other corruptions
        before = clean.clone()
        objective.corruption(clean, objective.generator)
        assert torch.equal(clean, before)
        targets.append(objective.normalisation(objective.teacher(clean, pictures.labels[:4])))
    assert torch.equal(*targets)
    objective.begin_step(0, 0)
    with torch.no_grad():
        parts = objective(pictures.images[:4], pictures.labels[:4], index, mode="tensor")
    assert torch.equal(parts["target"], targets[0])
    assert parts["prediction"].shape[1] == 16


# --- losses -----------------------------------------------------------------------------------------------------------


def zoomed_in_case(where, seed=0, mask=False):
    view = where.input_size + 2 * margin_of(where)
    images = noise(2, view, seed)
    target = PatchChannelNorm()(ViewPixels(where, centre=True)(images, None))
    prediction = torch.randn(2, where.grid**2, where.stride**2 * 3, generator=generator(seed + 1))
    hidden = None
    if mask:
        hidden = build("corruption", MASK, geometry=where)(images, generator(seed)).mask
    return images, prediction, target, hidden


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("grid", "patch"), [(4, 4), (3, 8), (7, 4)])
def test_zoomed_in_loss_equals_the_slow_one(grid, patch, mask):
    where = geometry(grid, patch)
    _, prediction, target, hidden = zoomed_in_case(where, mask=mask)
    got = ZoomedIn(where, region="masked" if mask else "all")(prediction, target, hidden)
    split = target.double().numpy().reshape(2, 2, grid**2, -1)
    expected = zoomed_in_loss(
        prediction.double().numpy(), split[:, 0], split[:, 1], None if hidden is None else hidden.numpy(),
        patch, margin_of(where),
    )
    assert got.item() == pytest.approx(expected, abs=1e-5)


def test_zoomed_in_target_is_normalised_centre_then_normalised_view():
    where = geometry()
    images, _, target, _ = zoomed_in_case(where)
    mean, std = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for b in range(2):
        unit = images[b].double().numpy() * std + mean
        for half, picture in ((0, unit[:, 4:20, 4:20]), (1, area(unit, 16))):
            got = picture_of(target[b, 16 * half : 16 * half + 16].double().numpy(), 4)
            for y in range(0, 16, 4):
                for x in range(0, 16, 4):
                    block = picture[:, y : y + 4, x : x + 4]
                    centred = block - block.mean((1, 2), keepdims=True)
                    wanted = centred / (block.std((1, 2), ddof=1, keepdims=True) + 1e-6)
                    assert np.abs(got[:, y : y + 4, x : x + 4] - wanted).max() < 1e-4


def test_the_best_zoomed_in_prediction_has_no_border_error_but_a_middle_error():
    """The borders' error can be 0: predict the view. The middle's cannot, in general.

    A prediction of S² values stands for a view of V² > S², whose middle S² pixels then have fewer degrees of freedom
    than the sharp middle that they are compared with. The minimum of the sum is a linear least-squares residual.
    """
    where, size, view, m = geometry(), 16, 24, 4
    loss = ZoomedIn(where)
    _, _, target, _ = zoomed_in_case(where)
    target, half = target[:1], target[:1, 16:]
    only_middle = loss(half, target, None)
    middle = ZoomedIn(where, centre_weight=1.0)(half, target, None)
    assert only_middle.item() == pytest.approx(0.8 * middle.item(), rel=1e-5)
    assert ZoomedIn(where, centre_weight=0.0)(half, target, None).item() == pytest.approx(0, abs=1e-10)

    up = np.kron(area_matrix(size, view), area_matrix(size, view)).reshape(view, view, size**2)
    borders = (np.s_[:m, :], np.s_[view - m :, :], np.s_[m : view - m, :m], np.s_[m : view - m, view - m :])
    inside = np.s_[m : view - m, m : view - m]
    centre, whole = (picture_of(t.double().numpy(), 4) for t in target[0].split(16))
    best, total = np.zeros((3, size, size)), 0.0
    for channel in range(3):
        wanted = area(whole[channel][None], view)[0]
        rows = [up[inside].reshape(-1, size**2) * math.sqrt(0.8 / size**2)]
        values = [centre[channel].ravel() * math.sqrt(0.8 / size**2)]
        for border in borders:
            block = up[border].reshape(-1, size**2)
            rows.append(block * math.sqrt(0.2 / len(block)))
            values.append(wanted[border].ravel() * math.sqrt(0.2 / len(block)))
        matrix, vector = np.concatenate(rows), np.concatenate(values)
        solution = np.linalg.lstsq(matrix, vector, rcond=None)[0]
        total += ((matrix @ solution - vector) ** 2).sum() / 3
        best[channel] = solution.reshape(size, size)
    tokens = patchify(torch.tensor(best[None]), 4)
    assert loss(tokens, target, None).item() == pytest.approx(total, rel=1e-4)
    assert 0.01 < total < only_middle.item()
    for seed in range(5):
        step = 1e-2 * torch.randn(tokens.shape, generator=generator(seed))
        assert loss(tokens + step, target, None) > total
    flat = torch.zeros_like(target)  # a view without content: 0 is reached
    assert loss(torch.zeros_like(half), flat, None) == 0


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("grid", "patch"), [(4, 4), (3, 8), (7, 4)])
def test_zoomed_out_loss_equals_the_slow_one_and_its_minimum_is_zero(grid, patch, mask):
    where = geometry(grid, patch)
    corruption = ZoomOut(where, mask=MASK if mask else None, per_image=True)
    images = noise(3, corruption.view)
    seen = corruption(images, generator(4))
    target = PatchChannelNorm()(ViewPixels(where)(images, None))
    prediction = torch.randn(target.shape, generator=generator(1))
    loss = ZoomedOut(where, region="masked" if mask else "all")
    expected = zoomed_out_loss(
        prediction.double().numpy(), target.double().numpy(), None if seen.mask is None else seen.mask.numpy(),
        seen.offset.tolist(), patch, corruption.view,
    )
    assert loss(prediction, target, seen.mask, offset=seen.offset).item() == pytest.approx(expected, abs=1e-5)
    assert loss(target, target, seen.mask, offset=seen.offset) == 0


def test_zoomed_losses_refuse_what_is_not_theirs():
    where = geometry()
    tokens = torch.zeros(1, 16, 48)
    with pytest.raises(ObjectiveError, match="centre=True"):
        ZoomedIn(where)(tokens, tokens, None)
    with pytest.raises(ObjectiveError, match="ZoomOut"):
        ZoomedOut(where)(tokens, tokens, None)
    with pytest.raises(ObjectiveError, match="masks nothing"):
        ZoomedOut(where, region="masked")(tokens, tokens, None, offset=torch.zeros(1, 2, dtype=torch.long))


def test_the_masked_middle_ignores_seen_patches_but_not_the_borders():
    where = geometry(7, 4)
    _, prediction, target, hidden = zoomed_in_case(where, mask=True)
    loss = ZoomedIn(where, region="masked", centre_weight=1.0)
    changed = target.clone()
    changed[:, :49][~hidden] += 5
    assert torch.equal(loss(prediction, target, hidden), loss(prediction, changed, hidden))
    changed[:, :49][hidden] += 5
    assert loss(prediction, changed, hidden) > loss(prediction, target, hidden)
    edges = ZoomedIn(where, region="masked", centre_weight=0.0)
    assert torch.equal(edges(prediction, target, hidden), edges(prediction, changed, hidden))
    changed[:, 49:] += 5
    assert edges(prediction, changed, hidden) > edges(prediction, target, hidden)

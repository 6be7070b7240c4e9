"""How a step computes changes its rounding, never what is learned."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import DropPath

from objectives import recipe as recipes
from objectives.arithmetic import Arithmetic, _DropPath, compile_blocks, hasten, optimiser_wrapper, release_blocks
from objectives.backbone import create_backbone, narrows
from objectives.pretrain import build, pretrain
from objectives.recipe import ObjectiveError


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_processor_computes_as_committed_results_did():
    assert Arithmetic.of("cpu") == Arithmetic("fp32", fused=False, compiled=False)
    assert Arithmetic.of("cpu", fast=True).fused
    assert Arithmetic.of("cuda") == Arithmetic("bf16", fused=True)


@pytest.mark.parametrize(("how", "apart"), [(Arithmetic("fp32", True), 1e-4), (Arithmetic("bf16", True), 0.02)])
def test_the_losses_are_those_of_plain_training(how, apart, make_job, pictures):
    plain = pretrain(make_job("mae", folder="plain"), pictures)
    other = pretrain(make_job("mae", folder="other", arithmetic=how), pictures)
    assert losses(other) == pytest.approx(losses(plain), rel=apart)
    assert json.loads((other / "backbone.json").read_text())["arithmetic"] == asdict(how)
    assert json.loads((plain / "backbone.json").read_text())["arithmetic"] == asdict(Arithmetic())
    ours, theirs = load_file(other / "backbone.safetensors"), load_file(plain / "backbone.safetensors")
    assert {name: value.dtype for name, value in ours.items()} == {name: value.dtype for name, value in theirs.items()}
    if how.precision == "bf16":
        assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def one_step(objective, pictures):
    """Loss and gradients of a step that draws always the same."""
    objective.zero_grad()
    objective.begin_step(0, 0)
    loss = objective(pictures.images[:4], pictures.labels[:4], torch.arange(4))["loss"]
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def varied(name, options):
    """The slots of a recipe with some settings of theirs replaced."""
    slots = recipes.get(name).slots()
    return {**slots, **{slot: slots[slot] | more for slot, more in options.items()}}


@pytest.mark.parametrize(("how", "sharded", "economical"), [
    (Arithmetic("bf16", True), False, True), (Arithmetic("bf16", True), True, False),
    (Arithmetic("fp32", True), False, False),
])
def test_what_hastens_a_step_is_undone(how, sharded, economical, make_job, pictures):
    objective = build(make_job("maskdistill"), pictures)
    as_usual = hasten(objective, how, sharded)
    assert objective.economical is economical
    as_usual()
    assert not objective.economical


def profiled(objective, pictures, by_products=True):
    """Loss and gradients of a step in bf16, and the names of the operations that it called."""
    wrapper = optimiser_wrapper(
        [{"params": objective.parameters()}], recipes.get("milan").optimiser, 1e-3, Arithmetic("bf16")
    )
    assert wrapper.by_products
    wrapper.by_products = by_products
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler, wrapper.optim_context(objective):
        loss, gradients = one_step(objective, pictures)
    return loss, gradients, {event.name for event in profiler.events()}


def test_attention_in_bfloat16_on_a_cpu_is_products(make_job, pictures):
    objective = build(make_job("milan"), pictures)  # its decoder makes its own attention
    fused, wanted, before = profiled(objective, pictures, by_products=False)
    loss, gradients, called = profiled(objective, pictures)
    assert any("dot_product_attention" in name for name in before)
    assert "Products" in called
    assert not any("dot_product_attention" in name for name in called)
    assert loss == pytest.approx(fused, rel=2e-3)
    ours, theirs = (torch.cat([g.flatten() for g in found.values()]) for found in (gradients, wanted))
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.999


def check_that_economy_changes_nothing(objective, pictures):
    """Returns the gradients."""
    plain, gradients = one_step(objective, pictures)
    objective.economise()
    assert objective.economical
    loss, ours = one_step(objective, pictures)
    assert loss == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(ours, gradients, atol=1e-6, rtol=1e-4)
    return ours


@pytest.mark.parametrize("name", ["maskdistill", "beitv2", "simmim", "maskfeat", "data2vec"])
def test_tokens_that_the_loss_does_not_look_at_are_left_out(name, make_job, pictures):
    objective = build(make_job(name), pictures)
    objective.teacher.rehearse()
    objective.train()
    seen = []
    objective.head.predict.register_forward_hook(lambda layer, given, made: seen.append(made.shape[1]))
    check_that_economy_changes_nothing(objective, pictures)
    paths = getattr(objective.head, "paths", 1)
    assert seen == [objective.student.geometry.grid**2 * paths, objective.corruption.hides * paths]


@pytest.mark.parametrize("more", [
    {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}, {"qkv_bias": False, "init_values": 0.1},
    {"qk_norm": True},
])
def test_any_vit_can_leave_tokens_out(more, make_job, pictures):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    objective = build(make_job("maskdistill", kwargs={**sizes, **more}), pictures)
    check_that_economy_changes_nothing(objective, pictures)


@pytest.mark.parametrize("more", [
    {}, {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False},
    {"use_shared_rel_pos_bias": True, "init_values": None}, {"qkv_bias": False},
    {"use_rel_pos_bias": False, "use_abs_pos_emb": True},
])
@pytest.mark.parametrize("name", ["maskdistill", "beitv2"])
def test_any_beit_can_leave_tokens_out(name, more, make_job, pictures):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    objective = build(make_job(name, model="beit_base_patch16_224", kwargs={**sizes, **more}), pictures)
    objective.teacher.rehearse()
    generator = torch.Generator().manual_seed(0)
    for key, weight in objective.student.named_parameters():
        if "relative_position" in key:  # begin as zeros, where no place differs from another
            weight.data.normal_(generator=generator)
    ours = check_that_economy_changes_nothing(objective, pictures)
    tables = [key for key in ours if "relative_position" in key]
    assert bool(tables) is (more.get("use_rel_pos_bias", True) or "use_shared_rel_pos_bias" in more)
    assert all(ours[key].abs().max() > 0 for key in tables)


@pytest.mark.parametrize("model", [
    "eva02_tiny_patch14_224", "vit_relpos_small_patch16_224", "swin_tiny_patch4_window7_224",
])
def test_other_families_compute_all_tokens(model):
    sizes = {"img_size": 224} if "swin" in model else {"depth": 1}
    assert not narrows(create_backbone(model, sizes))


@pytest.mark.parametrize(("name", "options"), [
    ("mae", {}), ("supervised", {}), ("zoomed_in_mask", {}),
    ("maskdistill", {"loss": {"region": "all"}}),
    ("beit", {"corruption": {"exact": False}}),
])
def test_where_all_tokens_count_none_is_left_out(name, options, make_job, pictures):
    objective = build(make_job(name, slots=varied(name, options)), pictures)
    objective.economise()
    assert not objective.economical


@pytest.mark.parametrize(("name", "options"), [
    ("maskdistill", {"teacher": {"summary": True}}),
    ("simmim", {"teacher": {"type": "Labels"}, "head": {"type": "LinearHead"}}),
])
def test_a_target_that_is_none_of_the_tokens_is_refused_all_the_same(name, options, make_job, pictures):
    objective = build(make_job(name, slots=varied(name, options)), pictures)
    with pytest.raises((ObjectiveError, RuntimeError)) as plain:
        one_step(objective, pictures)
    objective.economise()
    with pytest.raises(plain.type) as economical:
        one_step(objective, pictures)
    assert str(economical.value) == str(plain.value)


def test_a_second_path_without_blocks_is_computed_whole(make_job, pictures):
    slots = varied("beitv2", {"student": {"blocks": 0}, "teacher": {"steps": 20, "codes": 64, "views": 64}})
    objective = build(make_job("beitv2", slots=slots), pictures)
    objective.economise()
    assert not objective.economical


def test_compiled_blocks_compute_the_same(make_job, pictures):
    objective = build(make_job("mae", kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1,
                                              "num_heads": 2}), pictures)
    names = set(objective.state_dict())

    weight = "student.backbone.blocks.0.attn.qkv.weight"
    plain = one_step(objective, pictures)
    assert compile_blocks(objective, backend="aot_eager") == 2  # of student and decoder; a C++ compiler takes minutes
    compiled = one_step(objective, pictures)
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5)
    assert torch.allclose(compiled[1][weight], plain[1][weight], atol=1e-6)
    assert set(objective.state_dict()) == names
    release_blocks(objective)
    assert one_step(objective, pictures)[0] == plain[0]


def test_compiled_blocks_take_attention_by_products(make_job, pictures):
    objective = build(make_job("mae"), pictures)
    plain, *_ = profiled(objective, pictures)
    compile_blocks(objective, backend="aot_eager")
    compiled, _, called = profiled(objective, pictures)
    assert not any("dot_product_attention" in name for name in called)
    assert compiled == pytest.approx(plain, rel=2e-3)


def test_blocks_that_differ_in_drop_path_alone_are_compiled_once(make_job, pictures):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2}
    job = make_job("maskdistill", kwargs=kwargs)
    objective = build(replace(job, optimiser=replace(job.optimiser, drop_path=0.4)), pictures)
    names = set(objective.state_dict())
    torch._dynamo.reset()
    assert compile_blocks(objective, backend=counting) == 5
    one_step(objective, pictures)
    assert len(graphs) == 2  # the first block has no drop path
    assert set(objective.state_dict()) == names
    release_blocks(objective)
    rates = [block.drop_path1.drop_prob for block in objective.student.backbone.blocks[1:]]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    compile_blocks(objective, backend=counting)
    objective.eval()
    release_blocks(objective)
    assert not objective.student.backbone.blocks[-1].drop_path1.training


def test_the_drop_path_of_compiled_blocks_keeps_the_mean():
    part = _DropPath(DropPath(0.25))
    kept = part(torch.ones(4000, 2, 3))
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(part.eval()(kept), kept)

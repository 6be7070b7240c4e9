"""How a step computes changes its rounding, never what is learned."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from objectives.arithmetic import Arithmetic, QuickAttentionOptimWrapper, compile_blocks, release_blocks
from objectives.pretrain import build, pretrain


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


def test_attention_in_bfloat16_on_a_cpu_is_products():
    q = torch.randn(2, 3, 17, 8, dtype=torch.bfloat16, requires_grad=True)
    layer = nn.Linear(1, 1)
    wrapper = QuickAttentionOptimWrapper(torch.optim.SGD(layer.parameters(), 0.1))
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()

    def attention():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            out = nn.functional.scaled_dot_product_attention(q, q, q)
        return out, {event.name for event in profiler.events()}

    with wrapper.optim_context(layer):
        out, called = attention()
    fused, called_outside = attention()
    assert "aten::bmm" in called
    assert not any("flash" in name for name in called)
    assert any("flash" in name for name in called_outside)
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == allowed
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, fused, atol=0.03, rtol=0.03)


def test_compiled_blocks_compute_the_same(make_job, pictures):
    objective = build(make_job("mae", kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1,
                                              "num_heads": 2}), pictures)
    names = set(objective.state_dict())

    def step():
        objective.zero_grad()
        objective.begin_step(0, 0)
        loss = objective(pictures.images[:4], pictures.labels[:4], torch.arange(4))["loss"]
        loss.backward()
        return loss.item(), objective.student.backbone.blocks[0].attn.qkv.weight.grad.clone()

    plain = step()
    assert compile_blocks(objective, backend="aot_eager") == 2  # of student and decoder; a C++ compiler takes minutes
    compiled = step()
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5)
    assert torch.allclose(compiled[1], plain[1], atol=1e-6)
    assert set(objective.state_dict()) == names
    release_blocks(objective)
    assert step()[0] == plain[0]

"""``bench speed``: what is counted and measured is what a hand would count, and every peer trains on the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import speed, speed_peers
from benchmarks import suite as suites
from benchmarks.plan import resolve
from benchmarks.speed_flops import counted
from objectives.arithmetic import Arithmetic, AutocastOptimWrapper
from objectives.recipe import get

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
# 14 x 14 patches of 4 pixels, which mmpretrain's MaskFeat wants; two blocks, which BEiT v2 wants
SMALL = ["suite.input_size=56", "suite.kwargs.img_size=56", "suite.kwargs.patch_size=4", "suite.kwargs.depth=2",
         "suite.kwargs.embed_dim=32", "suite.kwargs.num_heads=2", "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}"]
TINY = ["suite.kwargs.depth=1", "suite.kwargs.embed_dim=32", "suite.kwargs.num_heads=2",
        "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}"]


def planned(name, options=SMALL):
    return resolve(get(name), suites.get("embedded"), "default", options)


def flags(options):
    return [word for option in options for word in ("--cfg-options", option)]


class Attention(nn.Module):
    """One layer as a textbook has it: three projections, softmax(q kᵀ) v, one projection."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_the_operations_of_an_attention_layer():
    batch, tokens, width = 2, 17, 24
    layer, x = Attention(width, 3), torch.randn(batch, tokens, width, requires_grad=True)
    forward = 2 * batch * (4 * tokens * width**2 + 2 * tokens**2 * width)
    with torch.no_grad():
        assert counted(lambda: layer(x)) == forward
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward


def test_fused_and_plain_attention_count_alike():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    layer, x = Attention(32, 2), torch.randn(2, 9, 32, requires_grad=True)
    fused = counted(lambda: layer(x).sum().backward())
    with sdpa_kernel(SDPBackend.MATH):
        assert counted(lambda: layer(x).sum().backward()) == fused


class Hungry(nn.Module):
    """A step that allocates 8 MiB and, while it holds them, 4 MiB more."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2**18))  # 1 MiB

    def train_step(self, data, optimiser):
        one = torch.zeros(2**21)
        two = torch.zeros(2**20)
        del one, two


def test_the_peak_of_memory():
    model = Hungry()
    optimiser = AutocastOptimWrapper(torch.optim.AdamW(model.parameters()))
    nothing = speed._nothing
    contestant = speed.Contestant("x", "ours", Arithmetic(), model, optimiser, [{}], nothing, nothing, CPU)
    assert speed.peak_memory(contestant) == pytest.approx(1 + 8 + 4, abs=0.05)


# the network that BEiT v2's authors trained: relative positions that the blocks share, layer scale, a last norm
BEIT = [*SMALL, "suite.model=beit_base_patch16_224", "suite.kwargs.use_rel_pos_bias=False",
        "suite.kwargs.use_shared_rel_pos_bias=True", "suite.kwargs.use_fc_norm=False"]


@pytest.mark.parametrize(("name", "options"), [*((name, SMALL) for name in speed_peers.CONFIGS), ("beitv2", BEIT)])
def test_every_peer_does_the_same_work(name, options):
    """Two steps of each: arithmetic agrees, weights move, and each step has masks of its own."""
    plan = planned(name, options)
    ours, peer = speed.ours(plan, 2, Arithmetic(), CPU), speed.peer(plan, 2, "fp32", CPU)
    a, b = counted(ours.step), counted(peer.step)
    assert a == pytest.approx(b, rel=0.12)  # mmpretrain's BEiT v2 predicts masked tokens only
    before = {key: value.clone() for key, value in peer.model.backbone.state_dict().items()}
    peer.step()
    moved = [key for key, value in peer.model.backbone.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) > 20
    if name != "mae":  # draws its own
        masks = [torch.stack([sample.mask for sample in batch["data_samples"]]) for batch in peer.batches]
        assert not torch.equal(masks[0], masks[1])
    assert torch.equal(ours.batches[0]["images"], peer.batches[0]["inputs"][0] if name == "beitv2"
                       else peer.batches[0]["inputs"])


def test_beit_has_as_many_weights_on_both_sides():
    plan = planned("beitv2", BEIT)
    student, peer = speed.ours(plan, 2, Arithmetic(), CPU).model.student, speed.peer(plan, 2, "fp32", CPU).model
    ours, theirs = (
        sorted(tuple(p.squeeze().shape) for part in parts for p in part.parameters())
        for parts in ([student], [peer.backbone, peer.neck])
    )
    assert ours == theirs


def test_masks_hide_as_much_on_both_sides():
    for name, share in (("simmim", 0.6), ("maskfeat", 0.4), ("beitv2", 75 / 196)):
        peer = speed.peer(planned(name), 2, "fp32", CPU)
        for sample in peer.batches[0]["data_samples"]:
            assert sample.mask.float().mean().item() == pytest.approx(share, abs=0.03)


def test_peers_that_there_are_not():
    for name, options, words in (
        ("dino", SMALL, "has no step"), ("maskfeat", TINY, "14 x 14"), ("beitv2", TINY, "block before the last"),
        ("mae", ["suite.model=swin_tiny_patch4_window7_224", "suite.kwargs={'img_size': 224}", "suite.input_size=224"],
         "ViTs only"),
        ("mae", BEIT, "for beitv2, BEiT, not beit_base"),
        ("beitv2", [*SMALL, "suite.model=beit_base_patch16_224"], "use_shared_rel_pos_bias=True"),
        ("beitv2", BEIT[:-1], "use_fc_norm=False"),
    ):
        with pytest.raises(speed_peers.NoPeer, match=words):
            speed_peers.build(planned(name, options))


def test_swin_of_simmim():
    options = ["suite.model=swin_tiny_patch4_window7_224", "suite.input_size=64",
               "suite.kwargs={'img_size': 64, 'window_size': 2, 'embed_dim': 16, 'depths': (1, 1, 1, 1), "
               "'num_heads': (1, 1, 2, 2)}"]
    plan = planned("simmim", options)
    a, b = counted(speed.ours(plan, 2, Arithmetic(), CPU).step), counted(speed.peer(plan, 2, "fp32", CPU).step)
    assert a == pytest.approx(b, rel=0.02)


def test_a_table_with_and_without_peers(call, tmp_path):
    kept = tmp_path / "record.json"
    code, out, err = call("speed", "--objective", "mae,dino", "--peer", "mmpretrain", "--batch", 2, "--steps", 1,
                          "--turns", 2, "--how", "plain,fast", "--device", "cpu", "--output", kept, *flags(TINY))
    assert code == 0, err
    assert "timed alone" in err
    record = json.loads(kept.read_text())
    assert [(row["side"], row["fused"]) for row in record["rows"]] == [
        ("ours", False), ("ours", True), ("mmpretrain", False), ("ours", False), ("ours", True)]
    assert len(record["ratios"]) == 2
    pair = record["ratios"][0]
    assert pair["low"] <= pair["ratio"] <= pair["high"]
    assert record["peer_img_per_s"] == record["rows"][2]["images_per_second"]
    assert record["processor_multiplies_bf16"] in (True, False)
    assert "ceiling fp32" in out
    code, _, err = call("speed", "--objective", "dino", "--peer", "mmpretrain", "--device", "cpu")
    assert code == 2
    assert "no step of dino" in err


def test_peers_are_asked_for_before_anything_is_measured(call, monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("measured"))
    code, _, err = call("speed", "--objective", "dino,eva", "--peer", "mmpretrain", "--device", "cpu", *flags(TINY))
    assert code == 2
    assert err.splitlines()[-1] == "bench: --peer mmpretrain: no step of any of these objectives"


def test_objectives_that_take_turns_are_compared_with_the_first(call):
    code, out, err = call("speed", "--objective", "mae,zoomed_in_mask", "--together", "--batch", 2, "--steps", 1,
                          "--turns", 3, "--how", "plain,fast", "--device", "cpu", "--format", "json", *flags(TINY))
    assert code == 0, err
    record = json.loads(out)
    rows = [(row["objective"], row["fused"]) for row in record["rows"]]
    assert rows == [("mae", False), ("mae", True), ("zoomed_in_mask", False), ("zoomed_in_mask", True)]
    pairs = [(ratio["objective"], ratio["ours"], ratio["peer"]) for ratio in record["ratios"]]
    assert pairs == [("zoomed_in_mask", "ours fp32", "mae ours fp32"),
                     ("zoomed_in_mask", "ours fp32 fused", "mae ours fp32 fused")]


def test_bf16_has_its_own_ceiling_and_trains_with_fp32_weights():
    plan = planned("mae", TINY)
    contestants = [speed.ours(plan, 2, Arithmetic("bf16", True), CPU), speed.peer(plan, 2, "bf16", CPU)]
    speeds, ratios, tops = speed.measure(contestants, 2, 1, 1)
    assert [s.precision for s in speeds] == ["bf16", "bf16"]
    assert list(tops) == ["bf16"]
    assert [(r.ours, r.peer) for r in ratios] == [("ours bf16 fused", "mmpretrain bf16")]
    assert {p.dtype for c in contestants for p in c.model.parameters()} == {torch.float32}


def test_gpu_check_without_a_gpu(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, ROOT / "tests" / "gpu.py", "--output", tmp_path / "x.json"],
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "gpu-check" in line] == [
        "gpu-check: no CUDA device here; run it on a machine with a GPU and its driver"]
    assert not (tmp_path / "x.json").exists()


def test_the_cost_of_a_step_against_batch_size_and_depth(monkeypatch):
    from benchmarks import speed_scaling
    from benchmarks.progress import Silent

    varied = {"batch": (0.5, 1), "picture size": (0.5, 1), "depth": (1, 2)}
    monkeypatch.setattr(speed_scaling, "VARIED", varied)
    plan = planned("mae", [*TINY, "suite.batch_size=4"])
    record = speed_scaling.record(plan, Arithmetic(), CPU, 1, 1, Silent())
    rows = {(row["varied"], row["value"]): row for row in record["rows"]}
    assert list(rows) == [("batch", 2), ("batch", 4), ("picture size", 32), ("picture size", 64), ("depth", 1),
                          ("depth", 2)]
    assert rows["batch", 2]["gflops_per_image"] == pytest.approx(rows["batch", 4]["gflops_per_image"], abs=1e-4)
    assert rows["batch", 2]["memory_mb"] < rows["batch", 4]["memory_mb"]
    for small, large in ((("picture size", 32), ("picture size", 64)), (("depth", 1), ("depth", 2))):
        assert rows[small]["gflops_per_image"] < rows[large]["gflops_per_image"]
    monkeypatch.syspath_prepend(ROOT / "docs")
    import scaling

    assert len(scaling.measured(record).splitlines()) == 2 + 2 + len(rows)


def test_hours_are_operations_over_rate(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import scaling

    assert scaling.vit_gflops(224, 224) == pytest.approx(2 * 17.56, rel=0.01)  # 17.6 G multiply-adds (2010.11929)
    assert scaling.Bill("x", 1000, scaling.SHARE * scaling.PEAK * 3.6 / 1e9).hours(2) == pytest.approx(0.5)
    assert {bill.name for bill in scaling.fine_tunings()} == set(suites.get("paper").settings)


def test_what_surrounds_the_steps():
    from benchmarks.speed_overhead import bare, whole
    from objectives.objective import Objective

    step = Objective.train_step
    plan = planned("mae", [*TINY, "suite.batch_size=4", "suite.images_seen=12"])
    seconds, clock = whole(plan, Arithmetic(), CPU)
    assert clock.steps == 3
    assert 0 < clock.seconds < seconds
    assert Objective.train_step is step
    assert bare(plan, Arithmetic(), CPU, 2) > 0


def test_an_objective_that_cannot_be_timed_leaves_the_others(call, tmp_path, monkeypatch):
    made, kept = speed.ours, tmp_path / "record.json"

    def failing(plan, *rest):
        if plan.recipe.name == "mae":
            raise torch.OutOfMemoryError("no room")
        return made(plan, *rest)

    monkeypatch.setattr(speed, "ours", failing)
    few = ["--batch", 2, "--steps", 1, "--turns", 1, "--device", "cpu", "--output", kept, *flags(TINY)]
    code, out, err = call("speed", "--objective", "mae,simmim", *few)
    assert code == 1, err
    record = json.loads(kept.read_text())
    assert [row["objective"] for row in record["rows"]] == ["simmim"]
    assert record["failed"] == {"mae": "OutOfMemoryError: no room"}
    assert "mae: not timed" in out
    code, _, err = call("speed", "--objective", "mae", *few)
    assert code == 2
    assert "nothing could be timed: OutOfMemoryError: no room" in err

"""On a CUDA device: pre-training learns there, and the same draws are made as on the CPU."""

import json

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("name", ["maskdistill", "mae", "simmim", "supervised"])
def test_pretraining_on_cuda_follows_the_cpu(name, tmp_path):
    from objectives import recipe as recipes
    from objectives.pretrain import Pictures, PretrainJob, pretrain

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    pictures = Pictures(images, torch.arange(64) % 4, ("a", "b", "c", "d"), "x")
    losses = {}
    for device in ("cpu", "cuda"):
        recipe = recipes.get(name)
        job = PretrainJob(
            name, recipe.slots(), recipe.optimiser, recipe.crop, True, "vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32, 320, 16, True,
            {"width": 32, "depth": 1, "heads": 2}, "test", 0, device, tmp_path / device,
        )
        pretrain(job, pictures)
        rows = [json.loads(line) for line in (tmp_path / device / "log.jsonl").read_text().splitlines()]
        losses[device] = [row["loss"] for row in rows]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.03)  # bfloat16 against fp32

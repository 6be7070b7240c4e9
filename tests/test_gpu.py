"""On a CUDA device: pre-training learns there, and the same draws are made as on the CPU."""

import json

import pytest
import torch

from objectives import recipe as recipes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


TRAINED = sorted(name for name, recipe in recipes.recipes().items() if recipe.trains)


@pytest.mark.parametrize("name", TRAINED)
def test_pretraining_on_cuda_follows_the_cpu(name, tmp_path):
    from objectives.pretrain import Pictures, PretrainJob, build, prepare, pretrain, save_weights

    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4, generator=generator), size=(32, 32))
    images = (255 * smooth).byte()
    pictures = Pictures(images, torch.arange(64) % 4, ("a", "b", "c", "d"), "x")
    losses, recipe = {}, recipes.get(name)
    slots = recipe.slots()

    def job(device):
        return PretrainJob(
            name, slots, recipe.optimiser, recipe.crop, True, "vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}, 32, 320, 16, True,
            {"width": 32, "depth": 1, "heads": 2}, "test", 0, device, tmp_path / device,
        )

    if "steps" in slots["teacher"]:  # a tokenizer: the same for both, trained for a second on the processor
        slots["teacher"] |= {"steps": 20, "codes": 64}
        if slots["teacher"]["type"] == "VQKD":
            slots["teacher"] |= {"views": 64}
        objective = build(job("cpu"), pictures)
        prepare(objective, job("cpu"), pictures)
        slots["teacher"]["weights"] = str(tmp_path / "tokenizer.safetensors")
        save_weights(objective.teacher, tmp_path / "tokenizer.safetensors")
    for device in ("cpu", "cuda"):
        pretrain(job(device), pictures)
        rows = [json.loads(line) for line in (tmp_path / device / "log.jsonl").read_text().splitlines()]
        losses[device] = [row["loss"] for row in rows]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)  # bfloat16 against fp32

import pytest
import torch

from objectives import recipe as recipes
from objectives.pretrain import Pictures, PretrainJob

MODEL = "vit_tiny_patch16_224"
KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="session")
def pictures():
    """48 pictures of 4 classes with smooth content, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(48, 3, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1)
    labels = torch.arange(48) % 4
    return Pictures((images * 255).byte(), labels, ("a", "b", "c", "d"), "fingerprint")


@pytest.fixture
def make_job(tmp_path):
    """A factory of tiny jobs: ``make_job("mae", images_seen=…, slots=…)``."""

    def make(name, folder="run", **changes):
        recipe = recipes.get(name)
        slots = recipe.slots()
        if "steps" in slots["teacher"]:  # a tokenizer: trained for a second
            slots["teacher"] |= {"steps": 20, "codes": 64}
        if slots["teacher"]["type"] == "VQKD":
            slots["teacher"] |= {"views": 64}
        settings = {
            "objective": name, "slots": slots, "optimiser": recipe.optimiser, "crop": recipe.crop,
            "trains": recipe.trains, "model": MODEL, "kwargs": KWARGS, "input_size": 32, "images_seen": 64,
            "batch_size": 16, "fixed_crop": True, "decoder": {"width": 32, "depth": 1, "heads": 2}, "suite": "test",
            "seed": 0, "device": "cpu", "folder": tmp_path / folder,
        }
        return PretrainJob(**{**settings, **changes})

    return make

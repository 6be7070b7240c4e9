"""``bench eval`` and ``bench export``: rows of weights from elsewhere, and what they are refused for."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from benchmarks import evaluate
from benchmarks import suite as suites
from benchmarks.data import data_root
from benchmarks.errors import RequestError
from benchmarks.evaluate import Wanted
from benchmarks.execute import Execution
from benchmarks.plan import Request, plan
from benchmarks.reproduce import cell_of
from leaderboard.page import page
from leaderboard.records import read_records
from leaderboard.render import render
from leaderboard.table import build

KWARGS = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
SCENES = ("suite.scenes={'pictures_train': 40, 'pictures_val': 20, 'videos_train': 2, 'videos_test': 1, "
          "'frames_train': 4, 'frames_test': 4}")
OPTIONS = [SCENES, *[f"task.{task}.epochs=1" for task in ("classification", "segmentation", "tracking")],
           "task.tracking.pairs_per_epoch=16", "task.tracking.batch_size=8"]
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a plain ViT as timm's keys, as a backbone folder of a suite and in MAE's layout."""
    folder = tmp_path_factory.mktemp("evaluate")
    torch.manual_seed(0)
    state = timm.create_model("vit_tiny_patch16_224", **KWARGS, num_classes=0).state_dict()
    torch.save(state, folder / "plain.pth")
    torch.save({"model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 32)}},
               folder / "mae.pth")
    (folder / "ours").mkdir()
    save_file(state, folder / "ours" / "backbone.safetensors")
    (folder / "ours" / "backbone.json").write_text(json.dumps({
        "format": 1, "model": "vit_tiny_patch16_224", "kwargs": KWARGS, "objective": "mae", "seed": 0,
        "images_seen": 640, "seconds": 3.0, "input_size": 64}))
    return folder


def cells_of(wanted, runs, tasks=("classification",), seeds=(0,), options=OPTIONS):
    converted = evaluate.fetch(wanted)
    request = Request((), tasks, "embedded", (), "default", seeds, options)
    return converted, evaluate.plan(wanted, converted, request, runs)


def score(wanted, runs, cache, monkeypatch, **more):
    """Records of a whole ``bench eval``, by task and seed."""
    monkeypatch.setenv("BENCH_CACHE", str(cache))
    monkeypatch.setattr("benchmarks.execute.set_threads", lambda count=1: torch.set_num_threads(count))  # tiny work
    converted, cells = cells_of(wanted, runs, **more)
    evaluate.install(converted, cells, runs)
    root = data_root(cells[0].pretraining.suite, None, runs, lambda *_: None)
    execution = Execution(runs, root, "cpu")
    todo, done = execution.split(cells)
    execution.check(todo)
    return execution.run(todo), done


def test_one_backbone_from_three_sources_gives_one_number_and_three_rows(place, tmp_path, monkeypatch):
    runs, cache = tmp_path / "runs", place / "cache"
    found = {}
    for name in ("plain.pth", "mae.pth", "ours"):
        heads = None if name == "ours" else 2
        (record,), _ = score(Wanted(str(place / name), heads=heads), runs, cache, monkeypatch)
        assert record.status == "ok", record.reason
        found[name] = record
    assert len({record.metrics["top1"]["value"] for record in found.values()}) == 1
    assert len({record.fingerprints["cell"] for record in found.values()}) == 1
    assert len({record.fingerprints["backbone"] for record in found.values()}) == 1
    # the names: the file's stem, but never one of an objective
    assert found["plain.pth"].objective == "plain"
    assert found["mae.pth"].objective.startswith("mae-")
    assert found["ours"].objective.startswith("mae-")
    # the cost: unknown, unless a suite knows it
    assert found["plain.pth"].cost["pretrain_images"] is None
    assert found["plain.pth"].cost["pretrain_seconds"] is None
    assert found["ours"].cost["pretrain_images"] == 640
    records, invalid = read_records([runs])
    assert (len(records), invalid) == (3, [])
    table = build(records, invalid, suite="embedded")
    assert {row.budget for row in table.rows} == {"elsewhere"}
    for style in ("md", "csv", "json", "html", "tex"):
        assert "plain" in render(table, style)
    assert "plain" in page(table)
    rows = {row["objective"]: row for row in json.loads(render(table, "json"))["rows"]}
    assert next(row for name, row in rows.items() if name.startswith("plain"))["cost"]["pretrain_images"] is None
    # the record says how to get it again; there is nothing to train
    words = shlex.split(found["plain.pth"].command)
    assert words[:4] == ["bench", "eval", "--backbone", str(place / "plain.pth")]
    assert words[words.index("--heads") + 1] == "2"
    with pytest.raises(RequestError, match=r"came from elsewhere.*bench eval --backbone"):
        cell_of(records[0])


def test_a_second_call_scores_nothing_again_and_other_seeds_share_the_weights(place, tmp_path, monkeypatch):
    runs, cache, wanted = tmp_path / "runs", place / "cache", Wanted(str(place / "plain.pth"), heads=2, name="mine")
    new, _ = score(wanted, runs, cache, monkeypatch, seeds=(0,))
    assert len(new) == 1
    again, done = score(wanted, runs, cache, monkeypatch, seeds=(0, 1))
    assert ([r.seed for r in again], len(done)) == ([1], 1)
    folders = sorted((runs / "embedded").glob("mine@*/seed*/pretrain"))
    assert len(folders) == 2
    first, second = (load_file(folder / "backbone.safetensors") for folder in folders)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", ["beit", "swin"])
def test_windows_and_relative_positions_run_on_every_kind_of_task(kind, place, tmp_path, monkeypatch):
    name, kwargs = {
        "beit": ("beit_base_patch16_224", {**KWARGS, "use_abs_pos_emb": False, "use_rel_pos_bias": True,
                                           "use_fc_norm": False}),
        "swin": ("swin_tiny_patch4_window7_224", SWIN),
    }[kind]
    file = tmp_path / f"{kind}.pth"
    torch.save(timm.create_model(name, **kwargs, num_classes=0).state_dict(), file)
    wanted = Wanted(str(file), layout="timm" if kind == "beit" else "")
    records, _ = score(wanted, tmp_path / "runs", place / "cache", monkeypatch,
                       tasks=("classification", "segmentation", "tracking"))
    assert [(r.task, r.status) for r in records] == [(t, "ok") for t in ("classification", "segmentation", "tracking")]


@pytest.mark.parametrize(("change", "message"), [
    ({"name": "mae"}, "an objective of this suite is called so"), ({"name": "a/b"}, "letters, digits"),
    ({"name": "mae@12345678"}, "letters, digits"), ({"heads": 0}, "--heads 0: at least 1"),
    ({"heads": None}, "--heads"), ({"backbone": "nowhere.pth"}, "no file nowhere.pth"),
    ({"backbone": "timm:vit_tinny_patch16_224"}, "did you mean"), ({"layout": "maee"}, "did you mean 'mae'"),
])
def test_requests_that_make_no_sense_are_one_line(change, message, place, tmp_path):
    with pytest.raises(RequestError, match=message) as caught:
        cells_of(Wanted(**({"backbone": str(place / "plain.pth"), "heads": 2} | change)), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("source", "about", "family"), [
    ({"layout": "beit", "file": "x.pth"}, {}, "beit"), ({"layout": "mae", "file": "x.pth"}, {}, "mae"),
    ({"layout": "swin", "file": "x.pth"}, {}, ""), ({"layout": "dinov2", "file": "x.pth"}, {}, ""),
    ({"timm": "vit_base_patch16_224.mae"}, {}, "mae"), ({"timm": "beitv2_large_patch16_224.in1k"}, {}, "beitv2"),
    ({"timm": "vit_base_patch16_224.augreg_in21k"}, {}, ""),
    ({"layout": "folder", "file": "x"}, {"objective": "maskdistill"}, "maskdistill"),
    ({"layout": "folder", "file": "x"}, {"objective": "mine", "recipe": "beit"}, "beit"),
])
def test_the_source_tells_whose_recipes_are_taken(source, about, family):
    found, paper = SimpleNamespace(source=source, about=about), suites.get("paper")
    assert evaluate.recipe_of(Wanted("x"), found, paper) == family
    assert evaluate.recipe_of(Wanted("x", recipe="simmim"), found, paper) == "simmim"


def test_recipes_may_be_those_of_a_length_of_pre_training():
    found, paper = SimpleNamespace(source={}, about={}), suites.get("paper")
    assert evaluate.recipe_of(Wanted("x", recipe="beitv2@1600ep"), found, paper) == "beitv2@1600ep"
    rates = [paper.settings_of("classification", "finetune", family, evaluate.BUDGET)["layer_decay"]
             for family in ("beitv2", "beitv2@1600ep")]
    assert rates == [0.65, 0.6]
    for recipe, words in (("beitv2@1600", "did you mean '1600ep'"), ("beit3@1600ep", "did you mean 'beit")):
        with pytest.raises(RequestError, match=words):
            evaluate.recipe_of(Wanted("x", recipe=recipe), found, paper)


def test_official_weights_get_their_own_recipes_on_suite_paper(tmp_path):
    """A BEiT-L file: BEiT's recipe of ViT-L, though the row is called after the file and timm's name says base."""
    large = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "img_size": 224}
    converted = SimpleNamespace(model="beit_base_patch16_224", kwargs=large, about={}, source={
        "layout": "beit", "file": "beit_large.pth", "sha256": "0" * 64})
    request = Request((), ("classification", "segmentation"), "paper", ("finetune",))

    def recipes(**more):
        found = evaluate.plan(Wanted("beit_large.pth", **more), converted, request, tmp_path)
        assert {cell.pretraining.recipe.name for cell in found} == {"beit_large"}
        return {cell.task.name: cell for cell in found}

    own = recipes()
    options = ["suite.model=beit_large_patch16_224"]
    for cell in plan(Request(["beit"], request.tasks, "paper", ("finetune",), options=options)):
        assert own[cell.task.name].settings == cell.settings
    assert own["classification"].settings["epochs"] == 50
    assert own["segmentation"].pretraining.effort == "weights of beit_large.pth, recipes of beit"
    other = recipes(recipe="beitv2")["classification"]
    assert other.settings["lr"] == 5e-4
    assert other.pretraining.weights["recipe"] == "beitv2"
    with pytest.raises(RequestError, match="did you mean 'beitv2'"):
        recipes(recipe="beitv")


def test_options_of_pre_training_are_refused(place, tmp_path):
    with pytest.raises(RequestError, match="nothing is pre-trained"):
        cells_of(Wanted(str(place / "plain.pth"), heads=2), tmp_path, options=["optimiser.lr=1"])


def test_a_name_stands_for_one_set_of_weights(place, tmp_path):
    converted, cells = cells_of(Wanted(str(place / "plain.pth"), heads=2, name="mine"), tmp_path, options=[])
    evaluate.install(converted, cells, tmp_path)
    cells_of(Wanted(str(place / "plain.pth"), heads=2, name="mine"), tmp_path, options=[])
    for other in (Wanted(str(place / "mae.pth"), heads=2, name="mine"),
                  Wanted(str(place / "plain.pth"), heads=4, name="mine"),
                  Wanted(str(place / "plain.pth"), heads=2, patch_size=8, name="mine")):
        for options in ([], ["task.depth.epochs=3"]):
            with pytest.raises(RequestError, match="the name of other weights"):
                cells_of(other, tmp_path, options=options)


def test_a_name_of_a_row_with_options_stands_for_its_weights(place, tmp_path):
    converted, cells = cells_of(
        Wanted(str(place / "plain.pth"), heads=2, name="mine"), tmp_path, options=["task.depth.epochs=3"])
    evaluate.install(converted, cells, tmp_path)
    for options in ([], ["task.depth.epochs=3"], ["task.depth.epochs=4"]):
        with pytest.raises(RequestError, match="the name of other weights"):
            cells_of(Wanted(str(place / "mae.pth"), heads=2, name="mine"), tmp_path, options=options)


def test_timm_by_name_gives_a_clean_row(place, tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(net.state_dict(), tmp_path / "augreg in21k.pth")
    source = f"timm:vit_tiny_patch16_224={tmp_path / 'augreg in21k.pth'}"
    _, cells = cells_of(Wanted(source), tmp_path)
    assert cells[0].pretraining.recipe.name == "timm-vit_tiny_patch16_224-augreg-in21k"
    assert cells[0].pretraining.images_seen is None


def test_export_finds_a_folder_or_a_row(place, tmp_path):
    converted, cells = cells_of(Wanted(str(place / "plain.pth"), heads=2), tmp_path, options=[])
    evaluate.install(converted, cells, tmp_path)
    for run in ("embedded/plain/seed0", "embedded/plain", str(place / "ours")):
        text = evaluate.export(run, "timm", tmp_path / "out", tmp_path)
        assert "timm.create_model('vit_tiny_patch16_224'" in text
        assert Path(tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(RequestError, match=r"no backbone\.json"):
        evaluate.export("embedded/plane", "timm", tmp_path / "out", tmp_path)
    with pytest.raises(RequestError, match="did you mean 'openmmlab'"):
        evaluate.export(str(place / "ours"), "openmlab", tmp_path / "out", tmp_path)

"""``bench analyze``: finding backbones, keeping results, figures, sheets, and the command itself."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import analysis_figures, analysis_sheets, studies
from benchmarks import analyze as analyses
from benchmarks.errors import RequestError
from benchmarks.plan import digest
from benchmarks.progress import Reporter
from benchmarks.suite import get
from downstream.analysis.probe import Layout
from leaderboard.analyses import studied, summary_of
from leaderboard.details import problem
from leaderboard.records import read_record

VIT = ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2})
SWIN = ("swinv2_tiny_window8_256", {
    "img_size": 64, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4})
CONV = ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)})


def write_backbone(folder, network, seed=0, **about):
    model, kwargs = network
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net = timm.create_model(model, **{**kwargs, "num_classes": 0})
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "backbone.safetensors")
    (folder / "backbone.json").write_text(json.dumps({"format": 1, "model": model, "kwargs": kwargs, **about}))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(runs folder with three backbones, folder of 40 pictures in two classes)."""
    root = tmp_path_factory.mktemp("analyze")
    for name, network, size in (("simmim", VIT, 32), ("supervised", SWIN, 64), ("mae", CONV, 64)):
        write_backbone(root / "runs" / "embedded" / name / "seed0" / "pretrain", network, objective=name,
                       suite="embedded", seed=0, input_size=size)
    rng = np.random.default_rng(0)
    for i in range(40):
        path = root / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 40 + i, 3), dtype=np.uint8)).save(path)
    return root / "runs", root / "pictures"


def analysed(world, overwrite="only-missing", count=36, **settings):
    chosen = analyses.choose_pictures(world[1], count, "noise")
    words = {"keys": "renormalised", "entropy": "nats", "kl": "others", "cka": "minibatch", "cka_features": "tokens"}
    folders = studies.find_backbones(world[0], "embedded")
    return analyses.analyze(folders, chosen, analyses.settings_of(**(words | settings)), "cpu", overwrite, Reporter())


@pytest.fixture(scope="module")
def found(world):
    return analysed(world)


def test_every_backbone_gets_a_record_beside_those_of_its_tasks(world, found):
    assert [(a.objective, a.budget, a.seed) for a in found] == [
        ("mae", "default", 0), ("simmim", "default", 0), ("supervised", "default", 0)]
    for analysis in found:
        folder = world[0] / "embedded" / analysis.objective / "seed0" / "backbone.analysis"
        assert read_record(folder / "analysis.json") == analysis
        assert sorted(path.name for path in folder.iterdir()) == ["analysis.json", "grams.npy"]
        assert analysis.fingerprints["backbone"]
    conv, vit, swin = found
    assert conv.details["note"].startswith("no attention")
    assert conv.main_metric[0] == "effective_rank_last"
    assert summary_of(conv)["attention_distance_last"] is None
    assert vit.main_metric[0] == "attention_distance_last"
    assert vit.metrics["attention_distance_last"]["unit"] == "px"
    assert [len(layer["heads"]["distance"]) for layer in vit.details["layers"]] == [2, 2, 2]
    assert [len(layer["heads"]["distance"]) for layer in swin.details["layers"]] == [2, 2, 4, 4]
    assert (vit.config["images"]["size"], swin.config["images"]["size"]) == (32, 64)
    text = analyses.table(found)
    assert "conventions: keys renormalised, nats" in text
    assert "mae (default) seed0: no attention" in text
    assert "36 of noise" in text


def test_whose_row_a_backbone_is(tmp_path, tiny_record):
    runs = tmp_path / "runs"
    long = write_backbone(runs / "embedded" / f"mae@{digest({'budget': 'long'})[:8]}" / "seed1" / "pretrain", VIT,
                          objective="mae", suite="embedded", seed=1)
    found = studies.subject(long)
    assert (found.objective, found.budget, found.variant, found.seed) == ("mae", "long", {}, 1)
    assert found.label == "mae (long) seed1"
    other = write_backbone(runs / "embedded" / "mae@12345678" / "seed0" / "pretrain", VIT, objective="mae",
                           suite="embedded", seed=0)
    assert studies.subject(other).variant == {"folder": "mae@12345678"}
    tiny_record(other, variant={"optimiser.lr": 1.0}, budget="default")
    assert studies.subject(other).variant == {"optimiser.lr": 1.0}
    alone = write_backbone(tmp_path / "mine", VIT)
    found = studies.subject(alone)
    assert (found.objective, found.seed) == ("mine", 0)
    assert found.place("backbone", "analysis") == alone.resolve() / "backbone.analysis"


@pytest.fixture
def tiny_record():
    """``make(folder, …)``: a task record of the backbone in ``folder``, beside it, from a committed one."""
    from dataclasses import replace

    from benchmarks.execute import sha256
    from benchmarks.options import COMMITTED
    from leaderboard.records import write_record

    def make(folder, **changes):
        record = read_record(sorted(COMMITTED.glob("embedded/mae*/seed0/depth.frozen/result.json"))[0])
        prints = {**record.fingerprints, "backbone": sha256(folder)}
        write_record(folder.parent / "depth.frozen", replace(record, fingerprints=prints, **changes))

    return make


def test_up_to_date_analyses_are_kept_and_outdated_ones_made_again(world, tmp_path):
    runs = tmp_path / "runs"
    folder = write_backbone(runs / "embedded" / "simmim" / "seed0" / "pretrain", VIT, input_size=32)
    path = folder.parent / "backbone.analysis" / "analysis.json"

    def again(**more):
        before = path.stat().st_mtime_ns if path.exists() else 0
        result = analysed((runs, world[1]), **more)[0]
        return result, path.stat().st_mtime_ns != before

    first, written = again()
    assert written
    assert again() == (first, False)
    assert again(entropy="bits")[1]
    assert not again(overwrite="never")[1]
    assert again(count=20)[1]
    write_backbone(folder, VIT, seed=1, input_size=32)
    second, written = again()
    assert written
    assert second.fingerprints["backbone"] != first.fingerprints["backbone"]
    path.with_name("grams.npy").unlink()
    assert again()[1]
    path.write_text("{")
    assert again()[1]


def test_between_backbones_of_unlike_kinds(found):
    _, vit, swin = found
    assert analyses.comparable(vit, swin)
    values = analyses.cka_between(vit, swin)
    assert (len(values), len(values[0])) == (3, 4)
    own = analyses.cka_between(vit, vit)
    assert np.array(own) == pytest.approx(np.array(vit.details["cka"]), abs=1e-4)


def test_records_hold_cka_with_the_supervised_backbone(world, tmp_path):
    runs = tmp_path / "runs"
    for name, seed in (("simmim", 0), ("supervised", 1)):
        write_backbone(runs / "embedded" / name / "seed0" / "pretrain", VIT, seed=seed, objective=name,
                       suite="embedded", input_size=32)
    made = analysed((runs, world[1]))
    simmim, supervised = analyses.relate(made)
    told = simmim.details["between"]
    assert (told["objective"], told["backbone"]) == ("supervised", supervised.fingerprints["backbone"])
    assert np.array(told["cka"]) == pytest.approx(np.array(analyses.cka_between(simmim, supervised)), abs=1e-6)
    assert "between" not in supervised.details
    assert read_record(simmim.path).details == simmim.details
    assert problem(simmim) == ""
    assert analyses.relate([simmim, supervised]) == [simmim, supervised]  # known already
    assert analyses.relate([made[0]]) == [made[0]]  # nothing to compare with
    again = analysed((runs, world[1]))
    assert again[0].details["between"] == told  # kept with the analysis
    (row, _) = studied(again)
    assert row.between.objective == "supervised"


def test_figures_hold_a_dot_a_head(found, tmp_path):
    paths = analysis_figures.draw(found, tmp_path)
    names = ["attention-distance", "attention-entropy", "head-kl", "features", "cka", "cka-between"]
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("png", "svg")]
    for path in paths[::2]:
        assert Image.open(path).width > 300
    svg = (tmp_path / "attention-distance.svg").read_text()
    assert "simmim" in svg
    assert "mae" not in svg  # no attention, no panel
    assert "mae" in (tmp_path / "features.svg").read_text()
    assert analysis_figures.draw(found, tmp_path / "again")
    assert (tmp_path / "again" / "cka.svg").read_text() == (tmp_path / "cka.svg").read_text()


def test_colours_differ_in_grey():
    def grey(colour):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert abs(grey(analysis_figures.DOT) - grey(analysis_figures.MEAN)) > 100
    assert len(set(analysis_figures.MARKERS)) == len(analysis_figures.COLOURS)


def test_one_sheet_and_chosen_queries(world, tmp_path):
    chosen = analyses.choose_pictures(world[1], 8, "noise")
    mae, simmim, _ = studies.find_backbones(world[0], "embedded")
    queries = analysis_sheets.queries_of(["0.9,0.1"])
    assert queries == ((0.1, 0.9),)
    path = tmp_path / "one.png"
    assert analysis_sheets.write([simmim], chosen, path, ["attention"], queries) == [path]
    assert Image.open(path).size == ((1 + 3 + 2) * 132 + 4, 32 + 4 * 132 + 4)
    with pytest.raises(RequestError, match="ConvNeXt has no attention"):
        analysis_sheets.write([mae], chosen, tmp_path, ["attention"])
    with pytest.raises(RequestError, match="2 sheets do not go into one file"):
        analysis_sheets.write([mae, simmim], chosen, path, ["features"])
    for text in ("0.5", "a,b", "2,0"):
        with pytest.raises(RequestError, match="--query"):
            analysis_sheets.queries_of([text])


def test_sheets(world, tmp_path):
    folders = studies.find_backbones(world[0], "embedded")
    paths = analysis_sheets.write(folders, analyses.choose_pictures(world[1], 8, "noise"), tmp_path)
    assert [p.name for p in paths] == [
        "features-mae-seed0.png", "attention-simmim-seed0.png", "features-simmim-seed0.png",
        "attention-supervised-seed0.png", "features-supervised-seed0.png",
    ]
    assert Image.open(paths[1]).size == ((1 + 3 + 2) * 132 + 4, 32 + 8 * 132 + 4)
    assert Image.open(paths[2]).size == ((1 + 3) * 132 + 4, 32 + 4 * 132 + 4)


def test_the_map_of_a_query_is_its_row_of_the_attention():
    layout = Layout.whole((3, 4), 8.0, prefix=1)
    attention = torch.randn(2, 2, 13, 13).softmax(-1)
    found = analysis_sheets.query_maps(attention.log(), layout, (0.5, 0.5))  # row 1, column 2: token 6
    row = attention[:, :, 1 + 6, 1:]
    torch.testing.assert_close(found.maps, (row / row.sum(-1, keepdim=True)).view(2, 2, 3, 4))
    assert found.box == (16, 8, 24, 16)


def test_the_map_of_a_query_in_a_shifted_window_is_put_where_it_lies():
    layout = Layout.windows((8, 8), 4.0, (4, 4), (2, 2))
    identity = torch.eye(16).expand(3 * 4, 2, 16, 16)
    for query, place in (((0.5, 0.5), (4, 4)), ((0.0, 0.0), (0, 0)), ((0.99, 0.3), (7, 2))):
        maps = analysis_sheets.query_maps(identity.clamp(min=1e-30).log(), layout, query).maps
        assert torch.equal((maps[1, 0] > 0.5).nonzero(), torch.tensor([place]))


def test_principal_colours_tell_halves_apart():
    maps = torch.randn(3, 8, 4, 4) * 0.01
    maps[:, 0, :, 2:] += 5
    colours = analysis_sheets.principal_colours(maps)
    assert colours.shape == (3, 4, 4, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    assert abs(colours[:, :, 2:, 0].mean() - colours[:, :, :2, 0].mean()) > 0.9
    assert (analysis_sheets.principal_colours(maps[:, :2])[..., 2] == 0.5).all()


def test_pictures_are_spread_evenly_and_the_same_each_time(world):
    chosen = analyses.choose_pictures(world[1], 10, "noise")
    assert len(chosen.files) == len(set(chosen.files)) == 10
    assert {path.parent.name for path in chosen.files} == {"a", "b"}
    assert chosen.files == analyses.choose_pictures(world[1], 10, "noise").files
    assert len(analyses.choose_pictures(world[1], 1000, "noise").files) == 40
    assert [b.shape for b in analyses.choose_pictures(world[1], 40, "noise").batches(32)] == [
        (32, 3, 32, 32), (8, 3, 32, 32)
    ]
    with pytest.raises(RequestError, match="at least 8"):
        analyses.choose_pictures(world[1], 3, "noise")
    with pytest.raises(RequestError, match="no folder"):
        analyses.choose_pictures(world[1] / "none", 10, "noise")


def test_a_suites_pictures_are_held_out(tmp_path):
    for part in ("train", "val"):
        for i in range(9):
            path = tmp_path / "imagenet" / part / "ball" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    chosen = analyses.suite_pictures(get("embedded"), tmp_path, 9)
    assert {path.parent.parent.name for path in chosen.files} == {"val"}
    assert chosen.source == "embedded: imagenet/val"


def test_requests_that_are_wrong(world, tmp_path):
    with pytest.raises(RequestError, match="no backbone of dino"):
        studies.find_backbones(world[0], "embedded", ["dino"])
    assert [f.parent.parent.name for f in studies.find_backbones(world[0], "embedded", ["mae"])] == ["mae"]
    with pytest.raises(RequestError, match="nits"):
        analysed(world, entropy="nits")
    settings = analyses.settings_of("renormalised", "nats", "others", "minibatch", "tokens")
    pictures = analyses.choose_pictures(world[1], 8, "noise")
    with pytest.raises(RequestError, match=r"no .*backbone.json"):
        analyses.analyze([tmp_path], pictures, settings, "cpu", "always", Reporter())
    resnet = write_backbone(tmp_path / "resnet", ("resnet10t", {}), input_size=32)
    with pytest.raises(RequestError, match="ResNet"):
        analyses.analyze([resnet], pictures, settings, "cpu", "always", Reporter())
    assert not list(resnet.glob("*analysis*"))


def test_a_damaged_picture_leaves_no_half_analysis(world, tmp_path):
    folder = write_backbone(tmp_path / "vit", VIT, input_size=32)
    pictures = analyses.choose_pictures(world[1], 40, "noise")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    bad = analyses.Pictures((*pictures.files[:35], damaged), tmp_path.parent, "noise")
    bad.__dict__["fingerprint"] = "x"
    settings = analyses.settings_of("renormalised", "nats", "others", "minibatch", "tokens")
    with pytest.raises(RequestError, match=r"damaged\.png"):
        analyses.analyze([folder], bad, settings, "cpu", "always", Reporter())
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob("analysis.json"))


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL, timeout=300,
    )


def test_the_command(world, tmp_path):
    done = bench(
        "analyze", "--runs", world[0], "--pictures", world[1], "--images", 12, "--objective", "simmim,mae",
        "--figures", tmp_path / "figures", "--sheets", tmp_path / "sheets", "--format", "json",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [b["objective"] for b in found["backbones"]] == ["mae", "simmim"]
    assert found["backbones"][1]["summary"]["attention_distance_last"] > 0
    assert found["correlations"] is None
    assert found["backbones"][0]["note"].startswith("no attention")
    assert len(found["files"]) == 12 + 3
    one = bench("analyze", "--backbone", world[0] / "embedded" / "simmim" / "seed0" / "pretrain",
                "--pictures", world[1], "--images", 12)
    assert one.returncode == 0
    assert "analysed already" in one.stderr
    assert "conventions:" in one.stdout


def test_visualize_shows_what_a_backbone_sees(call, world, tmp_path):
    folder = world[0] / "embedded" / "simmim" / "seed0" / "pretrain"
    common = ("--backbone", folder, "--pictures", world[1], "--runs", tmp_path)
    for what, more in (("attention", ("--query", "0.5,0.5")), ("features", ())):
        path = tmp_path / f"{what}.png"
        code, out, err = call("visualize", what, *common, *more, "--output", path)
        assert code == 0, err
        assert out.split() == [str(path)]
        assert Image.open(path).width > 300
    code, _, err = call("visualize", "attentoin", *common)
    assert code == 2
    assert "attention" in err
    code, _, err = call("visualize", "--pictures", world[1], "--runs", tmp_path)
    assert code == 2
    assert "bench visualize attention" in err


def test_a_backbone_that_bench_eval_takes(call, world, tmp_path):
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), file)
    code, out, err = call("analyze", "--backbone", f"timm:test_vit={file}", "--runs", tmp_path / "runs",
                          "--pictures", world[1], "--images", 8, "--format", "json")
    assert code == 0, err
    (found,) = json.loads(out)["backbones"]
    assert found["model"] == "test_vit"
    assert (tmp_path / "runs" / "embedded" / found["objective"] / "seed0" / "backbone.analysis").is_dir()
    code, _, err = call("analyze", "--backbone", tmp_path / "none", "--pictures", world[1], "--runs", tmp_path)
    assert code == 2
    assert len(err.strip().splitlines()) == 1

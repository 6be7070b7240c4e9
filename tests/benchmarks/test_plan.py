"""Planning: options, folders, fingerprints."""

import pytest

from benchmarks import suite as suites
from benchmarks.commands.run import Means, computed
from benchmarks.errors import RequestError
from benchmarks.execute import Execution
from benchmarks.plan import Request, digest, parse_value, plan, resolve, sweep
from objectives import recipe as recipes


def cells(**changes):
    return plan(Request(**{"objectives": ["maskdistill"], "tasks": ["all"], **changes}))


def test_a_backbone_serves_all_its_tasks():
    planned = cells(objectives=["mae", "random_init"], seeds=(0, 1), protocols=["frozen", "finetune"])
    assert len(planned) == 2 * 2 * 5 * 2
    assert len({cell.pretraining.folder for cell in planned}) == 4
    assert str(planned[0].folder) == "embedded/mae/seed0/classification.frozen"


def test_all_means_every_registered_objective():
    names = {cell.pretraining.recipe.name for cell in cells(objectives=["all"], tasks=["depth"])}
    assert names == set(recipes.recipes())


def test_variants_get_a_folder_and_a_fingerprint_of_their_own():
    plain, other = cells()[0], cells(options=["objective.loss.type=L1"])[0]
    assert plain.folder != other.folder
    assert "@" in str(other.folder)
    assert other.pretraining.slots["loss"] == {"type": "L1"}
    assert plain.pretraining.fingerprint("d") != other.pretraining.fingerprint("d")
    long = cells(budget="long")[0]
    assert long.pretraining.images_seen > plain.pretraining.images_seen
    assert long.folder != plain.folder


def test_weights_behind_a_path_are_part_of_the_backbones_fingerprint(tmp_path):
    def made(*options):
        return cells(options=options)[0].pretraining

    base = made()
    assert base.fingerprint("d") == digest([base.config(), 0, "d"])  # as in the committed records
    timm = made("objective.teacher.source=timm:test_vit")
    assert timm.fingerprint("d") == digest([timm.config(), 0, "d"])
    path, told = tmp_path / "w.safetensors", []
    for weights in (b"one", b"one", b"other"):
        path.write_bytes(weights)
        chosen = made("objective.teacher.source=timm:test_vit", f"objective.teacher.weights={path}")
        told.append(chosen.fingerprint("d"))
    assert told[0] == told[1] != told[2]


def test_a_fingerprint_covers_seed_data_backbone_and_settings():
    base = cells()[0]
    same = cells()[0]
    assert base.fingerprint("b", "d") == same.fingerprint("b", "d")
    others = [
        cells(seeds=(1,))[0].fingerprint("b", "d"), base.fingerprint("other", "d"), base.fingerprint("b", "other"),
        cells(options=["task.classification.epochs=1"])[0].fingerprint("b", "d"),
    ]
    assert len({base.fingerprint("b", "d"), *others}) == 5


def test_options_reach_their_place():
    options = [
        "objective.corruption.ratio=0.5", "objective.teacher.source=timm:resnet18", "optimiser.lr=1e-3",
        "crop.scale=[0.5, 1.0]", "suite.fixed_crop=False", "suite.kwargs.depth=3", "suite.batch_size=48",
        "suite.images_seen=640", "task.pose.epochs=2",
    ]
    made = resolve(recipes.get("maskdistill"), suites.get("embedded"), "default", options)
    assert made.slots["corruption"] == {"type": "BlockMask", "ratio": 0.5}
    assert made.slots["teacher"]["source"] == "timm:resnet18"
    assert made.optimiser.lr == 1e-3
    assert made.crop.scale == (0.5, 1.0)
    assert made.suite.kwargs["depth"] == 3
    assert (made.suite.batch_size, made.images_seen) == (48, 640)
    assert {s["epochs"] for s in made.suite.settings["pose"].values()} == {2}
    assert made.variant["suite.batch_size"] == 48
    assert suites.get("embedded").batch_size != 48  # the registered suite is left alone


def test_the_order_of_options_does_not_count():
    options = ["suite.kwargs.drop_rate=0.1", "suite.kwargs={'img_size': 64, 'patch_size': 16}",
               "suite.model=vit_small_patch16_224", "suite.input_size=32", "objective.loss.beta=0.5",
               "objective.loss.type=L1", "suite.batch_size=8"]
    orders = [options, options[::-1], sorted(options)]
    made = [resolve(recipes.get("maskdistill"), suites.get("embedded"), "default", order) for order in orders]
    assert made[0].suite.kwargs == {"img_size": 32, "patch_size": 16, "drop_rate": 0.1}
    assert made[0].slots["loss"] == {"type": "L1", "beta": 0.5}
    assert all(other.config() == made[0].config() and other.variant == made[0].variant for other in made[1:])
    assert set(made[0].variant) == {option.partition("=")[0] for option in options}


def test_of_a_key_given_twice_the_last_is_meant():
    request = Request(["maskdistill"], ["classification"], options=["suite.batch_size=8"])
    (cell,) = sweep(request, [f"suite.batch_size={suites.get('embedded').batch_size}"])
    assert cell.pretraining.variant == {}


@pytest.mark.parametrize(("raw", "value"), [("3", 3), ("0.5", 0.5), ("True", True), ("[1, 2]", [1, 2]), ("L1", "L1")])
def test_values_are_literals_or_text(raw, value):
    assert parse_value(raw) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ["maskdistil"]}, "did you mean 'maskdistill'"),
        ({"tasks": ["segmentatoin"]}, "did you mean 'segmentation'"),
        ({"suite": "embeded"}, "did you mean 'embedded'"),
        ({"protocols": ["frozn"]}, "did you mean 'frozen'"),
        ({"budget": "lnog"}, "did you mean 'long'"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": ()}, "seeds"),
        ({"options": ["nonsense"]}, "key=value"),
        ({"options": ["objctive.loss.type=L1"]}, "did you mean 'objective.'"),
        ({"options": ["objective.los.type=L1"]}, "did you mean 'loss'"),
        ({"options": ["objective.loss=L1"]}, "objective.loss.type"),
        ({"options": ["optimiser.lrr=1"]}, "did you mean 'optimiser.lr'"),
        ({"options": ["suite.batch_size=0"]}, "at least 1"),
        ({"options": ["suite.images_seen=-5"]}, "at least 1"),
        ({"options": ["suite.nonsense=1"]}, "suite."),
        ({"options": ["task.poze.epochs=1"]}, "did you mean 'pose'"),
        ({"options": ["task.pose=1"]}, "task.pose.epochs"),
    ],
)
def test_wrong_requests_name_the_thing_and_the_mend(changes, message):
    with pytest.raises(RequestError, match=message) as caught:
        cells(**changes)
    assert "\n" not in str(caught.value)


def test_a_sweep_is_the_grid_and_the_recipes_own_values_are_no_variants():
    request = Request(["maskdistill"], ["classification"])
    cells = sweep(request, ["objective.normalisation.type=none,layernorm", "objective.loss.type=smooth_l1,l1,cosine"])
    variants = [cell.pretraining.variant for cell in cells]
    assert len(variants) == 6
    assert {} in variants
    assert {"objective.normalisation.type": "NoNorm", "objective.loss.type": "L1"} in variants
    assert len({cell.folder for cell in cells}) == 6


def test_a_sweep_keeps_lists_whole_and_names_what_is_wrong():
    request = Request(["mae"], ["classification"])
    cells = sweep(request, ["optimiser.betas=[0.9, 0.95],[0.9, 0.99]"])
    assert [cell.pretraining.optimiser.betas for cell in cells] == [(0.9, 0.95), (0.9, 0.99)]
    assert [bool(cell.pretraining.variant) for cell in cells] == [False, True]
    with pytest.raises(RequestError, match=r"--vary 'objective\.loss\.type='"):
        sweep(request, ["objective.loss.type="])
    with pytest.raises(RequestError, match="did you mean 'Cosine'"):
        sweep(request, ["objective.loss.type=cosin"])


def test_cells_of_other_scenes_are_scored_on_other_data(monkeypatch, tmp_path):
    def of(suite):
        return str(suite.scenes["size"])

    def split(execution, own):
        seen.extend((execution.root.name, cell) for cell in own)
        return [], own

    cells = sweep(Request(["random_init"], ["depth", "pose"]), ["suite.scenes={'size': 64},{'size': 128}"])
    seen, means = [], Means("cpu", 1)
    monkeypatch.setattr("benchmarks.data.data_root", lambda suite, *_: tmp_path / of(suite))
    monkeypatch.setattr(Execution, "split", split)
    assert computed(cells, tmp_path, None, means, "only-missing")
    assert [cell for _, cell in seen] == cells
    assert [root for root, _ in seen] == [of(cell.pretraining.suite) for cell in cells]
    with pytest.raises(RequestError, match="--data-root with several"):
        computed(cells, tmp_path, tmp_path, means, "only-missing")


@pytest.mark.parametrize(("name", "option", "said"), [
    ("mae", "crop.scale=(0.5, 1.0)", "does not crop its pictures"),
    ("mae", "objective.head.depth=4", "gives decoders its own size"),
])
def test_options_that_would_change_nothing_are_refused(name, option, said):
    with pytest.raises(RequestError, match=said):
        plan(Request([name], ["depth"], "embedded", options=[option]))
    plan(Request([name], ["depth"], "paper", options=[option], protocols=["finetune"]))
    plan(Request(["simmim"], ["depth"], "embedded", options=["crop.flip=False"]))

"""Bad input of every kind, each with its line and exit code: requests, places, data, weights, records, archives.

Every row runs the command in this process. A refused request (exit 2) is exactly one line on stderr that begins with
``bench:`` and nothing on stdout; a hurt cell (exit 1) is named and the table is printed; nothing half-written is left.
"""

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from leaderboard.records import read_record, write_record

REFUSED, HURT, FINE = 2, 1, 0
MINI = ["--suite", "mini", "--data-root", "{root}", "--runs", "{runs}"]

@dataclass(frozen=True)
class Place:
    """The folders of one row; ``root`` and ``runs`` are its own to damage."""

    root: Path
    runs: Path
    tmp: Path


@dataclass(frozen=True)
class Row:
    """A bad input: the command, what the line must hold, the exit code, and what was damaged before."""

    what: str
    arguments: list[str]
    line: str
    code: int = REFUSED
    damage: Callable[[Place], object] | None = None


def options(*given):
    return [flag for option in given for flag in ("--cfg-options", option)]


def run(*more, objective="mae"):
    """A request that is wrong before any data are looked at."""
    return ["run", "--objective", objective, "--runs", "{runs}", *more]


def built(*given, objective="mae"):
    """A request whose objective has to be built to see that it is wrong."""
    return ["run", "--objective", objective, "--tasks", "classification", *MINI, "{tiny}", *options(*given)]


def another(*given):
    """A request for a backbone of another kind, at that one's own sizes."""
    return ["run", "--objective", "mae", "--tasks", "classification", *MINI, *options(*given)]


def cell(task, *given, objective="random_init"):
    """A cell that goes as far as its data and weights allow."""
    return ["run", "--objective", objective, "--tasks", task, *MINI, "{tiny}", *options(*given)]


# --- damage -----------------------------------------------------------------------------------------------------------


def halve(pattern):
    """Keep the first half of the first file that matches below the data."""
    def damage(place):
        path = sorted(place.root.glob(pattern))[0]
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])

    return damage


def remove(pattern):
    def damage(place):
        path = sorted(place.root.glob(pattern))[0]
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(name, text):
    """Put ``text`` (or bytes) into a file below the data."""
    def damage(place):
        path = place.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def edit(name, change):
    """Change a JSON file below the data."""
    def damage(place):
        content = json.loads((place.root / name).read_text())
        change(content)
        (place.root / name).write_text(json.dumps(content))

    return damage


def line_of(name, number, text):
    def damage(place):
        lines = (place.root / name).read_text().splitlines()
        lines[number] = text
        (place.root / name).write_text("\n".join(lines) + "\n")

    return damage


class Evil:
    """Unpickling this makes a folder; only a loader that executes pickles does that."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def evil_weights(place):
    torch.save({"model": Evil(place.tmp / "executed")}, place.tmp / "evil.pth")


def backbone_folder(place, change):
    """A trained backbone as a teacher, damaged by ``change``."""
    source = next(place.runs.glob("mini/*/seed0/pretrain"))
    shutil.copytree(source, place.tmp / "teacher")
    change(place.tmp / "teacher")


def without_a_key(folder):
    state = load_file(folder / "backbone.safetensors")
    state.pop("norm.weight")
    save_file(state, folder / "backbone.safetensors")


def description_of_elsewhere(place):
    evil_weights(place)
    record_path(place).unlink()
    path = next(place.runs.glob("mini/*/seed0/pretrain/backbone.json"))
    about = json.loads(path.read_text())
    about["kwargs"]["checkpoint_path"] = str(place.tmp / "evil.pth")
    path.write_text(json.dumps(about))


def teacher_of_elsewhere(**leads):
    """A teacher's folder whose description points out of it."""
    def change(place, folder):
        path = folder / "backbone.json"
        about = json.loads(path.read_text())
        about["model"] = leads.get("model", about["model"])
        about["kwargs"] |= {key: value.format(tmp=place.tmp) for key, value in leads.items() if key != "model"}
        path.write_text(json.dumps(about))

    def damage(place):
        evil_weights(place)
        backbone_folder(place, lambda folder: change(place, folder))

    return damage


def cut_weights(place):
    path = next(place.runs.glob("mini/*/seed0/pretrain/backbone.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])


def record_path(place):
    return next(place.runs.glob("mini/*/seed0/classification.frozen/result.json"))


def record(change):
    """Change the finished record's JSON."""
    def damage(place):
        path = record_path(place)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def record_of_elsewhere(place):
    """A whole record whose configuration points out of the data folder."""
    found = read_record(record_path(place))
    config = {**found.config, "data": {**found.config["data"], "root": "../../etc"}}
    write_record(record_path(place).parent, replace(found, config=config))


def record_bytes(data):
    return lambda place: record_path(place).write_bytes(data)


def archive(*entries, mode=0):
    """A zip file of (name, content); ``mode`` are the file's unix bits."""
    def damage(place):
        with zipfile.ZipFile(place.tmp / "bundle.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in entries:
                info = zipfile.ZipInfo("x")
                info.filename, info.external_attr = name, mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                file.writestr(info, content)

    return damage


POSES = "lspet_pose/annotations/person_keypoints_train.json"
ADE = "camvid_ade_layout/CamVid11"
LISTS = "rgbd_nyu_layout/filenames/nyudepthv2"
VIDEOS = "tracking/LaSOT"
TEACHER = "objective.teacher.source"
VERIFY = ["verify", "{tmp}/bundle.zip"]
BOARD = ["leaderboard", "--suite", "mini", "--runs", "{runs}", "--format", "json"]

REQUESTS = [
    Row("unknown objective", run(objective="maskdistil"), "did you mean 'maskdistill'"),
    Row("one of two objectives unknown", run(objective="mae,simin"), "did you mean 'simmim'"),
    Row("no objective", run(objective=","), "--objective"),
    Row("unknown task", run("--tasks", "poze"), "did you mean 'pose'"),
    Row("no task", run("--tasks", ","), "--tasks"),
    Row("unknown suite", run("--suite", "nimi"), "did you mean 'mini'"),
    Row("unknown protocol", run("--protocol", "finetuned"), "did you mean 'finetune'"),
    Row("unknown budget", run("--budget", "lng"), "did you mean 'long'"),
    Row("negative seeds", run("--seeds", "-1"), "--seeds -1: at least 1"),
    Row("no seeds", run("--seeds", "0"), "--seeds 0: at least 1"),
    Row("seeds in words", run("--seeds", "many"), "Invalid value for '--seeds'"),
    Row("negative seed", run("--seed", "-3"), "--seed -3"),
    Row("seed beyond 64 bits", run("--seed", str(2**70)), "--seed"),
    Row("seed and seeds", run("--seed", "1", "--seeds", "2"), "give one of them"),
    Row("unknown overwrite word", run("--overwrite", "sometimes"), "--overwrite"),
    Row("unknown format", run("--format", "xml"), "--format"),
    Row("unknown device", run("--device", "gpu0"), "--device 'gpu0'"),
    Row("unknown option", run("--protocl", "frozen"), "No such option: --protocl"),
    Row("unknown command", ["runn"], "No such command 'runn'"),
    Row("missing option", ["run"], "Missing option '--objective'"),
    Row("speed of no objective", ["speed", "--objective", ","], "--objective: name at least one"),
    Row("speed of a Swin's depth", ["speed", "--scaling", "--cfg-options", "suite.model=swin_tiny_patch4_window7_224"],
        "varies the depth of a ViT"),
    Row("speed of no steps", ["speed", "--objective", "mae", "--steps", "0"], "--steps 0: at least 1"),
    Row("speed against a stranger", ["speed", "--objective", "mae", "--peer", "mmseg"], "'mmseg': one of mmpretrain"),
    Row("speed in no precision", ["speed", "--objective", "mae", "--precision", "fp31"], "did you mean 'fp32'"),
    Row("speed of two things", ["speed", "--scaling", "--overhead"], "give one of them"),
    Row("sweep without values", ["sweep", "--objective", "mae", "--vary", "optimiser.lr="], "key=value,value"),
    Row("list of something else", ["list", "objects"], "Invalid value"),
    Row("analysis of nothing", ["analyze", "--runs", "{tmp}/nothing"], "{tmp}/nothing"),
    Row("analysis of no backbone", ["analyze", "--backbone", "{tmp}/nothing"], "{tmp}/nothing"),
    Row("visualize an unknown objective", ["visualize", "--objective", "mea", *MINI], "did you mean 'mae'"),
    Row("verification without a folder", ["data", "verify", "--suite", "mini"], "prepare --suite mini` lists what"),
    Row("reproduce an unknown row", ["reproduce", "embedded/nobody"], "no records at 'embedded/nobody'"),
    Row("bundle an unknown row", ["bundle", "embedded/nobody", "{tmp}/x.zip"], "no records at 'embedded/nobody'"),
]

CONFIGS = [
    Row("option without a value", run(*options("objective.loss.typ")), "write it as key=value"),
    Row("option of no room", run(*options("optimizer.lr=1")), "did you mean 'optimiser.'"),
    Row("unknown slot", run(*options("objective.los.type=L1")), "did you mean 'loss'"),
    Row("slot without a key", run(*options("objective.loss=L1")), "objective.loss.type"),
    Row("unknown part", run(*options("objective.head.type=LinarHead")), "did you mean 'LinearHead'"),
    Row("unknown key of the optimiser", run(*options("optimiser.learning_rate=1")), "optimiser."),
    Row("learning rate in words", run(*options("optimiser.lr=fast")), "optimiser.lr=fast"),
    Row("negative learning rate", run(*options("optimiser.lr=-1")), "optimiser.lr=-1"),
    Row("learning rate beyond numbers", run(*options("optimiser.lr=1e999")), "optimiser.lr=inf"),
    Row("betas of one", run(*options("optimiser.betas=0.9")), "optimiser.betas=0.9"),
    Row("crop of no area", run(*options("crop.scale=[0,1]")), "crop.scale"),
    Row("unknown key of the suite", run(*options("suite.modle=x")), "did you mean 'suite.model'"),
    Row("no pictures", run(*options("suite.images_seen=0")), "suite.images_seen=0"),
    Row("half a batch", run(*options("suite.batch_size=0.5")), "suite.batch_size=0.5"),
    Row("task option of no task", run(*options("task.poze.epochs=1")), "did you mean 'pose'"),
    Row("task option without a setting", run(*options("task.pose=1")), "task.pose.epochs"),
    Row("unknown setting of a task", cell("depth", "task.depth.epoch=3"), "did you mean 'epochs'"),
    Row("no epochs", cell("depth", "task.depth.epochs=0"), "epochs must be a whole number of at least 1"),
    Row("negative rate of a head", cell("depth", "task.depth.lr=[0.01,-1]"), "lr must be a number from 0 on"),
    Row("no rates of a head", cell("depth", "task.depth.lr=[]"), "lr must be a number from 0 on, not []"),
    Row("warm-up longer than the training", cell("depth", "task.depth.warmup=2"), "a share from 0 to below 1, not 2"),
    Row("half a picture", cell("depth", "task.depth.train_limit=0.5"), "train_limit must be a whole number"),
    Row("unknown setting of tracking", cell("tracking", "task.tracking.epoch=3"), "did you mean 'epochs'"),
    Row("unknown head", cell("segmentation", "task.segmentation.head=fpn"), "is not one of"),
    Row("code as a value", built("objective.corruption.ratio=__import__('os').mkdir('{tmp}/executed')"),
        "objective.corruption"),
    Row("unknown argument of a part", built("objective.loss.bta=1"), "bta"),
    Row("mask of everything", built("objective.corruption.ratio=1.5"), "objective.corruption.ratio"),
    Row("MAE on Swin", another("suite.model=swinv2_tiny_window8_256", "suite.kwargs.window_size=4"),
        "cannot be a Swin"),
    Row("head that does not fit", built("objective.head.type=LinearHead"), "visible tokens only"),
    Row("loss that does not fit", built("objective.loss.type=CrossEntropy"), "continuous"),
    Row("heads that do not divide", built("suite.kwargs.num_heads=5"), "backbone"),
    Row("no layers", built("suite.kwargs.depth=0"), "depth"),
    Row("unknown backbone", built("suite.model=vit_minute"), "vit_minute"),
    Row("backbone that is no ViT", another("suite.model=resnet18", "suite.kwargs={{}}"), "takes timm's ViTs"),
    Row("patch that does not divide", built("suite.kwargs.patch_size=7"), "multiple"),
]

PLACES = [
    Row("real pictures without a folder", run("--suite", "mini"), "--data-root DIR"),
    Row("data root that is missing", run("--suite", "mini", "--data-root", "{tmp}/nothing"), "{tmp}/nothing"),
    Row("data root that is a file", run("--suite", "mini", "--data-root", "{tmp}/file"), "{tmp}/file",
        damage=lambda place: (place.tmp / "file").write_text("")),
    Row("runs folder that is a file", ["run", "--objective", "mae", "--runs", "{tmp}/file"], "cannot write there",
        damage=lambda place: (place.tmp / "file").write_text("")),
    Row("runs folder below a file", ["run", "--objective", "mae", "--runs", "{tmp}/file/runs"], "cannot write there",
        damage=lambda place: (place.tmp / "file").write_text("")),
    Row("scenes in somebody's folder", run("--data-root", "{tmp}/mine"), "it holds something else",
        damage=lambda place: write("../mine/letter.txt", "dear")(place)),
    Row("leaderboard of no folder", ["leaderboard", "--runs", "{tmp}/nothing"], "no such folder"),
    Row("leaderboard of another suite", ["leaderboard", "--runs", "{runs}", "--suite", "mino"], "did you mean 'mini'"),
    Row("leaderboard of another protocol", [*BOARD, "--protocol", "frosen"], "did you mean 'frozen'"),
    Row("all suites as text", ["leaderboard", "--runs", "{runs}", "--suite", "all"], "--format html"),
    Row("output into a folder", [*BOARD, "--output", "{tmp}"], "{tmp}"),
    Row("data that are missing", ["data", "verify", "--suite", "mini", "--data-root", "{tmp}"], "no", HURT),
]

DATA = [
    Row("no pre-training pictures", cell("depth"), "no folder", HURT, remove("tiny_imagenet25/train")),
    Row("pre-training folder without pictures", cell("depth"), "no picture in the folders", HURT,
        lambda place: [path.unlink() for path in place.root.glob("tiny_imagenet25/train/*/*")]),
    Row("truncated pre-training picture", cell("depth"), "cannot be read as a picture", HURT,
        halve("tiny_imagenet25/train/a/*")),
    Row("text as a picture", cell("depth"), "cannot be read as a picture", HURT,
        write("tiny_imagenet25/train/a/0.jpg", "hello")),
    Row("empty picture", cell("depth"), "cannot be read as a picture", HURT,
        write("tiny_imagenet25/train/a/0.jpg", "")),
    Row("validation folder missing", cell("classification"), "bench data verify", HURT, remove("tiny_imagenet25/val")),
    Row("truncated test picture", cell("classification"), "val/b/1.jpg", HURT, halve("tiny_imagenet25/val/b/1.jpg")),
    Row("class that train lacks", cell("classification"), "holds classes that train lacks: z", HURT,
        write("tiny_imagenet25/val/z/1.jpg", "")),
    Row("one class", cell("classification"), "at least two classes", HURT,
        lambda place: [shutil.rmtree(place.root / "tiny_imagenet25/train" / name) for name in "bcd"]),
    Row("label map missing", cell("segmentation"), "is missing for", HURT, remove(f"{ADE}/annotations/training/1.png")),
    Row("truncated label map", cell("segmentation"), "1.png", HURT, halve(f"{ADE}/annotations/training/1.png")),
    Row("no list of classes", cell("segmentation"), "objectInfo.txt", HURT, remove(f"{ADE}/objectInfo.txt")),
    Row("more labels than classes", cell("segmentation"), "classes", HURT, write(f"{ADE}/objectInfo.txt", "N\none\n")),
    Row("annotations half-written", cell("pose_lsp"), "is not COCO key-point JSON", HURT, halve(POSES)),
    Row("annotations of another kind", cell("pose_lsp"), "is not COCO key-point JSON", HURT, write(POSES, "[1, 2]")),
    Row("annotation of a missing picture", cell("pose_lsp"), "0.jpg, which is not in", HURT,
        remove("lspet_pose/images/0.jpg")),
    Row("too few key points", cell("pose_lsp"), "does not have 17 key points", HURT,
        edit(POSES, lambda content: content["annotations"][0]["keypoints"].pop())),
    Row("annotation that leads out", cell("pose_lsp"), "leads out of", HURT,
        edit(POSES, lambda content: content["images"][0].update(file_name="../../../etc/hostname"))),
    Row("list of one column", cell("depth"), "train_list.txt line 2", HURT,
        line_of(f"{LISTS}/train_list.txt", 1, "/s/rgb_train_1.jpg")),
    Row("list that names a missing picture", cell("depth"), "nowhere.jpg, which is not under", HURT,
        line_of(f"{LISTS}/train_list.txt", 1, "/s/nowhere.jpg /s/nowhere.png")),
    Row("list that leads out", cell("depth"), "leads out of", HURT,
        line_of(f"{LISTS}/train_list.txt", 1, "/../../lspet_pose/images/0.jpg /s/depth_train_0.png")),
    Row("truncated depth", cell("depth"), "depth_val_0.png", HURT, halve("rgbd_nyu_layout/s/depth_val_0.png")),
    Row("empty list", cell("depth"), "is empty", HURT, write(f"{LISTS}/test_list.txt", "\n")),
    Row("list that is no text", cell("depth"), "train_list.txt", HURT,
        write(f"{LISTS}/train_list.txt", b"\xff\xfe\x00")),
    Row("frame missing", cell("tracking"), "4 boxes for 3 frames", HURT,
        remove(f"{VIDEOS}/cup/cup-1/img/00000002.jpg")),
    Row("box of three numbers", cell("tracking"), "four numbers", HURT,
        write(f"{VIDEOS}/cup/cup-1/groundtruth.txt", "1,2,3\n" * 4)),
    Row("box in words", cell("tracking"), "x,y,w,h", HURT,
        line_of(f"{VIDEOS}/cup/cup-1/groundtruth.txt", 1, "a,b,c,d")),
    Row("video that leads out", cell("tracking"), "leads out of", HURT,
        line_of(f"{VIDEOS}/training_set.txt", 0, "../../cup-1")),
    Row("video missing", cell("tracking"), "cup-9", HURT, line_of(f"{VIDEOS}/testing_set.txt", 0, "cup-9")),
    Row("truncated frame", cell("tracking"), "00000003.jpg", HURT, halve(f"{VIDEOS}/cup/cup-3/img/00000003.jpg")),
]

WEIGHTS = [
    Row("teacher nowhere", built(f"{TEACHER}=nowhere", objective="maskdistill"), "objective.teacher.source"),
    Row("teacher without weights", built(f"{TEACHER}=timm:vit_tiny_patch16_224", "objective.teacher.weights={tmp}/none",
                                         objective="maskdistill"), "no file {tmp}/none"),
    Row("pickle that would execute", built(f"{TEACHER}=timm:vit_tiny_patch16_224",
                                           "objective.teacher.weights={tmp}/evil.pth", objective="maskdistill"),
        "cannot be read as plain weights", damage=evil_weights),
    Row("weights that are text", built(f"{TEACHER}=timm:vit_tiny_patch16_224",
                                       "objective.teacher.weights={tmp}/w.safetensors", objective="maskdistill"),
        "cannot be read as plain weights", damage=lambda place: write("../w.safetensors", "hello")(place)),
    Row("weights of another network", built(f"{TEACHER}=timm:vit_tiny_patch16_224",
                                            "objective.teacher.weights={tmp}/w.safetensors", objective="maskdistill"),
        "do not fit the teacher", damage=lambda place: save_file({"a": torch.ones(1)}, place.tmp / "w.safetensors")),
    Row("teacher folder with a key missing", built(f"{TEACHER}={{tmp}}/teacher", objective="maskdistill"),
        "norm.weight", damage=lambda place: backbone_folder(place, without_a_key)),
    Row("teacher folder half-written", built(f"{TEACHER}={{tmp}}/teacher", objective="maskdistill"),
        "{tmp}/teacher", damage=lambda place: backbone_folder(
            place, lambda folder: (folder / "backbone.safetensors").write_bytes(b"\x10" * 20))),
    Row("teacher folder with a broken description", built(f"{TEACHER}={{tmp}}/teacher", objective="maskdistill"),
        "{tmp}/teacher", damage=lambda place: backbone_folder(
            place, lambda folder: (folder / "backbone.json").write_text("{"))),
]

WEIGHTS += [
    Row("backbone with a checkpoint from elsewhere", built("suite.kwargs.checkpoint_path={tmp}/evil.pth"),
        "checkpoint_path names weights", damage=evil_weights),
    Row("backbone from a hub", built("suite.model=hf-hub:stranger/model", "suite.kwargs={{}}"),
        "hf-hub:stranger/model names weights"),
    Row("backbone description that leads out", cell("classification"), "checkpoint_path names weights", HURT,
        damage=description_of_elsewhere),
    Row("teacher with a checkpoint from elsewhere", built(f"{TEACHER}={{tmp}}/teacher", objective="maskdistill"),
        "teacher/backbone.json: checkpoint_path names weights", damage=teacher_of_elsewhere(
            checkpoint_path="{tmp}/evil.pth")),
    Row("teacher from a hub", built(f"{TEACHER}={{tmp}}/teacher", objective="maskdistill"),
        "teacher/backbone.json: hf-hub:stranger/model names weights", damage=teacher_of_elsewhere(
            model="hf-hub:stranger/model")),
    Row("teacher without a description", built(f"{TEACHER}={{tmp}}/teacher", objective="maskdistill"),
        "teacher/backbone.json is not a backbone description", damage=lambda place: backbone_folder(
            place, lambda folder: (folder / "backbone.json").write_text("[]"))),
    Row("weights cut off after training", cell("classification"), "cannot be read as safetensors", HURT,
        damage=cut_weights),
]

RECORDS = [
    Row("leaderboard of no protocol", [*BOARD, "--protocol", ","], "--protocol ',': name at least one of frozen"),
    Row("record half-written", [*BOARD, "--format", "md"], "not JSON", FINE,
        lambda place: record_path(place).write_text('{"suite": "mi')),
    Row("record that is no text", ["bundle", "{runs}", "{tmp}/x.zip"], "not UTF-8", damage=record_bytes(b"\xff\xfe")),
    Row("record of a later schema", ["bundle", "{runs}", "{tmp}/x.zip"], "schema 99 is newer",
        damage=record(lambda content: content.update(schema=99))),
    Row("record edited by hand", ["bundle", "{runs}", "{tmp}/x.zip"], "digest",
        damage=record(lambda content: content["metrics"]["top1"].update(value=99.0))),
    Row("record with NaN", ["bundle", "{runs}", "{tmp}/x.zip"], "NaN",
        damage=record(lambda content: content["metrics"]["top1"].update(value=float("nan")))),
    Row("record nested without end", ["bundle", "{runs}", "{tmp}/x.zip"], "nested too deeply",
        damage=record_bytes(b"[" * 100_000)),
    Row("record whose data lead out", ["reproduce", "{runs}", "--dry-run"], "leads out of",
        damage=record_of_elsewhere),
]

ARCHIVES = [
    Row("no archive", VERIFY, "cannot be read"),
    Row("archive of text", VERIFY, "not a whole zip file", damage=lambda place: write("../bundle.zip", "hello")(place)),
    Row("archive without a manifest", VERIFY, "no manifest.json", damage=archive(("a", "1"))),
    Row("archive with ../", VERIFY, "leads out of the bundle", damage=archive(("../evil", "1"))),
    Row("archive with an absolute path", VERIFY, "leads out of the bundle", damage=archive(("/etc/evil", "1"))),
    Row("archive with a link", VERIFY, "is a link", damage=archive(("link", "/etc/passwd"), mode=stat.S_IFLNK | 0o777)),
    Row("archive that is a bomb", VERIFY, "times its size", damage=archive(("manifest.json", b"0" * (8 * 2**20)))),
    Row("archive with a broken manifest", VERIFY, "manifest.json is damaged", damage=archive(("manifest.json", "{"))),
]

ROWS = [*REQUESTS, *CONFIGS, *PLACES, *DATA, *WEIGHTS, *RECORDS, *ARCHIVES]


@pytest.fixture(scope="module")
def finished(mini, tiny, tmp_path_factory):
    """Runs with one finished record, for rows that damage weights or records."""
    from benchmarks.execute import Execution
    from benchmarks.plan import Request, plan

    runs = tmp_path_factory.mktemp("finished")
    cells = plan(Request(["random_init"], ["classification"], "mini", options=tiny("classification")))
    assert Execution(runs, mini, "cpu").run(cells)[0].status == "ok"
    return runs


@pytest.fixture
def place(mini, finished, tmp_path):
    """A copy of the data and of the finished runs, linked where nothing is damaged."""
    return Place(tmp_path / "data", tmp_path / "runs", tmp_path)


def test_the_table_is_long_enough():
    assert len(ROWS) >= 60
    assert len({row.what for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.what)
def test_bad_input(row, place, mini, finished, tiny, call):
    if row in DATA:
        shutil.copytree(mini, place.root)
    if row in WEIGHTS or row in RECORDS or row in PLACES:
        shutil.copytree(finished, place.runs)
    if row.damage is not None:
        row.damage(place)
    before = {path for path in place.tmp.rglob("*") if "runs" not in path.parts}
    root = place.root if row in DATA else mini
    arguments = []
    for text in row.arguments:
        if text == "{tiny}":
            arguments += options(*tiny(*row.arguments[row.arguments.index("--tasks") + 1].split(",")))
        else:
            arguments.append(text.format(root=root, runs=place.runs, tmp=place.tmp))
    code, out, err = call(*arguments)
    assert code == row.code, err
    wanted = row.line.format(tmp=place.tmp)
    assert "Traceback" not in err
    if code == REFUSED:
        lines = err.splitlines()
        assert lines[-1].startswith("bench: "), err
        assert wanted in lines[-1]
        assert sum(line.startswith("bench: ") for line in lines) == 1
        assert out == ""
    else:
        assert wanted in out + err
    ends = (".tmp", ".partial", ".lock")
    assert not [path for path in place.tmp.rglob("*") if path.suffix in ends or "write-test" in path.name]
    assert not list(place.tmp.rglob("traceback.txt")), "an error that nobody foresaw"
    assert {path for path in place.tmp.rglob("*") if "runs" not in path.parts} <= before, "left behind"
    assert not (place.tmp / "executed").exists()

"""SECURITY.md holds: no code comes in with data. Bad archives, records and weights: benchmarks/test_bad_input.py."""

import ast
import json
import re
from pathlib import Path

import pytest

from benchmarks.plan import parse_value

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("benchmarks", "objectives", "downstream", "leaderboard")
               for path in (ROOT / room).rglob("*.py"))
# What runs code or unpickles: never called in the four packages.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "pickle.load", "pickle.loads", "joblib.load",
             "yaml.load", "yaml.unsafe_load", "Config.fromfile", "torch.hub.load", "marshal.loads", "extractall"}

ALLOWED = {("speed_peers.py", "Config.fromfile")}  # configs of the installed mmpretrain: code like the rest of it


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_executed_or_unpickled(path):
    for name, words in calls(path):
        assert name not in FORBIDDEN or (path.name, name) in ALLOWED, f"{path}: {name}"
        assert not name.endswith(".extractall"), path
        assert words.get("shell", "False") == "False", path
        assert words.get("allow_pickle", "False") == "False", path
        if name == "torch.load":
            assert words.get("weights_only") == "True", path


def test_the_check_sees_what_it_looks_for(tmp_path):
    (tmp_path / "x.py").write_text("torch.load('x', weights_only=False)\nZipFile(f).extractall()\n")
    assert dict(calls(tmp_path / "x.py")) == {
        "torch.load": {"weights_only": "False"}, "ZipFile": {}, "ZipFile(f).extractall": {}
    }


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "open('x', 'w')", "[].append(1)", "lambda: 1", "1 if 1 else 2"]
)
def test_option_values_are_data(text):
    assert parse_value(text) == text  # no literal: stays the text that it is


@pytest.mark.parametrize(
    "leads", [
        {"model": "hf-hub:stranger/model"}, {"model": "local-dir:/elsewhere"},
        *({"kwargs": {key: "/elsewhere"}} for key in ("checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir")),
    ], ids=str,
)
def test_no_reader_of_backbones_follows_a_description_out(leads, tmp_path, monkeypatch):
    from downstream.analysis.probe import load_network
    from downstream.backbone import TimmBackbone, WeightsError
    from objectives.frozen import FrozenNetwork
    from objectives.recipe import ObjectiveError
    from objectives.registry import Geometry

    def teacher(folder):
        FrozenNetwork(Geometry(32, 8, False, 32), str(folder))

    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was asked"))
    (tmp_path / "backbone.json").write_text(json.dumps({"format": 1, "model": "vit_tiny", "kwargs": {}, **leads}))
    for read in (teacher, TimmBackbone, load_network):
        with pytest.raises((ObjectiveError, WeightsError), match="outside of the folder; such a folder is not read"):
            read(tmp_path)


def test_security_md_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 8
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(), f"{file}::{test}"
    table = (ROOT / "tests/benchmarks/test_bad_input.py").read_text()
    for line in text.splitlines():
        if "row" in line:
            for row in re.findall(r'"([^"]+)"(?=[^|]*test_bad_input)', line):
                assert row == "lead out" or f'Row("{row}"' in table, row

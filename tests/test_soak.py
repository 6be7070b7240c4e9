"""The soak in brief; ``make soak`` runs it at length."""

import multiprocessing
import os
import time

import commands
import pytest
import soak
import torch

from benchmarks.execute import Execution, Threads
from benchmarks.plan import Request, plan
from benchmarks.progress import Silent

CELLS = 12
OPTIONS = [
    "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32", "suite.kwargs.num_heads=2", "suite.batch_size=8",
    "task.classification.epochs=1", "task.classification.batch_size=4", "task.classification.input_size=32",
]


def work(runs, root):
    torch.set_num_threads(1)
    cells = plan(Request(["random_init"], ["classification"], "mini", seeds=range(CELLS), options=OPTIONS))
    Execution(runs, root, "cpu", reporter=Silent(), threads=Threads(1, 1)).run(cells)


@pytest.mark.slow
def test_memory_and_files_stay_flat(data, tmp_path):
    root, runs = tmp_path / "data", tmp_path / "runs"
    root.mkdir()
    (root / "tiny_imagenet25").symlink_to(data / "imagenet")
    torch.set_num_threads(1)  # a fork has but one
    child = multiprocessing.get_context("fork").Process(target=work, args=(runs, root))
    child.start()
    samples = []
    while child.is_alive():
        samples.append(soak.sample(child.pid, len(list(runs.rglob("result.json")))))
        time.sleep(0.1)
    child.join()
    assert child.exitcode == 0
    assert max(sample.memory for sample in samples) > 2**26
    flat, words = soak.verdict(samples, CELLS, growth=0.1)
    assert flat, words


def test_a_leak_is_seen():
    def of(memory, files):
        return [soak.Sample(n, memory(n), files(n)) for n in range(100)]

    assert soak.verdict(of(lambda n: 10**9, lambda n: 20), 100)[0]
    assert soak.verdict(of(lambda n: 10**9 + min(n, 20) * 10**7, lambda n: 20 + n % 2), 100)[0]
    assert not soak.verdict(of(lambda n: 10**9 + n * 2 * 10**6, lambda n: 20), 100)[0]
    assert not soak.verdict(of(lambda n: 10**9, lambda n: 20 + n // 10), 100)[0]
    assert not soak.verdict([], 100)[0]


def test_the_whole_tree_is_counted():
    before = soak.sample(os.getpid(), 0)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    child.start()
    try:
        assert child.pid in commands.tree(os.getpid())
        assert soak.sample(os.getpid(), 0).memory > before.memory
    finally:
        child.kill()
        child.join()

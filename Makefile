VENV ?= .venv
PYTHON ?= python3.11
BENCH = $(VENV)/bin/bench

.PHONY: leaderboard test install lint gpu-check gpu-board kill-test soak ray-check clean
leaderboard: install  ## set up, run the main job on the embedded suite, print the table
	$(BENCH) run --objective maskdistill --tasks all

test: install  ## set up, lint, check the import contract, run the tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile

install:  ## everything pinned into .venv; does nothing when that is done already
	@PYTHON=$(PYTHON) bash requirements/install.sh $(VENV)

gpu-check: install  ## on a GPU, at most 8 minutes: its tests, every objective's and mmpretrain's steps, the main job
	$(VENV)/bin/python tests/gpu.py

gpu-board: install  ## on a GPU, at most 20 minutes: every objective, every task, three seeds
	$(VENV)/bin/python tests/gpu.py --parts board --output benchmarks/speed/gpu-board.json

kill-test: install  ## `bench run` with two workers, killed at 50 random moments, must end with the records of an undisturbed run
	PYTHONPATH=. $(VENV)/bin/python tests/kill.py --kills 50

soak: install  ## 200 cells in one process tree: memory and open files must stay flat
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV)/bin/python tests/soak.py --cells 200

ray-check: install  ## two Ray workers in at most 0.6 of the time of one; a worker killed in training
	PYTHONPATH=. $(VENV)/bin/python tests/ray_scale.py

clean:  ## remove caches, keep runs and the environment
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

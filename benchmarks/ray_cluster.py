"""``--executor ray``: pieces of work as tasks of a Ray cluster, with the cores and GPU each needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any

from benchmarks import scheduling
from benchmarks.crew import divide, resolve_jobs
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Work
from benchmarks.plan import Cell
from benchmarks.scheduling import LOOK_EVERY, RETRIES, Remote, WorkerLost

LEAVE_WITHIN = 60.0  # seconds that interrupted tasks have for their last step and checkpoint


class RayCluster(Remote):
    """The cluster at ``address``, or one of this machine's cores and GPUs that ends with the command.

    Args:
        address: host:port, or ``auto``; empty: $RAY_ADDRESS, else a cluster of its own.
        jobs: pieces of work under way at most; None: on a cluster of its own as of the crew, else as many as fit.
        requested: all cells of the request, which decide the threads.

    Raises:
        RequestError: Ray is not installed, the cluster does not answer, or it has no GPU though one is asked for.
    """

    def __init__(self, execution: Execution, address: str, jobs: int | None, requested: Sequence[Cell]) -> None:
        try:
            import ray
        except ImportError as error:
            raise RequestError(
                "--executor ray: the package ray is missing; install the extra: pip install -e '.[ray]'"
            ) from error
        self.ray = ray
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        if self.address == "local":
            jobs = resolve_jobs(jobs, "cpu" if execution.device == "auto" else execution.device)
        super().__init__(execution, jobs)
        self.requested = requested

    def __enter__(self) -> RayCluster:
        self._connect()
        cores, gpus = self._machines()
        jobs = self.at_most or sum(gpus) or sum(cores)
        self.gpus = 0
        if self.execution.device != "cpu":
            self.gpus = 1 if sum(gpus) else 0
            if self.execution.device != "auto" and not self.gpus:
                self.ray.shutdown()
                raise RequestError(f"--device {self.execution.device}: the Ray cluster has no GPU; use --device cpu")
        threads = divide(self.requested, jobs, sum(cores))
        self.execution.threads = replace(
            threads, pretraining=min(threads.pretraining, max(cores)), task=min(threads.task, max(cores))
        )
        super().__enter__()
        # of a worker that dies, Ray gives the task to another one
        self.task = self.ray.remote(num_gpus=self.gpus, max_retries=RETRIES)(scheduling.work)
        self.shared = self.ray.put(self.bare)
        return self

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        more: dict[str, Any] = {}
        if self.address == "local":
            more = {"include_dashboard": False}
        try:
            self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **more)
        except Exception as error:  # Ray raises many kinds, each with pages of advice
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise RequestError(f"--executor ray:{self.address}: the cluster does not answer ({reason})") from error

    def _machines(self) -> tuple[list[int], list[int]]:
        """Cores and GPUs of each machine."""
        found = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [int(node.get("CPU", 0)) for node in found], [int(node.get("GPU", 0)) for node in found]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.ray.shutdown()

    def submit(self, piece: Work) -> Any:
        task = self.task.options(num_cpus=piece.threads, name=piece.name)
        return task.remote(self.shared, piece, self.mark.resolve())

    def done(self) -> list[Any]:
        handles = list(self.under_way)
        found, _ = self.ray.wait(handles, num_returns=1, timeout=LOOK_EVERY)
        if found:  # and whatever else is finished by now
            found, _ = self.ray.wait(handles, num_returns=len(handles), timeout=0)
        return found

    def result(self, handle: Any) -> tuple[Any, list[str]]:
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from error
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkerLost(f"the worker died {RETRIES + 1} times ({reason[:200]}); out of memory?") from error

    def cancel(self) -> None:
        for handle in self.under_way:
            with suppress(Exception):
                self.ray.cancel(handle)
        with suppress(Exception):
            self.ray.wait(list(self.under_way), num_returns=len(self.under_way), timeout=LEAVE_WITHIN)

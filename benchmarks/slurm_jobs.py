"""``--executor slurm``: each piece of work is a job of its own, submitted when it is ready, through submitit."""

from __future__ import annotations

import ast
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from benchmarks import scheduling
from benchmarks.crew import divide
from benchmarks.errors import RequestError, unknown
from benchmarks.execute import Execution, Work
from benchmarks.plan import Cell
from benchmarks.scheduling import LOOK_EVERY, RETRIES, Refused, Remote, WorkerLost

FOLDER = ".slurm"  # below the runs folder: scripts, logs and results of the jobs
# option -> submitit's parameter; "cluster" may be local or debug, to try a request out without Slurm
PARAMETERS = {
    "partition": "slurm_partition", "account": "slurm_account", "qos": "slurm_qos", "constraint": "slurm_constraint",
    "time": "timeout_min", "mem": "mem_gb", "cores": "cpus_per_task", "gpus": "gpus_per_node", "cluster": "",
}
DEFAULTS = {"time": 24 * 60, "cores": 4}  # minutes, cores of a job


def parameters(text: str) -> dict[str, Any]:
    """``"partition=gpu,time=600"`` -> its values, over :data:`DEFAULTS`.

    Raises:
        RequestError: no such parameter, or no value.
    """
    found: dict[str, Any] = dict(DEFAULTS)
    for part in filter(None, text.split(",")):
        name, sign, value = part.partition("=")
        if name not in PARAMETERS:
            raise unknown("parameter of --executor slurm", name, PARAMETERS)
        if not sign or not value:
            raise RequestError(f"--executor slurm:{text}: write {name}=VALUE")
        if name in ("time", "mem", "cores", "gpus"):
            if not value.isdigit() or int(value) < (0 if name == "gpus" else 1):
                raise RequestError(f"--executor slurm:{text}: {name} is a whole number")
            found[name] = ast.literal_eval(value)
        else:
            found[name] = value
    return found


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]


class SlurmJobs(Remote):
    """Jobs of a Slurm cluster; the command stays and waits for them.

    Args:
        text: see :func:`parameters`. A job has as many threads as ``cores``, and one GPU unless the device is the cpu.
        jobs: under way at most; None: Slurm's own limits.

    Raises:
        RequestError: submitit is not installed, no Slurm here, or a wrong parameter.
    """

    def __init__(self, execution: Execution, text: str, jobs: int | None, requested: Sequence[Cell]) -> None:
        given = parameters(text)
        try:
            import submitit
        except ImportError as error:
            raise RequestError(
                "--executor slurm: the package submitit is missing; install the extra: "
                "pip install -e '.[slurm]'"
            ) from error
        super().__init__(execution, jobs)
        cluster = given.pop("cluster", "slurm")
        if cluster not in ("slurm", "local", "debug"):
            raise unknown("cluster of --executor slurm", cluster, ("slurm", "local", "debug"))
        try:
            self.jobs = submitit.AutoExecutor(execution.runs.resolve() / FOLDER, cluster=cluster)
        except RuntimeError as error:  # it looks for srun
            raise RequestError(
                "--executor slurm: no Slurm here (srun is not found); run the command on a login node"
            ) from error
        given.setdefault("gpus", 0 if execution.device == "cpu" or cluster != "slurm" else 1)
        self.jobs.update_parameters(name="bench", **{PARAMETERS[name]: value for name, value in given.items()})
        self.unfinished: type[Exception] = submitit.core.utils.UncompletedJobError
        self.failed: type[Exception] = submitit.core.utils.FailedJobError
        self.execution.threads = divide(requested, 1, given["cores"])

    retries = RETRIES

    def submit(self, piece: Work) -> Any:
        try:
            return self.jobs.submit(scheduling.work, self.bare, piece, self.mark.resolve())
        except self.failed as error:  # what sbatch said
            raise Refused(_last_line(error)) from error

    def done(self) -> list[Any]:
        found = [job for job in self.under_way if job.done()]
        if not found:
            time.sleep(LOOK_EVERY)
        return found

    def result(self, handle: Any) -> tuple[Any, list[str]]:
        try:
            return handle.result()
        except self.failed as error:
            raise WorkerLost(_last_line(error)) from error
        except self.unfinished as error:
            raise WorkerLost(
                f"the job ended without a result, {RETRIES + 1} times ({' '.join(str(error).split())[:200]}); see its "
                f"log in {self.execution.runs / FOLDER}"
            ) from error

    def cancel(self) -> None:
        for job in self.under_way:
            with suppress(Exception):
                job.cancel()

"""The same jobs on a Ray cluster (``fedpalm[ray]``): a task a job, results brought back as bytes.

Without ``RAY_ADDRESS`` it is a Ray on this machine. Every machine needs this package, and a source
that is not synthetic at the same path. Checkpoints lie where a task ran, in a folder of the same name:
a task that is begun again elsewhere goes on only if that folder is shared.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from ...errors import ChildFailedError, ConfigError, FedPalmError
from ..jobs.engine import Job as AnyJob
from ..jobs.engine import Watch
from ..jobs.results import Store, whole
from .config import Job
from .job import run_job


class RayRunner:
    """Hands a job to the cluster and waits for its files."""

    def __init__(self, store: Store) -> None:
        """Raises ConfigError: Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(
                "--engine ray needs Ray", next_step="install it: pip install 'fedpalm[ray]'"
            )
        self._store = store
        self._ray: Any = importlib.import_module("ray")
        self._ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
        self._remote = self._ray.remote(num_cpus=1, max_retries=3)(remote_job)

    @property
    def cores(self) -> int:
        """Of the whole cluster."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def stop(self) -> None:
        """Leave the cluster; its tasks of this benchmark end."""
        self._ray.shutdown()

    def __call__(self, job: AnyJob, watch: Watch) -> None:
        """Raises ChildFailedError: the job or its machine failed."""
        try:
            answer = self._ray.get(
                self._remote.remote(job.to_json(), str(self._store.folder.absolute()))
            )
        except self._ray.exceptions.RayError as error:
            raise ChildFailedError(str(error).strip().splitlines()[-1]) from error
        if "error" in answer:
            raise ChildFailedError(answer["error"])
        for target, content in (
            (self._store.scores_file(job.hash), answer["scores"]),
            (self._store.result_file(job.hash), answer["result"]),
        ):
            with whole(target) as partial:
                partial.write_bytes(content)
        watch.advanced(job, job.rounds)


def remote_job(spec: dict[str, Any], folder: str) -> dict[str, Any]:
    """Do a job where this runs: its two files, or the error in one line."""
    store = Store(Path(folder))
    try:
        job = Job.from_json(spec)
        if not store.is_done(job.hash):
            run_job(job, store, lambda rounds: None)
    except FedPalmError as error:
        return {"error": error.what}
    return {
        "result": store.result_file(job.hash).read_bytes(),
        "scores": store.scores_file(job.hash).read_bytes(),
    }

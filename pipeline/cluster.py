"""The job on Ray: a Coordinator actor, GpuWorker actors, and the driver that starts and replaces them.

The only file of the pipeline that knows Ray. What the actors do: actors.py; when to replace one: fleet.py.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from math import ceil
from pathlib import Path
from typing import Any

# Read when ray is imported: a driver under `uv run` would otherwise rebuild its environment for every worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray 2.60 warns about this default with every actor that asks for no GPU; this is its coming value.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.actors import TICK_SECONDS, Coordinator, GpuWorker
from pipeline.config import JobConfig
from pipeline.fleet import Fleet
from pipeline.interrupts import sigterm_interrupts
from pipeline.ledger import Key
from pipeline.protocol import LeaseReply, Run, WorkerSeconds
from pipeline.records import Failure, PipelineError, UserError, VideoRow
from pipeline.report import Progress, RunReport
from pipeline.store import OutputStore

__all__ = ["run_job"]

_LEAVE_SECONDS = 15.0  # for workers to finish the video they are at, after Ctrl-C
_CALLS_AT_ONCE = 32
_STARTS = 3


class _RemoteCoordinator:
    """The coordinator as its workers see it: every call waits for its answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def register(self, worker_id: str) -> None:
        ray.get(self._actor.register.remote(worker_id))

    def ready(self, worker_id: str) -> None:
        ray.get(self._actor.ready.remote(worker_id))

    def lease(self, worker_id: str, max_videos: int) -> LeaseReply:
        reply: LeaseReply = ray.get(self._actor.lease.remote(worker_id, max_videos))
        return reply

    def started(self, worker_id: str, key: Key) -> bool:
        return bool(ray.get(self._actor.started.remote(worker_id, key)))

    def push(
        self, worker_id: str, rows: Sequence[VideoRow], failures: Sequence[Failure], seconds: WorkerSeconds
    ) -> bool:
        return bool(ray.get(self._actor.push.remote(worker_id, rows, failures, seconds)))

    def leave(self, worker_id: str) -> None:
        ray.get(self._actor.leave.remote(worker_id))


class _Driver:
    """Starts workers, replaces those that die, and knows when to stop."""

    def __init__(self, config: JobConfig, run: Run, coordinator: Any) -> None:
        self._config, self._run, self._coordinator = config, run, coordinator
        self._fleet = Fleet(config.workers.count, config.limits.worker_start_seconds, time.monotonic())
        self._actors: dict[str, Any] = {}
        self._pending: dict[Any, tuple[str, str]] = {}  # reference -> worker id, what it waits for
        self.user_error: UserError | None = None

    def drive(self, on_progress: Callable[[Progress], None]) -> str | None:
        """Until every video is settled; why not, where the run cannot go on."""
        while True:
            progress: Progress = _answer(self._coordinator.status.remote())
            on_progress(progress)
            if progress.error or progress.is_done or self.user_error:
                return progress.error or (str(self.user_error) if self.user_error else None)
            verdict = self._fleet.verdict(progress, time.monotonic())
            if verdict is not None:
                return f"{verdict}. {self._offer()}"
            for worker_id in self._fleet.alive.intersection(progress.lost_workers):
                self._bury(worker_id, "it fell silent", progress)
            for _ in range(self._fleet.num_missing(progress)):
                self._start()
            self._take_ended(progress)

    def let_go(self, seconds: float) -> None:
        """Wait for workers to leave, then end those that have not."""
        works = [ref for ref, (_, call) in self._pending.items() if call == "work"]
        with suppress(RayError):
            ray.wait(works, num_returns=len(works), timeout=seconds) if works else None
        for actor in self._actors.values():
            ray.kill(actor)

    def _start(self) -> None:
        worker_id, workers = self._fleet.create(), self._config.workers
        options = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus, "max_restarts": 0}
        arguments = (worker_id, self._config, self._run, _RemoteCoordinator(self._coordinator), os.getcwd())
        _answer(self._coordinator.register.remote(worker_id))
        actor = ray.remote(GpuWorker).options(**options).remote(*arguments)
        self._actors[worker_id] = actor
        self._pending[actor.load.remote()] = (worker_id, "load")
        self._pending[actor.work.remote()] = (worker_id, "work")

    def _take_ended(self, progress: Progress) -> None:
        """Look at every call that has ended; waits up to a tick for the first."""
        references = list(self._pending)
        if not references:
            time.sleep(TICK_SECONDS)
            return
        ended, _ = ray.wait(references, num_returns=1, timeout=TICK_SECONDS)
        for reference in ended:
            worker_id, call = self._pending.pop(reference)
            try:
                ray.get(reference)
            except RayError as error:
                self._note_user_error(error)
                self._bury(worker_id, _summary(error), progress)
            else:
                self._note_success(worker_id, call)

    def _note_success(self, worker_id: str, call: str) -> None:
        if call == "load":
            self._fleet.ready(worker_id)
        elif worker_id in self._actors:
            self._fleet.left(worker_id)
            ray.kill(self._actors.pop(worker_id))

    def _note_user_error(self, error: RayError) -> None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            self.user_error = cause

    def _bury(self, worker_id: str, why: str, progress: Progress) -> None:
        """Forget a worker that died or must; its process too may still be there."""
        actor = self._actors.pop(worker_id, None)
        if actor is None:
            return
        ray.kill(actor)
        self._pending = {ref: whose for ref, whose in self._pending.items() if whose[0] != worker_id}
        self._fleet.died(worker_id, why, progress.counts.indexed + progress.counts.failed)
        _answer(self._coordinator.lost.remote(worker_id, f"worker died: {why}"))

    def _offer(self) -> str:
        workers, there = self._config.workers, ray.cluster_resources()
        return (
            f"A worker asks for {workers.num_cpus:g} CPUs and {workers.num_gpus:g} GPUs; this Ray has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g} in all"
        )


def run_job(config: JobConfig, *, on_progress: Callable[[Progress], None]) -> RunReport:
    """Index a corpus; joins the Ray of ``config.ray``, or starts one and stops it again.

    ``on_progress`` is called about twice a second. Ctrl-C (or SIGTERM) commits what is finished and returns a
    report with status 130. Raises UserError, and PipelineError where the coordinator itself died.
    """
    from pipeline.indexer import resolve_revision

    revision = resolve_revision(config.model)
    run = Run(_new_run_id(), config.fingerprint(revision), revision, os.getpid())
    OutputStore(config.output.uri, config.output.table)  # refuses a wrong address before anything starts
    with _session(config), sigterm_interrupts():
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": _CALLS_AT_ONCE, "scheduling_strategy": here}
        coordinator = ray.remote(Coordinator).options(**options).remote(config, run, os.getcwd())
        try:
            _answer(coordinator.open.remote())
            return _drive(_Driver(config, run, coordinator), coordinator, on_progress)
        finally:
            ray.kill(coordinator)


def _drive(driver: _Driver, coordinator: Any, on_progress: Callable[[Progress], None]) -> RunReport:
    error, interrupted = None, False
    try:
        error = driver.drive(on_progress)
    except KeyboardInterrupt:
        interrupted = True
        _answer(coordinator.stop.remote())
    with suppress(KeyboardInterrupt):  # a second Ctrl-C: do not wait for the videos being worked on
        driver.let_go(_LEAVE_SECONDS if interrupted else 2.0)
    progress: Progress = _answer(coordinator.status.remote())
    report: RunReport = _answer(coordinator.finish.remote(interrupted, error))
    if driver.user_error is not None:
        raise driver.user_error
    if progress.is_user_error:
        raise UserError(str(progress.error))
    return report


@contextmanager
def _session(config: JobConfig) -> Iterator[None]:
    """A connection to Ray; one that exists already is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _join(address, quiet)
        else:
            _start_local(config, quiet)
        yield
    finally:
        ray.shutdown()


def _join(address: str, quiet: dict[str, Any]) -> None:
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot join Ray at ray.address={address}: {error}") from None


def _start_local(config: JobConfig, quiet: dict[str, Any]) -> None:
    workers = config.workers
    # A token of this process only: Ray would otherwise leave one in the home folder, which would then switch
    # authentication on for every later `ray start`.
    if not (os.environ.get("RAY_AUTH_TOKEN_PATH") or (Path.home() / ".ray" / "auth_token").exists()):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Ray would start its workers at niceness 15, and on a machine that does anything else they would starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    root = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *paths])
    _init_local(
        num_cpus=config.ray.num_cpus or max(1, ceil(workers.count * workers.num_cpus)),
        object_store_memory=config.ray.object_store_bytes,
        **quiet,
    )
    gpus = ray.cluster_resources().get("GPU", 0)
    if workers.num_gpus > gpus:
        raise UserError(
            f"workers.num_gpus={workers.num_gpus:g}, but this machine has {gpus:g} GPUs that Ray can see; "
            "workers.num_gpus=0 runs on the CPU"
        )


def _init_local(**options: Any) -> None:
    """Ray gives itself 30 s to start, which a busy machine can exceed: try again."""
    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises the bare class here
            ray.shutdown()
            if attempt == _STARTS:
                raise PipelineError(f"a local Ray could not be started, {_STARTS} tries: {error}") from error


def _answer(reference: Any) -> Any:
    """A coordinator's answer; its own errors as they are, its death as a PipelineError."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise PipelineError(
            f"the coordinator died ({_summary(error)}). What was committed is safe: start again to resume"
        ) from None


def _summary(error: RayError) -> str:
    """One line for people: the cause where Ray kept it, else the first line of Ray's account."""
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300]


def _new_run_id() -> str:
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"

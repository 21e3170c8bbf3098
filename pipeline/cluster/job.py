"""The job on Ray: a Coordinator actor, GpuWorker actors, and the driver that starts and replaces them.

With session.py, which connects to Ray, the only file of the pipeline that knows it. What the actors
do: actors.py; when to replace one: fleet.py.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from pipeline.cluster.session import ray_session  # isort: skip  # sets what ray reads when it is imported
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.actors import TICK_SECONDS, Coordinator, GpuWorker
from pipeline.cluster.fleet import Fleet
from pipeline.cluster.interrupts import sigterm_interrupts
from pipeline.cluster.protocol import Message, Reply, Run
from pipeline.cluster.report import Progress, RunReport
from pipeline.config import JobConfig
from pipeline.errors import PipelineError, UserError
from pipeline.output import OutputStore

__all__ = ["RemoteCoordinator", "run_job"]

_LEAVE_SECONDS = 2.0  # for workers that have nothing left to do
_OPEN_SECONDS = 10.0
_SURE = 3  # workers that failed with a mistake of the user's, and none that did not
_CALLS_AT_ONCE = 32
_MOST_SECONDS = 1e9  # that Ray can wait


class RemoteCoordinator:
    """The coordinator as its workers see it: every call waits for its answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def register(self, worker_id: str) -> None:
        ray.get(self._actor.register.remote(worker_id))

    def ready(self, worker_id: str) -> None:
        ray.get(self._actor.ready.remote(worker_id))

    def exchange(self, worker_id: str, message: Message) -> Reply:
        reply: Reply = ray.get(self._actor.exchange.remote(worker_id, message))
        return reply

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
        self._failed_call, self._num_user_errors = "", 0

    def drive(self, on_progress: Callable[[Progress], None]) -> str | None:
        """Until every video is settled; why not, where the run cannot go on."""
        while True:
            progress: Progress = _answer(self._coordinator.status.remote())
            on_progress(progress)
            self._forgive_user_error(progress)
            if progress.error or progress.is_done:
                return progress.error
            verdict = self._fleet.verdict(progress, time.monotonic())
            if self.user_error and (verdict or self._is_sure):
                return str(self.user_error)
            if verdict is not None:
                return verdict if self._fleet.has_loaded else f"{verdict}. {self._offer()}"
            for worker_id in self._fleet.alive.intersection(progress.lost_workers):
                self._bury(worker_id, "it fell silent", progress)
            for _ in range(0 if self.user_error else self._fleet.num_missing(progress)):
                self._start()
            self._take_ended(progress)

    def let_go(self, seconds: float) -> None:
        """Wait for workers to leave, then end those that have not."""
        works = [ref for ref, (_, call) in self._pending.items() if call == "work"]
        with suppress(RayError):
            ray.wait(works, num_returns=len(works), timeout=min(seconds, _MOST_SECONDS)) if works else None
        for actor in self._actors.values():
            ray.kill(actor)

    def _start(self) -> None:
        worker_id, workers = self._fleet.create(), self._config.workers
        options = {"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus, "max_restarts": 0}
        arguments = (worker_id, self._config, self._run, RemoteCoordinator(self._coordinator), os.getcwd())
        _answer(self._coordinator.register.remote(worker_id))
        actor = ray.remote(GpuWorker).options(**options).remote(*arguments)
        self._actors[worker_id] = actor
        self._pending[actor.load.remote()] = (worker_id, "load")

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
                is_unfit = self._note_user_error(error, call)
                self._bury(worker_id, _summary(error), progress, is_unfit)
            else:
                self._note_success(worker_id, call)

    def _note_success(self, worker_id: str, call: str) -> None:
        actor = self._actors.get(worker_id)
        if actor is None:
            return
        if call == "load":  # not before: a worker that could not load must not begin, nor leave as if done
            self._fleet.ready(worker_id)
            self._pending[actor.work.remote()] = (worker_id, "work")
        else:
            self._fleet.left(worker_id)
            ray.kill(self._actors.pop(worker_id))

    def _note_user_error(self, error: RayError, call: str) -> bool:
        """Whether it was one; it ends the run unless others can do what this one could not."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            self.user_error, self._failed_call = cause, call
            self._num_user_errors += 1
        return isinstance(cause, UserError)

    def _forgive_user_error(self, progress: Progress) -> None:
        """What others could do is not the job's mistake, but one machine's: a broken disk, a missing file."""
        can_load = self._fleet.has_loaded or progress.workers.get("ready", 0) > 0
        if can_load if self._failed_call == "load" else progress.num_settled > 0:
            self.user_error, self._num_user_errors = None, 0

    @property
    def _is_sure(self) -> bool:
        """Whether it is the job's mistake: many say so, or nobody is left who may do better."""
        may_do_better = self._fleet.is_starting if self._failed_call == "load" else self._fleet.alive
        return self._num_user_errors >= _SURE or not may_do_better

    def _bury(self, worker_id: str, why: str, progress: Progress, is_unfit: bool = False) -> None:
        """Forget a worker that died or must; its process too may still be there."""
        actor = self._actors.pop(worker_id, None)
        if actor is None:
            return
        ray.kill(actor)
        self._pending = {ref: whose for ref, whose in self._pending.items() if whose[0] != worker_id}
        self._fleet.died(worker_id, why, progress.num_settled, is_unfit=is_unfit)
        _answer(self._coordinator.lost.remote(worker_id, f"worker died: {why}"))

    def _offer(self) -> str:
        workers, there = self._config.workers, ray.cluster_resources()
        return (
            f"A worker asks for {workers.num_cpus:g} CPUs and {workers.num_gpus:g} GPUs; this Ray has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g} in all"
        )


def run_job(
    config: JobConfig, *, on_progress: Callable[[Progress], None], heal: Sequence[str] | None = None
) -> RunReport:
    """Index a corpus; joins the Ray of ``config.ray``, or starts one and stops it again.

    ``on_progress`` is called about twice a second. ``heal``: only videos that failed for good, for one of
    these reasons (empty: for any). Ctrl-C or SIGTERM: workers have ``limits.drain_seconds`` to finish or give
    back what they hold; what is finished is committed, and the report has status 130. Raises UserError, and
    PipelineError where the coordinator itself died.
    """
    from pipeline.indexing import resolve_revision

    revision = resolve_revision(config.model)
    wanted = None if heal is None else tuple(heal)
    run = Run(_new_run_id(), config.fingerprint(revision), revision, os.getpid(), wanted)
    OutputStore(config.output.uri, config.output.table)  # refuses a wrong address before anything starts
    # Twice: Ray replaces the handler when it starts.
    with sigterm_interrupts(), ray_session(config), sigterm_interrupts():
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_concurrency": _CALLS_AT_ONCE, "scheduling_strategy": here}
        coordinator = ray.remote(Coordinator).options(**options).remote(config, run, os.getcwd())
        try:
            return _drive(_Driver(config, run, coordinator), coordinator, config, on_progress)
        finally:
            ray.kill(coordinator)


def _drive(
    driver: _Driver, coordinator: Any, config: JobConfig, on_progress: Callable[[Progress], None]
) -> RunReport:
    error, interrupted = None, False
    opening = coordinator.open.remote()
    try:
        _answer(opening)
        error = driver.drive(on_progress)
    except KeyboardInterrupt:
        interrupted = True
        _stop(coordinator, opening, config.limits.drain_seconds)
    with suppress(KeyboardInterrupt):  # a second Ctrl-C: do not wait for the videos being worked on
        driver.let_go(config.limits.drain_seconds if interrupted else _LEAVE_SECONDS)
    progress, report = _ended(coordinator.status.remote(), coordinator.finish.remote(interrupted, error))
    if driver.user_error is not None:
        raise driver.user_error
    if progress.is_user_error:
        raise UserError(str(progress.error))
    return report


def _ended(status: Any, finishing: Any) -> tuple[Progress, RunReport]:
    """How the run went. One Ctrl-C does not break off the last commit, which is under way; a second does."""
    try:
        return _answer(status), _answer(finishing)
    except KeyboardInterrupt:
        return _answer(status), _answer(finishing)


def _stop(coordinator: Any, opening: Any, seconds: float) -> None:
    """No more work is given out. A coordinator that is just taking the output gives it back properly."""
    _answer(coordinator.stop.remote())
    ended, _ = ray.wait([opening], timeout=min(seconds, _OPEN_SECONDS))
    if ended:  # else it reads back what is done, which can take minutes and need not end
        _answer(opening)  # an output that could not be taken is no interruption


def _answer(reference: Any) -> Any:
    """A coordinator's answer; its own errors as they are, its death as a PipelineError."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise error.cause from None
        raise
    except RayActorError as error:
        if error.actor_init_failed:
            raise PipelineError(f"the coordinator could not start: {_summary(error)}") from None
        raise PipelineError(
            f"the coordinator died ({_summary(error)}). What was committed is safe: start again to resume"
        ) from None


def _summary(error: RayError) -> str:
    """One line for people: the cause where Ray kept it, else the first line of Ray's account.

    Of an actor that could not be made Ray keeps only the traceback, as text; its last line is the cause.
    """
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if getattr(error, "actor_init_failed", False) else 0][:300]


def _new_run_id() -> str:
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"

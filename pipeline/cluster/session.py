"""A connection to Ray for one job: the running cluster it names, or a small one of its own.

Beside job.py the only file of the pipeline that knows Ray.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

# Read when ray is imported: a driver under `uv run` would otherwise rebuild its environment for every worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# Ray 2.60 warns about this default with every actor that asks for no GPU; this is its coming value.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray._private import services
from ray.exceptions import RayError

from pipeline import ROOT
from pipeline.config import JobConfig
from pipeline.errors import PipelineError, UserError

__all__ = ["ray_session"]

_STARTS = 3


@contextmanager
def ray_session(config: JobConfig) -> Iterator[None]:
    """A connection to Ray; one that exists already is used and left as it is.

    Raises UserError where the named cluster cannot be joined, PipelineError where none can be started.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    try:
        with _own_code_first():
            if address:
                _join(address, quiet)
            else:
                _start_local(config, quiet)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_code_first() -> Iterator[None]:
    """Ray puts the working folder first where workers import from; it may have a ``pipeline`` too."""
    folder = os.getcwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(folder)


@contextmanager
def _in_own_sessions() -> Iterator[None]:
    """Ray's processes start apart from the driver's group.

    A signal to the whole group, as `timeout` sends it, would end them before the driver has drained.
    """
    popen = services.ConsolePopen

    class InOwnSession(popen):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "start_new_session": True})

    services.ConsolePopen = InOwnSession
    try:
        yield
    finally:
        services.ConsolePopen = popen


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
    root = str(ROOT)
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
            with _in_own_sessions():
                ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises the bare class here
            ray.shutdown()
            if attempt == _STARTS:
                raise PipelineError(f"a local Ray could not be started, {_STARTS} tries: {error}") from error

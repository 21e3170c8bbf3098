"""Processes and the machine they run on, told apart also after a restart."""

from __future__ import annotations

import os

import psutil

__all__ = ["boot_id", "is_alive", "started_at"]


def boot_id() -> str:
    """Names the running kernel and the set of process numbers (containers have their own); "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started_at(pid: int) -> float:
    """When a process began, in seconds since the epoch; 0 where there is none of that number."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return 0.0


def is_alive(pid: int, began_at: float) -> bool:
    """Whether that very process runs; a number given to a newer process does not count."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        # Start times are derived from the boot time, which a clock adjustment moves by a little.
        return bool(abs(process.create_time() - began_at) < 2.0)
    except psutil.NoSuchProcess:
        return False

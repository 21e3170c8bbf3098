"""Forward pre-hooks that see one caller's passes only, although the modules are shared by all threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

__all__ = ["PreHook", "own_pre_hooks", "without_hooks"]

PreHook = Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]

# Which `with` the running code is in. Every thread has its own value, and a task of an event loop as well.
_CURRENT: ContextVar[object] = ContextVar("flashvid_current_hooks", default=None)
# torch numbers hooks with a counter that two threads could read at once; equal numbers replace each other.
_LOCK = threading.Lock()


@contextmanager
def own_pre_hooks(hooks: Sequence[tuple[nn.Module, PreHook]]) -> Iterator[None]:
    """Inside the ``with``, each hook(module, args, kwargs) runs before its module's forward.

    Only for passes begun inside this very ``with``: other threads may use the same modules meanwhile, with
    hooks of their own or none, and do not see these. Within a nested ``with`` only the inner one's hooks
    run. What a hook returns replaces (args, kwargs), None leaves them. All hooks are gone afterwards,
    whatever was raised.
    """
    owner = object()
    handles: list[Any] = []
    token = _CURRENT.set(owner)
    try:
        with _LOCK:
            for module, hook in hooks:
                handles.append(module.register_forward_pre_hook(_only_of(owner, hook), with_kwargs=True))
        yield
    finally:
        with _LOCK:
            for handle in handles:
                handle.remove()
        _CURRENT.reset(token)


@contextmanager
def without_hooks() -> Iterator[None]:
    """Inside the ``with`` no such hook runs: for code of the caller's that is called back from a pass.

    It may run the same model, and then wants what it would get outside.
    """
    token = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _only_of(owner: object, hook: PreHook) -> Callable[..., Any]:
    def run(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        # Another thread's pass may fall between torch's two entries for a hook; then it comes without kwargs.
        if kwargs is None or _CURRENT.get() is not owner:
            return None
        return hook(module, args, kwargs)

    return run

"""Which weights a model name stands for: part of every row and of the fingerprint. No torch."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from flashvid.models import CheckpointError, check_files
from pipeline.config import ModelConfig
from pipeline.errors import PipelineError, UserError

__all__ = ["check_model", "check_revision", "place_of", "resolve_revision", "unknown_revision"]

_WHOLE_BYTES = 64 * 2**20  # larger files are sampled: reading tens of GB would hold up every start
_END_BYTES = 2**20  # of a large file, the first (names and shapes of the tensors) and the last
_NUM_BLOCKS, _BLOCK_BYTES = (
    64,
    64 * 2**10,
)  # and evenly spaced blocks between: another fine-tune differs there
_OF_FOLDER = "sha256-"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_SECONDS = 15.0


def resolve_revision(model: ModelConfig) -> str:
    """The exact version of the weights: the content hash of a folder, or the commit of a hub model.

    Of an engine of another package (``model.engine``) only its makers know: ``model.revision``, or "engine".

    Of files over 64 MiB both ends and 64 blocks between are hashed, so changing a few weights can go unseen.
    A hub model that is not pinned stands for its cached snapshot, else for the commit the hub names now.
    Raises UserError where there is no such folder or model, or where neither cache nor hub can tell.
    """
    if model.engine is not None:
        return model.revision or "engine"
    folder = _folder(model)
    if os.path.isdir(folder):
        return _folder_revision(folder, model)
    if os.path.lexists(folder) or not _is_hub_id(model.name):
        raise UserError(
            f"model.name={model.name!r} is no folder here (looked at {str(folder.absolute())!r}"
            f"{_near(folder)}) and not of the form owner/name of the Hugging Face hub; give a checkpoint "
            "folder, e.g. demo/model, or a hub id, e.g. Qwen/Qwen2.5-VL-7B-Instruct"
        )
    if _COMMIT.fullmatch(model.revision or ""):
        return str(model.revision)
    return _cached_commit(model) or _hub_commit(model)


def check_model(model: ModelConfig) -> None:
    """Raise UserError, naming the file, for a folder that cannot be loaded; reads headers, no weights."""
    if model.engine is None and os.path.isdir(_folder(model)):
        try:
            check_files(_folder(model))
        except (CheckpointError, TypeError, OSError) as error:
            raise UserError(f"model.name={model.name!r} cannot be used: {error}") from None


def check_revision(model: ModelConfig, revision: str) -> None:
    """Hold what ``model`` stands for on this machine, now, against the run's ``revision``.

    A hub model is loaded by its commit, and of another engine only its makers know. Raises PipelineError
    where they differ: a fault of the machine, which another may not have.
    """
    is_folder = model.engine is None and os.path.isdir(_folder(model))
    if not is_folder and not revision.startswith(_OF_FOLDER):
        return
    found = _hash_folder(_folder(model)) if is_folder else "not there"
    if found != revision:
        raise PipelineError(
            f"model.name={model.name!r} is {found} on this machine now, not {revision} as when the run "
            "began: it was replaced, or copies differ; start again with the same one everywhere"
        )


def unknown_revision(model: ModelConfig) -> str | None:
    """A warning where rows of different weights could not be told apart; None where they can."""
    if model.engine is None or model.revision is not None:
        return None
    return (
        f"model.engine={model.engine!r} without model.revision: rows that other weights or other code of the "
        "engine wrote count as the same; set model.revision, and change it with them"
    )


def place_of(model: ModelConfig) -> str:
    """What to load from: a folder's path, or a hub id."""
    folder = _folder(model)
    return str(folder) if os.path.isdir(folder) else model.name


def _folder(model: ModelConfig) -> Path:
    return Path(os.path.expanduser(model.name))


def _is_hub_id(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return False
    return "/" in name


def _near(folder: Path) -> str:
    """A folder beside the one that is not there, of a similar name."""
    try:
        names = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(folder.name, names, n=1)
    return f"; beside it is {str(folder.with_name(close[0]))!r}" if close else ""


def _folder_revision(folder: Path, model: ModelConfig) -> str:
    if model.revision is not None:
        raise UserError(
            f"model.revision={model.revision!r} is for hub models, but model.name={model.name!r} is a "
            "folder; remove model.revision"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name={model.name!r} is a folder without a readable config.json ({error}); give the "
            "folder of a checkpoint in Hugging Face format"
        ) from None
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        kind = config.get("model_type", "?") if isinstance(config, dict) else "?"
        raise UserError(
            f"model.name={model.name!r} ({kind}) holds no weights: no *.safetensors in the folder"
        )
    return _hash_folder(folder)


def _hash_folder(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(_visible_files(folder)):
        size = path.stat().st_size
        total.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            for start, length in _hashed_ranges(size):
                file.seek(start)
                total.update(file.read(length))
    return f"{_OF_FOLDER}{total.hexdigest()[:32]}"


def _hashed_ranges(num_bytes: int) -> list[tuple[int, int]]:
    """Which bytes of a file count, as (start, length): all, or of a large file both ends and a sample."""
    if num_bytes <= _WHOLE_BYTES:
        return [(0, num_bytes)]
    last = num_bytes - _END_BYTES
    step = (last - _END_BYTES) // _NUM_BLOCKS
    blocks = [(_END_BYTES + number * step, _BLOCK_BYTES) for number in range(_NUM_BLOCKS)]
    return [(0, _END_BYTES), *blocks, (last, _END_BYTES)]


def _visible_files(folder: Path) -> Iterator[Path]:
    """What a model may be loaded from: no hidden files, no model card."""
    for path in folder.rglob("*"):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and path.suffix.lower() != ".md":
            yield path


def _cached_commit(model: ModelConfig) -> str | None:
    """The commit of the snapshot in the local cache; the folder there is named after it."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
    return Path(path).parent.name if isinstance(path, str) else None


def _hub_commit(model: ModelConfig) -> str:
    from huggingface_hub import HfApi

    folder = _folder(model)
    where = f"model.name={model.name!r}" + (f" revision {model.revision!r}" if model.revision else "")
    try:
        info = HfApi().model_info(model.name, revision=model.revision, timeout=_HUB_SECONDS)
    except Exception as error:  # no network, no such model, no access: many classes, one way out
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{where} is no folder here (looked at {str(folder.absolute())!r}{_near(folder)}), not in the "
            f"Hugging Face cache, and the hub did not name its commit: {reason}. Check the name and the "
            "network, log in for gated models (hf auth login), or set model.revision to a commit hash"
        ) from None
    if not info.sha:
        raise UserError(f"the hub names no commit for {where}; set model.revision to a commit hash")
    return str(info.sha)

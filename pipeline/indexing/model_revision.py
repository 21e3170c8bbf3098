"""Which weights a model name stands for: part of every row and of the fingerprint. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config import ModelConfig
from pipeline.errors import UserError

__all__ = ["resolve_revision"]

_WHOLE_BYTES = 64 * 2**20  # larger files are sampled: reading tens of GB would hold up every start
_END_BYTES = 2**20  # of a large file, the first (names and shapes of the tensors) and the last
_NUM_BLOCKS, _BLOCK_BYTES = (
    64,
    64 * 2**10,
)  # and evenly spaced blocks between: another fine-tune differs there
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
    folder = Path(model.name).expanduser()
    if folder.is_dir():
        return _folder_revision(folder, model)
    if _COMMIT.fullmatch(model.revision or ""):
        return str(model.revision)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model.name):
        raise UserError(
            f"model.name={model.name!r} is no folder here (looked at {str(folder.absolute())!r}) and not of "
            "the form owner/name of the Hugging Face hub; give a checkpoint folder, e.g. demo/model, or a "
            "hub id, e.g. Qwen/Qwen2.5-VL-7B-Instruct"
        )
    return _cached_commit(model) or _hub_commit(model)


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
    return f"sha256-{total.hexdigest()[:32]}"


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

    where = f"model.name={model.name!r}" + (f" revision {model.revision!r}" if model.revision else "")
    try:
        info = HfApi().model_info(model.name, revision=model.revision, timeout=_HUB_SECONDS)
    except Exception as error:  # no network, no such model, no access: many classes, one way out
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{where} is no folder here (looked at {str(Path(model.name).absolute())!r}), not in the Hugging "
            f"Face cache, and the hub did not name its commit: {reason}. Check the name and the network, log "
            "in for gated models (hf auth login), or set model.revision to a commit hash"
        ) from None
    if not info.sha:
        raise UserError(f"the hub names no commit for {where}; set model.revision to a commit hash")
    return str(info.sha)

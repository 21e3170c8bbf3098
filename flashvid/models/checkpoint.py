"""What is wrong with a checkpoint, found in its files or in what became of its tensors. Imports no torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

__all__ = [
    "ADAPTER",
    "FAMILIES",
    "CheckpointError",
    "check_files",
    "check_tensors",
    "refuse_adapter",
    "weight_files",
]

FAMILIES = ("qwen2_5_vl",)

_LFS = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # the specification's limit
# In the order in which transformers looks for them; of each pair the second lists files of the first's kind.
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_TEXTS = ("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
_JSON = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)
ADAPTER = "adapter_config.json"
_HEADER_BYTES = 100 * 2**20  # the format's own limit
_SHOWN = 3


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded as it is; the text names the file, or the tensors."""


def check_files(folder: Path) -> None:
    """Look at the files that a checkpoint's folder is loaded from, of weights at their headers only.

    Raises CheckpointError that names the first file which is missing, a Git LFS pointer, empty, cut short or
    not of its format, and TypeError for a family that is not in ``FAMILIES``.
    """
    if not _is_named(folder / "config.json"):
        raise CheckpointError(f"{str(folder)!r} has no config.json, so it is no checkpoint's folder")
    _check_family(folder, _json(folder / "config.json"))
    if _is_named(folder / ADAPTER):
        refuse_adapter(folder / ADAPTER)
    for name in filter(lambda name: _is_named(folder / name), _JSON):
        _json(folder / name)
    if not any(_is_named(folder / name) for name in _TOKENIZERS):
        raise CheckpointError(f"{str(folder)!r} has no tokenizer: none of {', '.join(_TOKENIZERS)}")
    for name in filter(lambda name: _is_named(folder / name), _TEXTS):
        _checked_size(folder / name)
    for path in weight_files(folder):
        size = _checked_size(path)
        if path.suffix == ".safetensors":
            _check_safetensors(path, size)
        elif _begins(path, 2) == b"PK":
            _check_zip(path)


def refuse_adapter(path: Path) -> NoReturn:
    """With peft the library puts it on, and tells of no other tensor what became of it; without, it does not.

    path: its configuration, beside a model's. Raises CheckpointError.
    """
    raise CheckpointError(
        f"{str(path)!r} belongs to an adapter, which would change the answers where peft is installed and be "
        "left out elsewhere; merge it into the weights, or move its files to another folder"
    )


def check_tensors(
    name: str,
    *,
    missing: Iterable[str],
    mismatched: Iterable[Sequence[Any]],
    unexpected: Iterable[str],
    takes_part: Callable[[str], bool],
) -> str | None:
    """Refuse a checkpoint whose tensors are not those of its model; what to say of others that do no harm.

    missing: names that the model has and the checkpoint has not, without tied ones. mismatched: (name, its
    shape, the model's). unexpected: names that only the checkpoint has: no error by themselves, since
    checkpoints carry heads of other tasks; ``takes_part`` says of which an answer would have to depend.
    Raises CheckpointError with the first few names: such tensors would be random, or left out.
    """
    others = sorted(unexpected)
    if lacking := sorted(missing):
        hint = f"; it holds {_some(others)} that the model does not have: renamed?" if others else ""
        raise CheckpointError(f"{name!r} lacks {_some(lacking)}, which would be random numbers{hint}")
    if wrong := sorted(mismatched, key=str):
        shapes = [f"{key} {tuple(found)} instead of {tuple(wanted)}" for key, found, wanted in wrong]
        raise CheckpointError(f"{name!r} holds {_some(shapes)}: config.json is of another checkpoint")
    if astray := [key for key in others if takes_part(key)]:
        raise CheckpointError(
            f"{name!r} holds {_some(astray)} that the model of its config.json has no place for: config.json "
            "is of another checkpoint, or an adapter or a quantization would be left out"
        )
    return f"{name!r} holds {_some(others)} that are not the model's and are left out" if others else None


def _some(names: Sequence[str]) -> str:
    """How many tensors, and the first few."""
    number = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    more = ", …" if len(names) > _SHOWN else ""
    return f"{number} ({', '.join(names[:_SHOWN])}{more})"


def _check_family(folder: Path, config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise TypeError(f"{str(folder)!r} holds a {family} model; supported: {', '.join(FAMILIES)}")


def weight_files(folder: Path) -> Iterator[Path]:
    """The files that the weights are read from; those that an index names.

    Raises CheckpointError where there are none, or not all that the index names.
    """
    first = next((folder / name for name in _WEIGHTS if _is_named(folder / name)), None)
    if first is None:
        raise CheckpointError(f"{str(folder)!r} holds no weights: none of {', '.join(_WEIGHTS)}")
    if not first.name.endswith(_INDEX):
        yield first
        return
    listed = _json(first).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointError(f"{str(first)!r} has no weight_map from tensors to files")
    shards = sorted(set(listed.values()))
    if absent := [name for name in shards if not _is_named(folder / name)]:
        raise CheckpointError(
            f"{str(folder / absent[0])!r} is not there, which {first.name} names; "
            f"{len(absent)} of its {len(shards)} files are missing"
        )
    yield from (folder / name for name in shards)


def _is_named(path: Path) -> bool:
    """Also where it is a link to nothing, as in half a copy of a cache."""
    return path.is_symlink() or path.exists()


def _checked_size(path: Path) -> int:
    """Bytes of a file that can be what its name says."""
    if not path.is_file():
        what = "a link to a file that is not there" if path.is_symlink() else "no file"
        raise CheckpointError(f"{str(path)!r} is {what}; copy the checkpoint again, following links")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{str(path)!r} is empty; download it again")
    if size < _POINTER_BYTES and _begins(path, len(_LFS)) == _LFS:
        raise CheckpointError(
            f"{str(path)!r} is a Git LFS pointer, not the file it stands for; run git lfs pull in that clone"
        )
    return size


def _begins(path: Path, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(num_bytes)


def _json(path: Path) -> dict[str, Any]:
    _checked_size(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is no JSON, or cut short ({error})") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object, not a {type(found).__name__}")
    return found


def _check_safetensors(path: Path, size: int) -> None:
    """Whether the file is as long as its header says: the length of the header, the header, the tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _HEADER_BYTES:
            raise CheckpointError(f"{str(path)!r} is no safetensors file, or damaged at its start")
        header = file.read(length)
    if len(header) < length:
        raise CheckpointError(f"{str(path)!r} is cut short: {size} bytes, within its header; copy it again")
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{str(path)!r} has a header that is not of a safetensors file") from None
    if size != wanted:
        how = "cut short" if size < wanted else "longer than it should be"
        raise CheckpointError(f"{str(path)!r} is {how}: {size} of {wanted} bytes; copy it again")


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):  # its table of contents is at the end
        raise CheckpointError(f"{str(path)!r} is cut short: its end is missing; copy it again")

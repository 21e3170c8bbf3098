"""Checkpoints that do not load as they should: what is missing is never made up, what is broken is named."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashvid.models import CheckpointError, LoadedModel, load_model
from tests import ROOT
from tests.tiny_model import tiny_model, tiny_tokenizer

# As files have them; the library's own names of today differ.
QUERY = "model.layers.0.self_attn.q_proj"
NORM = "model.layers.0.input_layernorm.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny_model(num_layers=2).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"patch_size": 14}')
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "checkpoint"))


def load(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu", dtype="float32", revision=None, attn_implementation=None)


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[Tensors], Mapping[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(dict(change(load_file(path))), path, metadata={"format": "pt"})


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def set_layers(folder: Path, number: int) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    layers = {"num_hidden_layers": number, "layer_types": ["full_attention"] * number}
    set_config(folder, text_config=text | layers)


def test_renamed_tensors_are_missing_ones_and_both_names_are_told(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, lambda tensors: {f"base_model.model.{name}": one for name, one in tensors.items()})
    said = refused(folder)
    assert "lacks 81 tensors (lm_head.weight, model.language_model.embed_tokens.weight" in said
    assert "holds 81 tensors (base_model.model.lm_head.weight" in said
    assert "LOAD REPORT" not in capfd.readouterr().err, "nor a table of all of them"


@pytest.mark.parametrize("name", [NORM, "lm_head.weight", "visual.patch_embed.proj.weight"])
def test_one_missing_tensor_is_enough(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: {key: one for key, one in tensors.items() if key != name})
    said = refused(folder)
    assert "lacks 1 tensor (" in said
    assert f"{name.removeprefix('model.')}), which would be random" in said


def test_a_tied_head_is_not_missing(folder: Path) -> None:
    rewrite(folder, lambda tensors: {key: one for key, one in tensors.items() if key != "lm_head.weight"})
    set_config(folder, tie_word_embeddings=True)
    model = load(folder).model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_a_tied_head_needs_what_it_is_tied_to(folder: Path) -> None:
    gone = ("lm_head.weight", "model.embed_tokens.weight")
    rewrite(folder, lambda tensors: {key: one for key, one in tensors.items() if key not in gone})
    set_config(folder, tie_word_embeddings=True)
    assert "embed_tokens.weight" in refused(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda tensors: {**tensors, NORM: tensors[NORM][:-1].clone()})
    assert "layers.0.input_layernorm.weight (191,) instead of (192,))" in refused(folder)


def test_more_layers_than_the_checkpoint_has_are_missing(folder: Path) -> None:
    set_layers(folder, 3)
    assert "lacks 12 tensors (model.language_model.layers.2." in refused(folder)


@pytest.mark.parametrize("name", [f"{QUERY}.weight_scale", f"{QUERY}.lora_A.default.weight"])
def test_a_tensor_that_a_layer_would_need_is_not_left_out(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: {**tensors, name: torch.ones(2)})
    said = refused(folder)
    assert "holds 1 tensor (" in said
    assert f"{name.removeprefix('model.')}) that the model of its config.json has no place for" in said


def test_layers_that_config_json_does_not_count_are_not_left_out(folder: Path) -> None:
    set_layers(folder, 1)
    assert "holds 12 tensors (model.language_model.layers.1." in refused(folder)


def test_a_head_of_another_task_is_left_out_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(folder, lambda tensors: {**tensors, "v_head.weight": torch.ones(2)})
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "1 tensor (v_head.weight)" in caplog.text


def test_who_writes_over_the_file_does_not_change_a_loaded_model(folder: Path) -> None:
    model = load(folder).model
    before = [tensor.clone() for tensor in model.parameters()]
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 4)
        file.write(bytes(weights.stat().st_size // 2))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("model.safetensors", lambda _: POINTER, "is a Git LFS pointer"),
        ("model.safetensors", half, "is cut short"),
        ("model.safetensors", lambda content: content[:500], "is cut short"),
        ("model.safetensors", lambda content: content + b"\0", "is longer than it should be"),
        ("model.safetensors", lambda _: b"", "is empty"),
        ("model.safetensors", lambda _: b"<html>not found</html>" * 9, "is no safetensors file"),
        ("tokenizer.json", lambda _: POINTER, "is a Git LFS pointer"),
        ("tokenizer.json", half, "is no JSON, or cut short"),
        ("tokenizer_config.json", lambda _: b"[]", "must hold a JSON object"),
        ("config.json", half, "is no JSON, or cut short"),
        ("preprocessor_config.json", lambda _: b"", "is empty"),
        ("chat_template.jinja", lambda _: POINTER, "is a Git LFS pointer"),
        ("config.json", lambda _: b"[" * 100_000, "is no JSON, or cut short"),
        (
            "model.safetensors",
            lambda _: (9999).to_bytes(8, "little") + b"[" * 9999,
            "has a header that",
        ),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, change: Callable[[bytes], bytes], why: str) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    assert refused(folder).startswith(f"{str(path)!r} {why}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_is_not_there_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)
    (folder / name).symlink_to("/nowhere/blob")
    assert refused(folder).startswith(f"{str(folder / name)!r} is a link to a file that is not there")


def test_a_shard_that_is_missing_or_broken_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = sorted(tensors)
    for number, shard in enumerate(shards):
        save_file({name: tensors[name] for name in names[number::2]}, shard, metadata={"format": "pt"})
    listed = {name: shards[number % 2].name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    load(folder)
    whole = shards[1].read_bytes()
    shards[1].write_bytes(half(whole))
    assert refused(folder).startswith(f"{str(shards[1])!r} is cut short")
    shards[1].unlink()
    assert refused(folder).startswith(f"{str(shards[1])!r} is not there")


@pytest.mark.parametrize(("as_zip", "why"), [(True, "is cut short"), (False, "cannot be read")])
def test_pickled_weights_cut_short_are_named(folder: Path, as_zip: bool, why: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=as_zip)
    load(folder)
    path.write_bytes(half(path.read_bytes()))
    said = refused(folder)
    assert path.name in said
    assert why in said


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
@pytest.mark.parametrize("is_list", [False, True])
def test_a_chat_template_is_found_where_older_processors_wrote_it(
    folder: Path, name: str, is_list: bool
) -> None:
    text = (folder / "chat_template.jinja").read_text()
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "when ?"}]}]
    wanted = load(folder).tokenizer.apply_chat_template(chat, tokenize=False)
    (folder / "chat_template.jinja").unlink()
    template = [{"name": "default", "template": text}] if is_list else text
    (folder / name).write_text(json.dumps({"chat_template": template}))
    assert load(folder).tokenizer.apply_chat_template(chat, tokenize=False) == wanted


@pytest.mark.parametrize("found", [5, ["text"], [{"name": "default"}], {"default": None}])
def test_a_chat_template_that_is_no_text_is_named(folder: Path, found: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": found}))
    assert "chat_template in chat_template.json is no text" in refused(folder)


def test_an_adapter_beside_the_weights_is_not_left_out(folder: Path) -> None:
    """Nor put on: whether it is would depend on what is installed."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "adapter_config.json' belongs to an adapter" in refused(folder)


def test_a_tokenizer_of_another_checkpoint_is_refused(folder: Path) -> None:
    """Some of its tokens have no place in the model: an index error at best, of whichever video has them."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"]["vocab"]["another"] = len(found["model"]["vocab"])
    path.write_text(json.dumps(found))
    assert "its tokenizer has 65 tokens and its model 64" in refused(folder)


def test_a_package_that_is_not_installed_is_no_fault_of_the_file(folder: Path) -> None:
    with pytest.raises(ImportError, match="FlashAttention2"):
        load_model(
            str(folder), device="cpu", dtype="auto", revision=None, attn_implementation="flash_attention_2"
        )


def test_the_tokenizers_own_template_comes_first(folder: Path) -> None:
    wanted = load(folder).tokenizer.chat_template
    (folder / "chat_template.json").write_text('{"chat_template": "another"}')
    assert load(folder).tokenizer.chat_template == wanted


def forbid(code: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Left to itself the library asks at a terminal, and runs the code on "y"."""
    ran = code.with_suffix(".ran")
    code.write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: ran.touch() or "y")
    return ran


def test_code_of_a_checkpoint_of_another_family_is_neither_run_nor_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = forbid(folder / "evil.py", monkeypatch)
    set_config(folder, model_type="evil_vl", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.C"})
    with pytest.raises(TypeError, match="evil_vl"):
        load(folder)
    assert not ran.exists()


def test_code_of_a_tokenizer_is_neither_run_nor_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = forbid(folder / "evil.py", monkeypatch)
    path = folder / "tokenizer_config.json"
    mapped = {"auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}, "tokenizer_class": "EvilTokenizer"}
    path.write_text(json.dumps(json.loads(path.read_text()) | mapped))
    assert load(folder).tokenizer.chat_template  # the file of the tokenizer itself is data
    assert not ran.exists()


def test_a_broken_file_in_the_hubs_cache_is_named(folder: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    snapshot = Path(shutil.copytree(folder, place / "snapshots" / commit))
    weights = snapshot / "model.safetensors"
    weights.write_bytes(half(weights.read_bytes()))
    code = (
        "from flashvid.models import CheckpointError, load_model\n"
        "try: load_model('owner/name', device='cpu', dtype='auto', revision=None, attn_implementation=None)\n"
        "except CheckpointError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith(f"{str(weights)!r} is cut short"), done.stderr


def test_the_demo_checkpoint_is_sound() -> None:
    assert load(ROOT / "demo" / "model").tokenizer.chat_template

"""Damaged and foreign model folders: each is a clear error that names what is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import LLM, SamplingParams
from model.config import ModelConfig
from model.errors import CheckpointError, ConfigError, ModelError, UnsupportedModelError
from model.parallel import Shard
from model.weights import qkv_rows
from tests.golden import reference

GOLDEN = Path(reference.__file__).parent / "v2_gqa"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of a sound checkpoint."""
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


WQKV = "model.layers.1.attention.wqkv.weight"

DAMAGES: dict[str, tuple[Callable[[Path], object], type[ModelError], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), CheckpointError, "config.json"),
    "config not JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        CheckpointError,
        "config.json is not JSON",
    ),
    "config a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        CheckpointError,
        "not a JSON object",
    ),
    "no hidden size": (
        lambda folder: (folder / "config.json").write_text('{"architectures": ["InternLM2ForCausalLM"]}'),
        CheckpointError,
        "lacks num_attention_heads",
    ),
    "text for a number": (
        lambda folder: edit_config(folder, vocab_size="many"),
        CheckpointError,
        "wrong kind",
    ),
    "unknown architecture": (
        lambda folder: edit_config(folder, architectures=["GPT2LMHeadModel"]),
        UnsupportedModelError,
        "GPT2LMHeadModel",
    ),
    "unknown activation": (
        lambda folder: edit_config(folder, hidden_act="gelu"),
        UnsupportedModelError,
        "gelu",
    ),
    "unknown rope": (
        lambda folder: edit_config(folder, rope_scaling={"type": "yarn", "factor": 2.0}),
        UnsupportedModelError,
        "yarn",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        CheckpointError,
        "holds no .safetensors",
    ),
    "truncated weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (GOLDEN / "model.safetensors").read_bytes()[:-1000]
        ),
        CheckpointError,
        "model.safetensors is truncated or damaged",
    ),
    "empty weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        CheckpointError,
        "model.safetensors is truncated or damaged",
    ),
    "missing tensor": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(WQKV)),
        CheckpointError,
        WQKV,
    ),
    "mis-shaped tensor": (
        lambda folder: edit_tensors(folder, lambda tensors: tensors.update({WQKV: torch.zeros(192, 64)})),
        CheckpointError,
        rf"{WQKV} .* has shape \[192, 64\], but config.json calls for \[192, 128\]",
    ),
    "missing shard": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {WQKV: "model-00002-of-00002.safetensors"}})
        ),
        CheckpointError,
        "model-00002-of-00002.safetensors is missing",
    ),
    "damaged index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        CheckpointError,
        "is not an index",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named(folder: Path, damage: str) -> None:
    break_it, error, message = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(error, match=message) as refused:
        LLM(folder, num_threads=1)
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this a model folder"):
        LLM(tmp_path / "nowhere")


def test_a_cache_too_small_for_one_request() -> None:
    with pytest.raises(ConfigError, match="holds 32 tokens, fewer than one request of 64"):
        LLM(GOLDEN, max_model_len=64, kv_cache_bytes=2 * 4 * 3 * 2 * 16 * 32, num_threads=1)


def test_shards_and_a_tied_head(folder: Path) -> None:
    """The same weights in two files with an index, without the head that config.json says is tied."""
    tensors = load_file(folder / "model.safetensors")
    tensors["output.weight"] = tensors["model.tok_embeddings.weight"]
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    prompt, params = [[5, 6, 7]], SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    with LLM(folder, num_threads=1) as llm:
        untied = llm.generate(prompt, params)
    del tensors["output.weight"]
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    edit_config(folder, tie_word_embeddings=True)
    with LLM(folder, num_threads=1) as llm:
        assert llm.generate(prompt, params) == untied


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_ranks_slices_of_wqkv_cover_the_tensor(world: int) -> None:
    """Every row is read; query rows by one rank, key and value rows by all that share the kv head."""
    config = ModelConfig.load(GOLDEN)
    readers = [0] * 192
    for rank in range(world):
        for rows in qkv_rows(config, Shard.of(config, rank, world), layer=0):
            for row in range(rows.first, rows.last):
                readers[row] += 1
    sharing = max(1, world // config.num_kv_heads)
    per_group = [1] * 64 + [sharing] * 32
    assert readers == per_group * 2


@pytest.mark.parametrize(
    ("kv_heads", "group", "world", "padded"),
    [
        (2, 4, 2, 2),
        (2, 4, 8, 2),
        (2, 4, 3, 3),
        (2, 4, 16, 4),
        (6, 1, 4, 8),
        (6, 1, 8, 8),
        (8, 4, 1, 8),
        (3, 3, 2, 4),
    ],
)
def test_kv_heads_are_padded_as_little_as_ranks_allow(
    kv_heads: int, group: int, world: int, padded: int
) -> None:
    config = replace(ModelConfig.load(GOLDEN), num_heads=kv_heads * group, num_kv_heads=kv_heads)
    shards = [Shard.of(config, rank, world) for rank in range(world)]
    assert max(shard.kv_heads[1] for shard in shards) == padded
    assert {shard.num_heads for shard in shards} == {padded * group // world}
    assert {shard.num_kv_heads for shard in shards} == {max(1, padded // world)}
    for shard in shards:
        first, last = shard.kv_heads
        assert first * group <= shard.heads[0] < shard.heads[1] <= last * group


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        ("InternLMForCausalLM", {"rotary": {"base": 1000, "type": "dynamic"}}, ("dynamic", 1000, 1, False)),
        ("InternLMForCausalLM", {}, ("default", 10000, 1, False)),
        ("InternLM2ForCausalLM", {"rope_theta": 1e6, "rope_scaling": None}, ("default", 1e6, 1, True)),
        (
            "InternLM2ForCausalLM",
            {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ("dynamic", 1e6, 2, True),
        ),
        (
            "InternLM3ForCausalLM",
            {"rope_theta": 5e7, "rope_scaling": {"rope_type": "dynamic", "factor": 6.0}},
            ("dynamic", 5e7, 6, True),
        ),
        (
            "LlamaForCausalLM",
            {"rope_parameters": {"rope_theta": 1e5, "rope_type": "linear", "factor": 4.0}},
            ("linear", 1e5, 4, True),
        ),
    ],
)
def test_each_way_to_write_the_rope_is_read(
    architecture: str, config: dict[str, Any], expected: tuple[str, float, float, bool]
) -> None:
    base = json.loads((GOLDEN / "config.json").read_text())
    for name in ("rope_theta", "rope_scaling"):
        del base[name]
    rope = ModelConfig.parse(base | config | {"architectures": [architecture]}, None).rope
    assert (rope.kind, rope.theta, rope.factor, rope.grows) == expected

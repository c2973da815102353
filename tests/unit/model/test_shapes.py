"""The published shapes, and the weights that are made up for them."""

import json
from pathlib import Path

import pytest
import torch

from model import memory, shapes
from model.config import ModelConfig
from model.errors import ConfigError
from model.parallel import Shard
from model.weights import RandomCheckpoint, Rows, qkv_rows

#: Billions of weights as the models' pages on Hugging Face state them.
PUBLISHED = {
    "internlm-7b": 7.32,
    "internlm-20b": 20.1,
    "internlm2-1_8b": 1.89,
    "internlm2-7b": 7.74,
    "internlm2-20b": 19.9,
    "internlm2_5-7b": 7.74,
    "internlm2_5-7b-1m": 7.74,
    "internlm3-8b": 8.8,
}


@pytest.mark.parametrize("name", list(shapes.SHAPES))
def test_a_shape_is_a_config_that_the_engine_reads_with_the_published_size(tmp_path: Path, name: str) -> None:
    model = ModelConfig.load(shapes.write(name, tmp_path / "shape"))
    assert shapes.num_parameters(model) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)
    assert model == shapes.model_config(name)
    for world in (1, 2, 4, 8):
        assert Shard.of(model, 0, world)


def test_biases_are_counted() -> None:
    """Against the tensors that InternLM's code makes: four biases of 4096 in each of 32 layers."""
    config = shapes.SHAPES["internlm-7b"]
    without = ModelConfig.parse({**config, "bias": False}, 2)
    assert shapes.num_parameters(shapes.model_config("internlm-7b")) - shapes.num_parameters(without) == (
        32 * 4 * 4096
    )


def test_an_unknown_shape_and_one_too_large_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'llama-405b' is unknown; known are internlm-7b, "):
        shapes.write("llama-405b", tmp_path)
    with pytest.raises(ConfigError, match=r"they need 39\.7 GB, and 30\.0 GB of memory are available"):
        shapes.require_memory("internlm2-20b", 2, 30 * 10**9)
    shapes.require_memory("internlm2-20b", 2, 40 * 10**9)
    assert 0 < memory.available_memory() < 2**50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_made_up_weights_are_normal_and_the_same_in_every_process(dtype: torch.dtype) -> None:
    weight = RandomCheckpoint(dtype).rows([Rows("a.weight", 0, 2000, 2000)], 512)
    assert weight.shape == (2000, 512)
    assert weight.dtype == dtype
    assert weight.float().mean().item() == pytest.approx(0, abs=1e-4)
    assert weight.float().std().item() == pytest.approx(0.02, rel=0.01)
    assert torch.linalg.matrix_rank(weight.float()) == 512
    assert torch.equal(weight, RandomCheckpoint(dtype).rows([Rows("a.weight", 0, 2000, 2000)], 512))
    assert not torch.equal(weight, RandomCheckpoint(dtype).rows([Rows("b.weight", 0, 2000, 2000)], 512))


def test_a_slice_is_the_slice_of_the_whole() -> None:
    checkpoint = RandomCheckpoint(torch.float32)
    whole = checkpoint.rows([Rows("a.weight", 0, 60, 60)], 48)
    parts = [Rows("a.weight", 40, 60, 60), Rows("a.weight", 7, 9, 60)]
    assert torch.equal(checkpoint.rows(parts, 48), torch.cat([whole[40:60], whole[7:9]]))
    assert torch.equal(checkpoint.columns("a.weight", (60, 48), 12, 36), whole[:, 12:36])
    assert checkpoint.columns("a.weight", (60, 48), 12, 36).is_contiguous()
    bias = checkpoint.vector("a.bias", 60)
    assert torch.equal(checkpoint.rows([Rows("a.bias", 40, 60, 60)]), bias[40:60])
    assert bias.std() > 0
    assert torch.equal(checkpoint.vector("model.norm.weight", 8), torch.ones(8))


def test_ranks_together_have_the_packed_projection() -> None:
    model = shapes.model_config("internlm2-1_8b")
    checkpoint = RandomCheckpoint(torch.bfloat16)
    total = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    whole = checkpoint.rows([Rows("x", 0, total, total)], model.hidden_size)
    pieces = []
    for rank in range(4):
        rows = [
            Rows("x", part.first, part.last, total) for part in qkv_rows(model, Shard.of(model, rank, 4), 0)
        ]
        pieces.append(checkpoint.rows(rows, model.hidden_size))
    assert sorted(torch.cat(pieces).tolist()) == sorted(whole.tolist())


def test_the_file_written_is_plain_json(tmp_path: Path) -> None:
    folder = shapes.write("internlm3-8b", tmp_path / "new" / "folder")
    assert json.loads((folder / "config.json").read_text())["rope_scaling"]["factor"] == 6.0

"""The options that commands share: their defaults are the engine's, and records expand into them."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from model.chat import BUILT_IN
from model.commands.chat import TemplateName
from model.commands.options import (
    Attention,
    ComputeType,
    DeviceChoice,
    EngineOptions,
    JsonOption,
    QuantizationChoice,
    parse_size,
    with_records,
)
from model.commands.sampling import SamplingOptions
from model.config import AttentionMode, DeviceName, DTypeName, EngineConfig, Quantization
from model.request import SamplingParams


def test_without_options_the_engine_has_its_own_settings() -> None:
    assert EngineOptions().config(Path("x")) == EngineConfig(path=Path("x"))
    assert SamplingOptions().params() == SamplingParams(temperature=0.0, max_tokens=512)


def test_choices_are_the_engines() -> None:
    assert set(Attention) == set(get_args(AttentionMode))
    assert set(ComputeType) == set(get_args(DTypeName))
    assert set(DeviceChoice) == set(get_args(DeviceName))
    assert set(QuantizationChoice) == set(get_args(Quantization))
    assert set(TemplateName) == set(BUILT_IN)


def test_the_user_counts_more_than_the_command() -> None:
    options = EngineOptions(max_num_seqs=3, block_size=8)
    config = options.config(Path("x"), max_num_seqs=7, max_step_tokens=99)
    assert (config.max_num_seqs, config.max_step_tokens, config.block_size) == (3, 99, 8)


def test_a_record_becomes_options_and_comes_back() -> None:
    seen: list[object] = []
    app = typer.Typer()

    @app.command()
    @with_records
    def command(engine: EngineOptions, sampling: SamplingOptions, as_json: JsonOption = False) -> None:
        """Do."""
        seen.extend([engine, sampling, as_json])

    words = [
        "--attention", "flash", "--dtype", "float32", "--quantization", "w8a8", "--device", "npu",
        "--tp", "2", "--max-model-len", "300", "--rope-scaling", "dynamic:2.0", "--block-size", "16",
        "--kv-cache", "2GiB", "--max-num-seqs", "5", "--max-step-tokens", "64", "--no-prefix-caching",
        "--threads", "3", "--top-k", "4",
        "--stop", "a", "--stop", "b", "--seed", "1", "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    engine, sampling, as_json = seen
    assert isinstance(engine, EngineOptions)
    assert isinstance(sampling, SamplingOptions)
    assert engine.config(Path("x")) == EngineConfig(
        path=Path("x"), attention="flash", dtype="float32", quantization="w8a8", device="npu",
        tensor_parallel_size=2, max_model_len=300, rope_scaling="dynamic:2.0", block_size=16,
        kv_cache_bytes=2 * 2**30, max_num_seqs=5, max_step_tokens=64, prefix_caching=False, num_threads=3,
    )  # fmt: skip
    assert sampling.params().stop == ("a", "b")
    assert (sampling.params().top_k, sampling.params().seed) == (4, 1)
    assert as_json is True
    given = {field.name for field in fields(EngineOptions) if getattr(engine, field.name) is not None}
    assert given == {field.name for field in fields(EngineOptions)}, "every option was tried"


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 5 * 10**8), ("2GiB", 2**31), ("1.5 kb", 1500), ("7", 7)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "2 parsecs", "0.1B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_size(text)

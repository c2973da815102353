"""`model convert` on every kind of source: the same model comes out, or one line says why not."""

import fcntl
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.exactness import EngineLogits, load_reference
from model.convert.conversion import Conversion, run
from model.convert.locate import locate
from model.errors import CheckpointError, ConvertError, ModelError, UnsupportedModelError
from model.tokenizer import Tokenizer
from tests.golden import reference
from tests.unit.model_text.conftest import train  # noqa: F401 - a fixture

TOKENS = [1, 5, 9, 200, 33, 7, 150, 2, 88, 3]
pytestmark = pytest.mark.filterwarnings("default:.*not writable.*:UserWarning")


def convert(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    return run(Conversion(source=source, target=target, **options), lambda *_: None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, torch.Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        found |= load_file(folder / file)
    assert set(found) == set(index["weight_map"])
    assert sum(tensor.nbytes for tensor in found.values()) == index["metadata"]["total_size"]
    return found


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
    for name, tensor in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(tensor, mean=1.0, std=0.3)
    return model.eval()


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model.cli", "convert", *arguments],
        text=True,
        capture_output=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 8, "rope_theta": 50000.0},
        {"num_key_value_heads": 1, "attention_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    ],
)
@pytest.mark.parametrize("layout", ["keep", "internlm2"])
def test_a_llama_gives_the_same_logits_in_either_layout(
    tmp_path: Path, layout: str, changes: dict[str, Any]
) -> None:
    model = tiny_llama(**changes)
    model.save_pretrained(tmp_path / "source")
    summary = convert(tmp_path / "source", tmp_path / "target", layout=layout)
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(EngineLogits(tmp_path / "target").of(TOKENS), expected, rtol=0, atol=1e-4)
    expected_architecture = "LlamaForCausalLM" if layout == "keep" else "InternLM2ForCausalLM"
    assert summary["architecture"] == expected_architecture
    packed = [name for name in weights(tmp_path / "target") if "wqkv" in name]
    assert bool(packed) == (layout == "internlm2")


@pytest.mark.parametrize("name", ["v1_bias", "v2_gqa"])
def test_internlm_packed_as_internlm2_gives_the_originals_logits(tmp_path: Path, name: str) -> None:
    golden = reference.load(name)
    convert(golden.folder, tmp_path / "target", layout="internlm2")
    config = json.loads((tmp_path / "target/config.json").read_text())
    assert config["architectures"] == ["InternLM2ForCausalLM"]
    assert "auto_map" not in config
    engine = EngineLogits(tmp_path / "target")
    for number, prompt in enumerate(golden.prompts):
        expected = torch.from_numpy(golden.answers[f"p{number}_prefill_logits"])
        torch.testing.assert_close(engine.of(prompt)[-len(expected) :], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [20_000, 10**9])
def test_bin_files_give_what_safetensors_give(tmp_path: Path, size: int) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "safetensors")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/config.json").write_bytes((tmp_path / "safetensors/config.json").read_bytes())
    state = {**model.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    halves = [dict(list(state.items())[half::2]) for half in (0, 1)]
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(half, tmp_path / "bin" / file)
        weight_map |= dict.fromkeys(half, file)
    (tmp_path / "bin/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for kind in ("safetensors", "bin"):
        convert(tmp_path / kind, tmp_path / f"from-{kind}", layout="internlm2", shard_size=size)
    ours, theirs = (weights(tmp_path / f"from-{kind}") for kind in ("safetensors", "bin"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    shards = list((tmp_path / "from-bin").glob("model-*.safetensors"))
    assert len(shards) > 3 if size == 20_000 else len(shards) == 1
    largest = max(tensor.nbytes for tensor in ours.values())
    assert all(sum(t.nbytes for t in load_file(file).values()) <= max(size, largest) for file in shards)


def test_dtypes(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "bf16", dtype="bfloat16")
    stored = weights(tmp_path / "bf16")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name].bfloat16()) for name, tensor in stored.items())
    assert json.loads((tmp_path / "bf16/config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.slow
def test_the_bundled_gguf_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    convert(locate("smollm2"), tmp_path / "target")
    ours, theirs = weights(tmp_path / "target"), load_reference().state_dict()
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}  # tied
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.fixture
def vocabulary(train: Callable[..., Path]) -> tuple[Path, list[str], list[float], list[int]]:  # noqa: F811
    """A sentencepiece vocabulary as a GGUF states it."""
    folder = train(["<eoa>", "[UNUSED_TOKEN_145]"])
    library = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = range(library.vocab_size())
    kinds = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1
        for i in ids
    ]
    for mark in ("<eoa>", "[UNUSED_TOKEN_145]"):
        kinds[library.piece_to_id(mark)] = 4
    return folder, [library.id_to_piece(i) for i in ids], [library.get_score(i) for i in ids], kinds


@pytest.mark.parametrize("architecture", ["llama", "internlm2"])
def test_a_gguf_with_sentencepiece(
    tmp_path: Path, architecture: str, vocabulary: tuple[Path, list[str], list[float], list[int]]
) -> None:
    folder, tokens, scores, kinds = vocabulary
    model = tiny_llama(vocab_size=len(tokens), num_key_value_heads=4)
    write_gguf(tmp_path / "tiny.gguf", architecture, model, (tokens, scores, kinds))
    convert(tmp_path / "tiny.gguf", tmp_path / "target")
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(EngineLogits(tmp_path / "target").of(TOKENS), expected, rtol=0, atol=1e-4)
    config = json.loads((tmp_path / "target/config.json").read_text())
    assert config["architectures"] == [
        {"llama": "LlamaForCausalLM", "internlm2": "InternLM2ForCausalLM"}[architecture]
    ]
    ours, original = Tokenizer.load(tmp_path / "target"), Tokenizer.load(folder)
    for text in ("the quick 我们 fox", " <eoa> x [UNUSED_TOKEN_145]", "\n\n", "é🤗"):
        assert ours.encode(text) == original.encode(text)
        assert ours.encode_markup(text) == original.encode_markup(text)


def write_gguf(
    path: Path,
    architecture: str,
    model: LlamaForCausalLM,
    vocabulary: tuple[list[str], list[float], list[int]],
) -> None:
    """Write float32 weights as llama.cpp's converter does."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens, scores, kinds = vocabulary
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name:
            values = interleaved(values, config.num_attention_heads)
        elif "k_proj" in name:
            values = interleaved(values, config.num_key_value_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["LONGHAUL_TEST_PAYLOAD"],)


def test_a_bin_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_TEST_PAYLOAD", str(tmp_path / "ran"))
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    torch.save({"model.norm.weight": _Payload()}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a plain tensor file"):
        convert(source, tmp_path / "target")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a plain tensor file"):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "target").exists()


def damaged(source: Path, what: str) -> None:
    file = source / "model.safetensors"
    config = json.loads((source / "config.json").read_text())
    match what:
        case "truncated weights":
            file.write_bytes(file.read_bytes()[:-100])
        case "no weights":
            file.unlink()
        case "missing tensor":
            state = load_file(file)
            state.pop("model.layers.1.mlp.up_proj.weight")
            save_file(state, file)
        case "unknown architecture":
            (source / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
        case "config is not JSON":
            (source / "config.json").write_text("{")
        case "config lacks a key":
            del config["hidden_size"]
            (source / "config.json").write_text(json.dumps(config))
        case "no config":
            (source / "config.json").unlink()
        case "wrong head count":
            (source / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
        case "biases in the MLP":
            (source / "config.json").write_text(json.dumps(config | {"mlp_bias": True}))
        case "truncated gguf":
            (source / "config.json").unlink()
            (source / "model.gguf").write_bytes(locate("smollm2").read_bytes()[:5_000_000])
        case "not a gguf":
            (source / "config.json").unlink()
            (source / "model.gguf").write_bytes(b"GGUF, or not")


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("truncated weights", CheckpointError, "damaged or truncated"),
        ("no weights", CheckpointError, "no .safetensors"),
        ("missing tensor", CheckpointError, "lack model.layers.1.mlp.up_proj.weight"),
        ("unknown architecture", UnsupportedModelError, "GPT2LMHeadModel"),
        ("config is not JSON", CheckpointError, "not valid JSON"),
        ("config lacks a key", CheckpointError, "lacks hidden_size"),
        ("no config", CheckpointError, "neither config.json nor"),
        ("wrong head count", CheckpointError, "k_proj.weight has 16 rows; config.json says 32"),
        ("biases in the MLP", UnsupportedModelError, "biases in the MLP"),
        ("truncated gguf", CheckpointError, "truncated"),
        ("not a gguf", CheckpointError, "not a GGUF"),
    ],
)
def test_a_bad_source_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, what: str, error: type[ModelError], message: str
) -> None:
    tiny_llama().save_pretrained(tmp_path / "source")
    damaged(tmp_path / "source", what)
    with pytest.raises(error, match=message) as caught:
        convert(tmp_path / "source", tmp_path / "target", layout="internlm2")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_target_is_not_replaced_unasked(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "target")
    with pytest.raises(ConvertError, match="--force"):
        convert(tmp_path / "source", tmp_path / "target", layout="internlm2")
    convert(tmp_path / "source", tmp_path / "target", layout="internlm2", force=True)
    assert "output.weight" in weights(tmp_path / "target")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.txt").write_text("years of work")
    with pytest.raises(ConvertError, match="not a model folder"):
        convert(tmp_path / "source", tmp_path / "papers", force=True)
    with pytest.raises(ConvertError, match="source itself"):
        convert(tmp_path / "source", tmp_path / "source", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["papers", "source", "target"]


def test_two_conversions_into_one_target_do_not_mix(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "source")
    partial = tmp_path / ".target.partial"
    partial.mkdir()
    (partial / "leftover").write_text("of a run that was killed")
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ConvertError, match="another process"):
        convert(tmp_path / "source", tmp_path / "target")
    os.close(other)
    convert(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target/leftover").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: writes fail in the same place."""
    tiny_llama().save_pretrained(tmp_path / "source")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = command(str(tmp_path / "source"), str(tmp_path / "target"), preexec_fn=limited)
    assert done.returncode == 1
    assert done.stderr.startswith("error[convert_failed]: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_conversion_leaves_no_half_target(tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["smollm2", str(tmp_path / "target"), "--shard-size", "1MB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "model.cli", "convert", *arguments], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".target.partial/model-00003*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    assert process.wait(60) != 0
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([".target.partial"] if number == signal.SIGKILL else [])
    assert convert(locate("smollm2"), tmp_path / "target")["shards"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_the_command_and_its_second_run(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "source")
    arguments = [str(tmp_path / "source"), str(tmp_path / "target"), "--layout", "internlm2", "--json"]
    first = command(*arguments)
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary["status"] == "converted"
    assert summary["shards"] == 1
    # The second run must not even import torch.
    torchless = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'model'; from model.cli import app; app()"
    )
    second = subprocess.run(
        [sys.executable, "-c", torchless, "convert", *arguments], text=True, capture_output=True, check=False
    )
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout) == {**summary, "status": "complete"}
    next((tmp_path / "target").glob("model-*.safetensors")).write_bytes(b"")
    damaged_target = command(*arguments)
    assert damaged_target.returncode == 1
    assert json.loads(damaged_target.stdout)["error"]["code"] == "convert_failed"
    assert command(*arguments, "--force").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["nowhere", "target"], 1), (["only-one"], 2), (["a", "b", "--shard-size", "much"], 2)],
)
def test_exit_statuses(tmp_path: Path, arguments: list[str], status: int) -> None:
    assert (
        command(
            *arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        ).returncode
        == status
    )

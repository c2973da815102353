"""What the engine is told: ModelConfig from a checkpoint's files, EngineConfig from the caller. No torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from model.errors import CheckpointError, ConfigError, UnsupportedModelError
from model.families import FAMILIES, Family, Rope, RopeKind

DeviceName = Literal["cpu", "cuda", "npu"]
DTypeName = Literal["auto", "bfloat16", "float32", "float16"]
AttentionMode = Literal["paged", "flash"]
#: w8a16: int8 weights. w8a8: activations too, each token with a scale that is found as it comes.
Int8Scheme = Literal["w8a16", "w8a8"]
Quantization = Literal["none", "w8a16", "w8a8"]

#: Tokens of a block where nobody says.
_BLOCK_SIZES: Mapping[DeviceName, int] = {"cpu": 32, "cuda": 32, "npu": 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder, whatever its family."""

    architecture: str
    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied_head: bool
    dtype: DTypeName
    eos_token_ids: frozenset[int]

    @classmethod
    def of(cls, config: "EngineConfig") -> "ModelConfig":
        """The model that an engine runs: its folder's, with what the settings change. Raises as `load`."""
        model = cls.load(config.path)
        if config.rope_scaling is None:
            return model
        kind, factor = parse_rope_scaling(config.rope_scaling)
        return replace(model, rope=replace(model.rope, kind=kind, factor=factor))

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read `config.json` and `generation_config.json`. Raises CheckpointError, UnsupportedModelError."""
        config = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        eos = read_json(generation).get("eos_token_id") if generation.exists() else None
        try:
            return cls.parse(config, eos if eos is not None else config.get("eos_token_id"))
        except KeyError as error:
            raise CheckpointError(f"{folder / 'config.json'} lacks {error.args[0]}") from None
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / 'config.json'} has a value of the wrong kind: {error}"
            ) from None

    @classmethod
    def parse(cls, config: Mapping[str, Any], eos: int | list[int] | None) -> "ModelConfig":
        """Read a decoded config.json. Raises KeyError for a missing entry and UnsupportedModelError."""
        architecture = (config.get("architectures") or ["none"])[0]
        family = FAMILIES.get(architecture)
        if family is None:
            raise UnsupportedModelError(
                f"architecture {architecture} is not supported; known are {', '.join(sorted(FAMILIES))}"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(f"activation {config['hidden_act']} is not supported, only silu")
        if config.get("quantization_config"):
            raise UnsupportedModelError(
                "quantized checkpoints are not supported; convert it to bfloat16 first"
            )
        num_heads = int(config["num_attention_heads"])
        return cls(
            architecture=architecture,
            family=family,
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // num_heads),
            norm_eps=float(config["rms_norm_eps"]),
            rope=_parse_rope(config, family),
            qkv_bias=bool(config.get(family.qkv_bias_key)),
            out_bias=bool(config.get(family.out_bias_key)),
            mlp_bias=bool(family.mlp_bias_key and config.get(family.mlp_bias_key)),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            dtype=_parse_dtype(config),
            eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How to run a model. Raises ConfigError for a value out of range."""

    #: Folder with config.json, safetensors and, unless only token ids are used, a tokenizer.
    path: Path
    #: auto is the checkpoint's own, or bfloat16 where the device is slow at it.
    dtype: DTypeName = "auto"
    device: DeviceName = "cpu"
    #: What the decoder's projections become while they are loaded; the device says what it can multiply.
    quantization: Quantization = "none"
    #: Processes that share the model, each with a slice of the weights and of the cache.
    tensor_parallel_size: int = 1
    #: Longest prompt plus answer, in tokens; None is the model's own limit, or what the cache holds if less.
    max_model_len: int | None = None
    #: `kind:factor` in place of the checkpoint's rope scaling: `dynamic:2.0`, `linear:4`, or `default`.
    rope_scaling: str | None = None
    #: paged: the KV cache in blocks. flash: each sequence has one contiguous stretch of max_model_len tokens.
    attention: AttentionMode = "paged"
    #: Tokens per block of the paged KV cache; None is what the device is best at: 32, on npu 128.
    block_size: int = None  # type: ignore[assignment]
    #: Whether prompts share the blocks of what they begin with; None is yes, where attention is paged.
    prefix_caching: bool | None = None
    #: Bytes of KV cache on each rank; None takes what max_num_seqs sequences of full length need,
    #: but at most the device's spare memory.
    kv_cache_bytes: int | None = None
    #: Sequences that run at the same time.
    max_num_seqs: int = 128
    #: Tokens of one step: decoded ones plus chunks of prompts.
    max_step_tokens: int = 2048
    #: Whether a step is planned while the one before it is computed; None is yes where the device computes
    #: behind the host. A sequence's end is then seen a step late.
    overlap: bool | None = None
    #: Read config.json alone and make the weights up: for measuring without a download.
    random_weights: bool = False
    #: Port of the ranks' rendezvous on 127.0.0.1; None takes a free one.
    master_port: int | None = None
    #: Threads of each rank on CPU; None divides the CPUs of this process among the ranks.
    num_threads: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        for name, value, allowed in (
            ("dtype", self.dtype, get_args(DTypeName)),
            ("device", self.device, get_args(DeviceName)),
            ("attention", self.attention, get_args(AttentionMode)),
            ("quantization", self.quantization, get_args(Quantization)),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        object.__setattr__(self, "block_size", _block_size(self.block_size, self.device))
        for name in ("tensor_parallel_size", "block_size", "max_num_seqs", "max_step_tokens"):
            _require_positive(name, getattr(self, name))
        for name in ("max_model_len", "kv_cache_bytes", "master_port", "num_threads"):
            if getattr(self, name) is not None:
                _require_positive(name, getattr(self, name))
        if self.rope_scaling is not None:
            parse_rope_scaling(self.rope_scaling)
        if self.attention == "flash" and self.prefix_caching:
            raise ConfigError("prefix_caching needs attention paged: contiguous caches share nothing")
        if self.device == "npu" and self.attention == "paged" and self.block_size not in (128, 256, 384, 512):
            raise ConfigError(
                f"on npu, block_size must be 128, 256, 384 or 512, not {self.block_size}: 128 is the best"
            )
        if self.max_step_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_step_tokens ({self.max_step_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence decodes one token a step"
            )

    @property
    def shares_prefixes(self) -> bool:
        """Whether sequences may hold the same block."""
        return self.attention == "paged" and self.prefix_caching is not False


def _block_size(asked: int | None, device: DeviceName) -> int:
    return _BLOCK_SIZES[device] if asked is None else asked


def parse_rope_scaling(text: str) -> tuple[RopeKind, float]:
    """`dynamic:2.0` → its kind and factor. Raises ConfigError."""
    kind, _, number = text.partition(":")
    try:
        factor = float(number or "1")
    except ValueError:
        factor = math.nan
    if kind not in get_args(RopeKind) or not 1 <= factor < math.inf or (kind == "linear" and not number):
        raise ConfigError(
            f"rope_scaling must be default, linear:FACTOR or dynamic:FACTOR with a factor >= 1, not {text!r}"
        )
    return kind, factor  # type: ignore[return-value]


def _require_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, not {value!r}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises CheckpointError where it is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"can not read {path}: {error.strerror}; is this a model folder?") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _parse_rope(config: Mapping[str, Any], family: Family) -> Rope:
    rope = Rope(max_position=int(config["max_position_embeddings"]), **family.read_rope(config))
    if rope.kind not in ("default", "linear", "dynamic"):
        raise UnsupportedModelError(
            f"rope type {rope.kind!r} is not supported; known are default, linear, dynamic"
        )
    return rope


def _parse_dtype(config: Mapping[str, Any]) -> DTypeName:
    """The checkpoint's dtype under either of the names that transformers has used."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in ("bfloat16", "float16", "float32"):
        raise UnsupportedModelError(f"checkpoint dtype {name} is not supported")
    return name  # type: ignore[return-value]

"""Every setting of Longhaul, in one place: environment variables `LONGHAUL_*`, `.env`, or a secrets folder.

Owns names, defaults and their checks. Never connects to anything.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from jobs.errors import SettingsError

_SECRETS = Path("/run/secrets")

#: What chat models leave at the end of an answer; everything from the first of them on is cut.
END_MARKERS = ("<|im_end|>", "<eoa>", "</s>", "[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]")


class Settings(BaseSettings):
    """One process's settings; a field `x` is read from `LONGHAUL_X` or a secret file `longhaul_x`."""

    model_config = SettingsConfigDict(
        env_prefix="LONGHAUL_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        secrets_dir=_SECRETS if _SECRETS.is_dir() else None,
    )

    # Where things are
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    #: For `rediss://`: the authority that signed the server's certificate, where it is not the system's own.
    redis_ca_file: Path | None = None
    #: Our own certificate and its key, for a server that asks for one.
    redis_cert_file: Path | None = None
    redis_key_file: Path | None = None
    redis_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.{}-]{1,64}$")] = "longhaul"
    store_url: str = "file://./longhaul-store"
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    #: Where `--local` jobs keep their objects and logs.
    local_dir: Path = Path(".longhaul")

    # Submission
    shard_lines: Annotated[int, Field(ge=1)] = 256
    shard_bytes: Annotated[int, Field(ge=1)] = 4 * 1024 * 1024
    max_line_bytes: Annotated[int, Field(ge=1)] = 8 * 1024 * 1024
    #: Shards of one model that wait in its queue beyond those being worked on.
    backlog: Annotated[int, Field(ge=1)] = 16
    #: Days after its end that Redis remembers a job; the store keeps it.
    remember_days: Annotated[float, Field(gt=0)] = 30.0

    # A worker
    model: Path | None = None
    #: The name under which jobs ask for the model; the folder's name if unset.
    model_name: str | None = None
    #: Devices, one engine per group: `cpu:0-1`, `npu:0,1,2,3;npu:4,5,6,7`; `echo:0` answers without a model.
    device_groups: str = "cpu:0"
    #: A file of variables that tune the devices' libraries, as those in ops/profiles; what is set stays.
    profile: Path | None = None
    #: Where the ranks of a group meet: the first of the range plus the group's place, or the next free.
    master_ports: Annotated[str, Field(pattern=r"^\d{1,5}-\d{1,5}$")] = "20000-20050"
    #: Ranks of a CPU group; an accelerator group has one rank per device.
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    #: int8 weights on NPUs: w8a16, or w8a8, which makes each token's activations int8 as well.
    quantization: Literal["none", "w8a16", "w8a8"] = "none"
    max_model_len: Annotated[int, Field(ge=1)] | None = None
    #: In place of the checkpoint's own: `dynamic:2.0`, `linear:4` or `default`.
    rope_scaling: str | None = None
    attention: Literal["paged", "flash"] = "paged"
    block_size: Annotated[int, Field(ge=1)] | None = None
    #: Whether prompts share the cache of what they begin with; they do unless attention is flash.
    prefix_caching: bool | None = None
    kv_cache_bytes: Annotated[int, Field(ge=1)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    max_step_tokens: Annotated[int, Field(ge=1)] | None = None
    #: Tokens a line may generate where neither it, its job nor the model says.
    max_tokens: Annotated[int, Field(ge=1)] = 512
    shards_in_flight: Annotated[int, Field(ge=1, le=64)] = 2
    lease_seconds: Annotated[float, Field(ge=1)] = 60.0
    reconcile_seconds: Annotated[float, Field(gt=0)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0)] = 120.0
    engine_start_seconds: Annotated[float, Field(gt=0)] = 600.0
    #: An engine that has requests and makes no step for so long is killed and started again.
    engine_hang_seconds: Annotated[float, Field(gt=0)] = 300.0
    #: What an engine of the kind `echo` takes for a step, in which each of max_num_seqs lines gets a token.
    echo_step_seconds: Annotated[float, Field(ge=0)] = 0.0
    #: Prometheus: each group's metrics are at this port plus its place in LONGHAUL_DEVICE_GROUPS; 0 is off.
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    metrics_host: str = "127.0.0.1"
    #: Times a shard is begun without one more finished line before its lines are tried apart.
    max_attempts: Annotated[int, Field(ge=1)] = 3

    # Post-processing
    end_markers: tuple[str, ...] = END_MARKERS
    trim: bool = True

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "json"
    #: Whether logs may hold what dialogues say; without it they have ids, counts and codes alone.
    log_text: bool = False

    @property
    def served_name(self) -> str | None:
        """The name that jobs ask for the model by, the folder's where none is given; None without a model."""
        if self.model_name is not None or self.model is None:
            return self.model_name
        return self.model.resolve().name

    def served_model(self) -> tuple[Path, str]:
        """The model's folder and the name that jobs ask for it by; `SettingsError` where there is none."""
        if self.model is None or self.served_name is None:
            raise SettingsError("no model: set LONGHAUL_MODEL to a checkpoint folder")
        return self.model, self.served_name


def load_settings(**overrides: object) -> Settings:
    """Read the settings, with `overrides` before the environment; `SettingsError` names what is wrong."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        wrong = "; ".join(f"LONGHAUL_{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors())
        raise SettingsError(wrong) from error

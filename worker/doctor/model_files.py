"""The checkpoint's files: all there, whole, and such as the engine takes. Reads headers, never a weight."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jobs.records import checked_model_name
from model.chat import Chat
from model.config import ModelConfig
from model.errors import TokenizerError
from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject
from worker.matrix import check_groups, served_name
from worker.sampling import model_sampling

_INDEX = "model.safetensors.index.json"
_GREETING = ({"role": "user", "content": "hello"},)


def config(subject: Subject) -> Verdict:
    """config.json describes a model that the engine has."""
    name = checked_model_name(served_name(subject.groups, subject.settings))
    if _echoes(subject):
        return ok(f"{name}: echo answers without a model")
    read = ModelConfig.load(subject.checkpoint)
    return ok(f"{name}: {read.architecture}, {read.num_layers} layers, {read.dtype}")


def weights(subject: Subject) -> Verdict | None:
    """Every file is there with all its bytes, and has the tensors that the index says."""
    if _echoes(subject):
        return None
    folder = subject.checkpoint
    named = _index(folder)
    if named is None:
        return fail(f"{folder / _INDEX} is no index of safetensors", "copy it again")
    files = sorted({folder / name for name in named.values()} or folder.glob("*.safetensors"))
    if not files:
        return fail(f"{folder} has no .safetensors", "convert the checkpoint with `model convert`")
    held: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="np") as opened:
                held.update(opened.keys())
        except FileNotFoundError:
            return fail(f"{file} is missing, though {_INDEX} names it", "copy it again")
        except (SafetensorError, OSError) as error:
            return fail(f"{file} is truncated or damaged: {error}", "copy it again")
    lacking = sorted(named.keys() - held)
    if lacking:
        return fail(f"no tensor {lacking[0]}, though {_INDEX} names it", "copy the checkpoint again")
    size = sum(file.stat().st_size for file in files)
    return ok(f"{len(held)} tensors, {size / 2**30:,.2f} GiB in {len(files)} .safetensors")


def tokenizer(subject: Subject) -> Verdict | None:
    """Dialogues can become prompts."""
    if _echoes(subject):
        return None
    chat = Chat.load(subject.checkpoint)
    entries, rows = chat.tokenizer.vocab_size, ModelConfig.load(subject.checkpoint).vocab_size
    if entries > rows:
        return fail(
            f"{entries} entries, and the model has {rows}", "it is another model's: copy this one's tokenizer"
        )
    try:
        chat.encode(_GREETING)
    except TokenizerError as error:
        return warn(str(error), "a base model answers lines with a prompt, and none with messages")
    return ok(f"{entries} entries, and a chat template")


def generation_config(subject: Subject) -> Verdict | None:
    """What the checkpoint asks for by itself is something that the engine does."""
    if _echoes(subject):
        return None
    sampling = model_sampling(subject.checkpoint)
    if sampling.temperature == 0.0:
        return ok("greedy")
    return ok(f"temperature {sampling.temperature}, top_p {sampling.top_p}, top_k {sampling.top_k}")


def matrix(subject: Subject) -> Verdict | None:
    """The groups are such as the InternLM models' feature matrix has on Ascend chips."""
    npus = subject.of_kind("npu")
    if not npus:
        return None
    check_groups(subject.groups, subject.settings, subject.profile.chip)
    return ok(f"allows {', '.join(map(str, npus))}")


def _echoes(subject: Subject) -> bool:
    return not subject.of_kind("cpu", "cuda", "npu")


def _index(folder: Path) -> dict[str, str] | None:
    """The file of each tensor; empty where there is no index, None where it is damaged."""
    path = folder / _INDEX
    if not path.exists():
        return {}
    try:
        named: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {str(tensor): str(file) for tensor, file in named.items()} if isinstance(named, dict) else None

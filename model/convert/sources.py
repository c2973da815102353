"""Opens the folders that transformers writes: config.json with `.safetensors` or `.bin`, whole or sharded.

Owns finding and reading a source's files. `.bin` files are read with `weights_only`: nothing in them is run.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.convert.checkpoint import Checkpoint, LazyTensor
from model.errors import CheckpointError, ConvertError

#: What goes along with the weights, where the source has it.
_COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder or a `.gguf` file. Raises CheckpointError and UnsupportedModelError."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(f"{path} is neither a folder nor a .gguf file")
        return _open_gguf(path)
    if (path / "config.json").is_file():
        return Checkpoint(
            config=_json(path / "config.json"), tensors=dict(_tensors(path)), files=_companions(path)
        )
    match sorted(path.glob("*.gguf")):
        case [file]:
            return _open_gguf(file)
        case []:
            raise CheckpointError(f"{path} holds neither config.json nor a .gguf file")
        case several:
            raise CheckpointError(f"{path} holds {len(several)} .gguf files: name the one to convert")


def _open_gguf(file: Path) -> Checkpoint:
    try:
        from model.convert import gguf  # noqa: PLC0415 - only this format needs the package
    except ModuleNotFoundError as error:
        raise ConvertError("reading a .gguf file needs the Python package gguf: pip install gguf") from error
    return gguf.open_checkpoint(file)


def _tensors(folder: Path) -> Iterator[tuple[str, LazyTensor]]:
    found = False
    for stem, suffix, read in (("model", "safetensors", _safetensors), ("pytorch_model", "bin", _bin)):
        for file in _files(folder, stem, suffix):
            found = True
            yield from read(file)
        if found:
            return
    raise CheckpointError(f"{folder} holds no .safetensors or pytorch_model.bin weights")


def _files(folder: Path, stem: str, suffix: str) -> list[Path]:
    """The index's files, else the single file, else all of the suffix."""
    index = folder / f"{stem}.{suffix}.index.json"
    if index.is_file():
        names = set(_json(index).get("weight_map", {}).values())
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{index} names {name}, which is not in the folder")
        return [folder / name for name in sorted(names)]
    single = folder / f"{stem}.{suffix}"
    return [single] if single.is_file() else sorted(folder.glob(f"{stem}*.{suffix}"))


def _safetensors(file: Path) -> Iterator[tuple[str, LazyTensor]]:
    try:
        handle: Any = safe_open(file, framework="pt")
        for name in handle.keys():  # noqa: SIM118 - not a mapping
            view = handle.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{file}: {name} is {view.get_dtype()}; quantized weights can not be converted"
                )
            yield (
                name,
                LazyTensor(
                    shape=tuple(view.get_shape()), dtype=_DTYPES[view.get_dtype()], read=_reader(handle, name)
                ),
            )
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or truncated: {error}") from error


def _reader(handle: Any, name: str) -> Callable[[], torch.Tensor]:
    # Read twice (a tied head), the library gives the same memory twice.
    return lambda: handle.get_tensor(name).clone()


def _bin(file: Path) -> Iterator[tuple[str, LazyTensor]]:
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 can not be mapped
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{file} is not a plain tensor file, or is damaged: {first_line}") from error
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{file}: {name} is not a tensor")
        yield name, LazyTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=tensor.clone)


def _companions(folder: Path) -> dict[str, bytes]:
    files = {name: (folder / name).read_bytes() for name in _COMPANIONS if (folder / name).is_file()}
    if "tokenizer_config.json" in files:
        settings = _json(folder / "tokenizer_config.json")
        # Remote code does not go along, so neither does the pointer to it.
        settings.pop("auto_map", None)
        files["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False).encode()
    return files


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return value

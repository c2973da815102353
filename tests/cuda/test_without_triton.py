"""What a machine says that lacks triton or a GPU, and that the CPU's engine needs neither."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed: the other tests run")
def test_the_kernels() -> None:
    pytest.skip("the package triton can not be imported: `make test-cuda` installs it where it can be had")


def run(script: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_cpus_engine_does_not_import_triton() -> None:
    script = (
        f"{ABSENT}\n"
        "from model import LLM, SamplingParams\n"
        "from tests.golden import reference\n"
        "with LLM(reference.load('v2_gqa').folder, num_threads=1) as llm:\n"
        "    print(len(llm.generate([[1, 2]], SamplingParams(max_tokens=2))[0].token_ids))\n"
    )
    assert run(script) in "12"


def refusal(before: str) -> str:
    return run(
        f"{before}\n"
        "from model import LLM\n"
        "from model.errors import ModelError\n"
        "from tests.golden import reference\n"
        "try:\n"
        "    LLM(reference.load('v2_gqa').folder, device='cuda', num_threads=1)\n"
        "except ModelError as error:\n"
        "    print(error.code, error)\n"
    )


def test_triton_is_asked_for_where_it_is_missing() -> None:
    said = refusal(ABSENT)
    assert said.startswith("invalid_settings device cuda needs a GPU and the package triton")
    assert "use device cpu" in said


@pytest.mark.skipif(find_spec("triton") is None, reason="without triton, that is what is missing first")
def test_a_gpu_is_asked_for_where_there_is_none() -> None:
    said = refusal("import torch; torch.cuda.is_available = lambda: False")
    assert said.startswith("invalid_settings device cuda: torch ")
    assert "finds no GPU" in said
    assert "use device cpu" in said

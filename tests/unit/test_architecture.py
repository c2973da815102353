"""The house keeps its rules: who may import whom, what needs no torch, how long a file is, what none says."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobs", "producer", "worker", "model")

MAX_LINES = 400
#: Python files that may be longer, each with the reason. Reviewed whenever a line is added here.
LONGER = {
    "tests/integration/test_convert.py": "one command: a test for each of its sources, options and failures",
}

#: What `pip install longhaul` does not bring: neither a producer nor `jobs` may need it.
WORKER_ONLY = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "tokenizers",
    "sentencepiece",
    "jinja2",
    "prometheus_client",
)

#: Written so that no pattern matches itself.
FORBIDDEN = {
    "a path of one machine": r"/wor[k]/|/roo[t]/|/home/(?!longhaul\b)\w|/Users[/]",
    "a package registry": r"pypi\.or[g]|pythonhosted\.or[g]|\.npm[j]s\.|\.pytorch\.or[g]/whl|debian\.or[g]",
    "a word of the workshop": r"\.librar[y]\b|\bCE[O]\b",
    "unfinished work": r"\bTOD[O]\b|\bFIXM[E]\b",
}

IMPORT_WITHOUT = """
import importlib, pkgutil, sys
from importlib.util import find_spec
needs_triton = () if find_spec("triton") else ("model.devices.cuda",)
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not there", name=name)
sys.meta_path.insert(0, Absent())
for name in {names!r}:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        origin = found.module_finder.find_spec(found.name).origin
        if found.name.startswith(needs_triton):
            continue
        if origin.endswith(".py") and not found.name.endswith(".__main__"):  # not the CPU's kernels
            importlib.import_module(found.name)
"""


def tracked_files() -> list[Path]:
    """Every file that git keeps; all text files that are not hidden where there is no git."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return [path for path in paths if path.is_file()]


def package_modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def import_all(names: tuple[str, ...], *, absent: tuple[str, ...]) -> None:
    code = IMPORT_WITHOUT.format(names=names, absent=set(absent))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_import_contracts_hold() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True) == 0


def test_a_broken_contract_would_be_seen(tmp_path: Path) -> None:
    config = tmp_path / "contracts.toml"
    config.write_text(
        '[tool.importlinter]\nroot_packages = ["producer", "jobs"]\n[[tool.importlinter.contracts]]\n'
        'name = "false"\ntype = "forbidden"\nsource_modules = ["producer"]\nforbidden_modules = ["jobs"]\n'
    )
    assert lint_imports(config_filename=str(config), no_cache=True, no_logo=True) == 1


def test_a_producer_needs_nothing_of_a_worker() -> None:
    import_all(("jobs", "producer"), absent=(*WORKER_ONLY, "worker"))


@pytest.mark.parametrize("name", ["model.chat", "model.tokenizer"])
def test_chat_templates_need_no_torch(name: str) -> None:
    import_all((name,), absent=("torch", "transformers"))


def test_the_engine_runs_without_the_fleet() -> None:
    import_all(("model",), absent=("jobs", "producer", "worker", "celery", "kombu", "redis", "obstore"))


def test_a_missing_package_would_be_seen() -> None:
    with pytest.raises(AssertionError, match="msgspec is not there"):
        import_all(("jobs",), absent=("msgspec",))


def test_python_files_are_short_or_have_a_reason() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked_files()
        if path.suffix == ".py"
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert too_long.keys() == LONGER.keys()


def test_every_module_says_what_it_owns() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in package_modules()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        lines = data.decode("utf-8", "replace").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(lines, start=1)
            if pattern.search(line)
        ]
    assert found == []

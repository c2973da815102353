"""The environment of a simulated NPU: the real torch_npu, and stand-ins for the CANN libraries that it loads.

It is made once, in a folder that git ignores, and again when a source changes. No process loads torch_npu
that did not ask for this environment. Whatever runs in it is simulated: it says nothing of an NPU's numerics
or speed.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests import devices as tested

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".longhaul" / "npu"
PACKAGES = FOLDER / "packages"
LIBRARIES = FOLDER / "lib"

TORCH_NPU = "2.13.0"
#: The chips that the tests run as, by the name that CANN gives them.
CHIPS = {"910B": "Ascend910B4", "310P": "Ascend310P3"}

#: Libraries that must be there by name; all they define is in the first.
_EMPTY = ("acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel", "nnopbase", "runtime", "ascend_hal")
#: Names of C functions of CANN in torch_npu's binaries, called directly or looked up by name.
_FUNCTION = re.compile(rb"\0((?:acl[a-z]*[A-Z]|Hccl|Hcomm|Msprof|rt[A-Z]|mstx|hal[A-Z]|dcmi)\w*)(?=[\0@])")
_OPERATION = re.compile(r"aclnn[A-Z]\w*")


class Unavailable(Exception):  # noqa: N818
    """Why there can be no simulated NPU here."""


def variables(chip: str, *, emulate: bool = True, devices: int = 2) -> dict[str, str]:
    """The environment variables of a process with simulated NPUs of this kind. Raises Unavailable.

    emulate: operations are computed by torch on the host, after the real schema and Meta kernel took the
    call. Otherwise they go all the way down to CANN's functions, which compute nothing.
    """
    prepare()
    # Without a CANN to be found, torch_npu warns; with half of one, it refuses to be imported.
    others = {name: value for name, value in os.environ.items() if not name.startswith("ASCEND_")}
    return {
        **others,
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(LIBRARIES), os.environ.get("LD_LIBRARY_PATH")))),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, PACKAGES, HERE / "simulation"))),
        tested.SIMULATED: "npu",
        "SIM_NPU_COUNT": str(devices),
        "SIM_NPU_SOC": CHIPS[chip],
        "SIM_NPU_EMULATE": "1" if emulate else "",
        "OMP_NUM_THREADS": "1",
    }


def prepare() -> None:
    """Install and build what is not there yet. Raises Unavailable."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    ready = FOLDER / "ready"
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if ready.exists() and ready.read_text() == _version():
            return
        ready.unlink(missing_ok=True)
        _require_platform()
        _install()
        _build()
        ready.write_text(_version())


def _version() -> str:
    sources = [Path(__file__), *sorted((HERE / "cann").glob("*.cpp"))]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources))
    return f"{_wheel()}, {digest.hexdigest()}\n"


def _wheel() -> str:
    return f"torch_npu {TORCH_NPU}, torch {torch.__version__}, Python {sys.version_info[:2]}"


def _require_platform() -> None:
    if torch.__version__.partition("+")[0] != TORCH_NPU:
        raise Unavailable(f"torch_npu {TORCH_NPU} is for torch {TORCH_NPU}, and this is {torch.__version__}")
    if shutil.which("g++") is None:
        raise Unavailable("no g++ to build the stand-ins for the CANN libraries with")


def _install() -> None:
    """The wheel alone, in a folder of its own: beside torch it would be loaded by every `import torch`."""
    installed = PACKAGES / "installed"
    if installed.exists() and installed.read_text() == _wheel():
        return
    shutil.rmtree(PACKAGES, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-input", "install"]
    command += ["--no-deps", "--only-binary", ":all:", "--target", str(PACKAGES), f"torch-npu=={TORCH_NPU}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise Unavailable(f"the wheel torch_npu {TORCH_NPU} can not be had: {reason}")
    installed.write_text(_wheel())


def _build() -> None:
    """One library of each name. Functions that our sources do not define do nothing and return 0."""
    shutil.rmtree(LIBRARIES, ignore_errors=True)
    LIBRARIES.mkdir()
    binaries = [*(PACKAGES / "torch_npu" / "lib").glob("*.so"), *(PACKAGES / "torch_npu").glob("_C*.so")]
    names = {name.decode() for path in binaries for name in _FUNCTION.findall(path.read_bytes())}
    operations = {name.removesuffix("GetWorkspaceSize") for name in names if _OPERATION.fullmatch(name)}
    others = sorted(name for name in names if not _OPERATION.fullmatch(name))
    rest = LIBRARIES / "rest.cpp"
    rest.write_text(
        'extern "C" {\n'
        + "".join(f"__attribute__((weak)) long {name}(...) {{ return 0; }}\n" for name in others)
        + "}\n"
    )
    opapi = LIBRARIES / "opapi.cpp"
    opapi.write_text(
        'extern "C" {\nvoid sim_trace(const char*, const char*);\n'
        + "".join(
            f"int {name}GetWorkspaceSize(...) {{ return 0; }}\n"
            f'int {name}(...) {{ sim_trace("aclnn", "{name.removeprefix("aclnn")}"); return 0; }}\n'
            for name in sorted(operations)
        )
        + "}\n"
    )
    _compile("ascendcl", HERE / "cann" / "ascendcl.cpp", rest)
    _compile("opapi", opapi, needs=("ascendcl",), optimize="-O0")
    _compile("hccl", HERE / "cann" / "hccl.cpp", needs=("ascendcl",))
    _compile("atb", HERE / "cann" / "atb.cpp", needs=("ascendcl",))
    empty = LIBRARIES / "empty.cpp"
    empty.write_text("")
    for name in _EMPTY:
        _compile(name, empty, needs=("ascendcl",))


def _compile(name: str, *sources: Path, needs: tuple[str, ...] = (), optimize: str = "-O1") -> None:
    command = ["g++", "-std=c++17", optimize, "-fPIC", "-shared", f"-I{PACKAGES / 'torch_npu' / 'include'}"]
    command += [*map(str, sources), "-o", str(LIBRARIES / f"lib{name}.so"), f"-Wl,-soname,lib{name}.so"]
    command += ["-Wl,--no-as-needed", f"-L{LIBRARIES}", *(f"-l{other}" for other in needs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise Unavailable(f"g++ can not build the stand-in lib{name}.so: {done.stderr.strip()[-500:]}")

"""Builds the CPU's kernels, one library per instruction set. All else about the package is in pyproject.toml.

Each is optional: what the compiler at hand can not build is left out; without any, the engine uses torch.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("model/devices/cpu_kernels")
FLAGS = ["-std=c++17", "-O3", "-g0", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"]
# GCC 12 takes the undefined inputs of its own intrinsics for a mistake.
FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in {"x86_64", "amd64"}:
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512bf16": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma"],
    }


class BuildEach(build_ext):
    """The same sources go into each library, so that each needs a folder of its own for what it compiles."""

    def copy_extensions_to_source(self) -> None:
        """Replace, rather than overwrite, what an editable install has in the source folder."""
        for ext in self.extensions:
            (FOLDER / Path(self.get_ext_filename(ext.name)).name).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        """Compile and link one library."""
        # A library that a running engine has mapped stays whole: a new file takes its place.
        Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        shared = self.build_temp
        self.build_temp = f"{shared}/{ext.name}"
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = shared


setup(
    cmdclass={"build_ext": BuildEach},
    ext_modules=[
        Extension(
            f"model.devices.cpu_kernels._{name}",
            sources=sorted(map(str, FOLDER.glob("*.cpp"))),
            depends=sorted(map(str, FOLDER.glob("*.h"))),
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
    ],
)

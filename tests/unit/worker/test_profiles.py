"""Device profiles: how a file is read, which lines are refused, and what the files in ops/profiles hold."""

import itertools
import re
from pathlib import Path

import pytest

from jobs.errors import SettingsError
from worker.profiles import load_profile

PROFILES = Path(__file__).parents[3] / "ops" / "profiles"

#: What MindIE-LLM's scripts for the InternLM models export, by mode of attention.
BOTH = {
    "ATB_LAYER_INTERNAL_TENSOR_REUSE": "1",
    "INF_NAN_MODE_ENABLE": "0",
    "ATB_OPERATION_EXECUTE_ASYNC": "1",
    "TASK_QUEUE_ENABLE": "1",
    "ATB_CONVERT_NCHW_TO_ND": "1",
}
PAGED = BOTH | {"ATB_WORKSPACE_MEM_ALLOC_GLOBAL": "1"}
FLASH = BOTH | {
    "HCCL_BUFFSIZE": "120",
    "HCCL_WHITELIST_DISABLE": "1",
    "ATB_WORKSPACE_MEM_ALLOC_GLOBAL": "0",
    "ATB_LAUNCH_KERNEL_WITH_TILING": "0",
    "ATB_OPSRUNNER_KERNEL_CACHE_GLOABL_COUNT": "1",
    "ATB_OPSRUNNER_KERNEL_CACHE_LOCAL_COUNT": "0",
}


@pytest.fixture(autouse=True)
def _no_chip_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGHAUL_CHIP", raising=False)


def written(folder: Path, text: str) -> Path:
    path = folder / "chip.env"
    path.write_text(text)
    return path


def test_comments_blank_lines_and_quotes(tmp_path: Path) -> None:
    text = "# of a chip\n\nLONGHAUL_CHIP=300i-duo\n  A = 1 \nB='two words'\nC=\"x=y # z\"\nD=\nE=it's\n"
    profile = load_profile(written(tmp_path, text))
    assert profile.chip == "300i-duo"
    assert profile.variables == {"A": "1", "B": "two words", "C": "x=y # z", "D": "", "E": "it's"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no assignment", "write NAME=VALUE"),
        ("export A=1", "write NAME=VALUE"),
        ("1A=1", "write NAME=VALUE"),
        ("A=2", "A was set above"),
        ("ASCEND_RT_VISIBLE_DEVICES=0", "each device group has its own"),
        ("MASTER_PORT=20000", "each device group has its own"),
        ("HCCL_IF_BASE_PORT=1", "each device group has its own"),
        ("LONGHAUL_DTYPE=float16", "settings of Longhaul belong into the environment"),
    ],
)
def test_a_line_that_can_not_be_is_named_with_its_file(tmp_path: Path, line: str, reason: str) -> None:
    path = written(tmp_path, f"A=1\n\n{line}\n")
    with pytest.raises(SettingsError, match=re.escape(f"{path}, line 3: {line!r}: ") + f".*{reason}"):
        load_profile(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"LONGHAUL_PROFILE: .*absent\.env can not be read"):
        load_profile(tmp_path / "absent.env")


def test_without_a_file_there_is_nothing() -> None:
    profile = load_profile(None)
    assert (profile.variables, profile.chip) == ({}, None)


def test_the_environment_names_the_chip_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_CHIP", "800i-a2")
    assert load_profile(written(tmp_path, "LONGHAUL_CHIP=300i-duo\n")).chip == "800i-a2"
    assert load_profile(None).chip == "800i-a2"


def test_an_unknown_chip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'300i': known are 800i-a2, 300i-duo"):
        load_profile(written(tmp_path, "LONGHAUL_CHIP=300i\n"))


@pytest.mark.parametrize("chip", ["800i-a2", "300i-duo"])
@pytest.mark.parametrize(("suffix", "expected"), [("", PAGED), ("-flash", FLASH)])
def test_the_profiles_hold_what_the_scripts_set(chip: str, suffix: str, expected: dict[str, str]) -> None:
    profile = load_profile(PROFILES / f"ascend-{chip}{suffix}.env")
    assert profile.chip == chip
    assert profile.variables.items() >= expected.items()
    of_atb = {name for name in profile.variables if name.startswith("ATB_")}
    assert of_atb == {name for name in expected if name.startswith("ATB_")}


def test_every_variable_of_a_profile_is_explained() -> None:
    files = sorted(PROFILES.glob("*.env"))
    assert len(files) == 4
    for file in files:
        lines = file.read_text().splitlines()
        for above, line in itertools.pairwise(lines):
            if line and not line.startswith("#"):
                assert above.startswith("# "), f"{file.name}: {line}"

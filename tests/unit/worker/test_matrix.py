"""The feature matrix: which numbers of devices a model and a chip allow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.errors import SettingsError
from jobs.settings import Settings
from model import shapes
from model.errors import CheckpointError
from worker.errors import DeviceGroupError
from worker.groups import parse_groups
from worker.matrix import check_groups, served_name

Check = Callable[..., None]
#: World sizes of the InternLM models on Ascend chips, as MindIE-LLM lists them.
WORLD_SIZES = {
    "internlm-20b": {2, 4, 8},
    "internlm2-7b": {1, 2, 4, 8},
    "internlm2-20b": {2, 4, 8},
    "internlm2_5-7b": {1, 2, 4, 8},
}


@pytest.fixture
def check(tmp_path: Path) -> Check:
    def check(groups: str, shape: str = "internlm2-7b", chip: str | None = None, **more: object) -> None:
        folder = shapes.write(shape, tmp_path / shape)
        settings = Settings(model=folder, device_groups=groups, **more)  # type: ignore[arg-type]
        check_groups(parse_groups(groups), settings, chip)

    return check


@pytest.mark.parametrize("shape", WORLD_SIZES)
@pytest.mark.parametrize("world", range(1, 9))
def test_world_sizes_are_those_of_the_model(check: Check, shape: str, world: int) -> None:
    groups = f"npu:0-{world - 1}"
    if world in WORLD_SIZES[shape]:
        check(groups, shape)
        return
    listed = ", ".join(map(str, sorted(WORLD_SIZES[shape])))
    with pytest.raises(DeviceGroupError, match=f"runs on {listed} NPUs, not on {world}: name so many"):
        check(groups, shape)


def test_every_group_is_looked_at(check: Check) -> None:
    with pytest.raises(DeviceGroupError, match=r"npu:2,3,4: .* not on 3"):
        check("npu:0,1;npu:2-4", "internlm2-20b")


@pytest.mark.parametrize("shape", ["internlm2-1_8b", "internlm3-8b", "internlm-7b"])
def test_other_models_are_the_engines_to_judge(check: Check, shape: str) -> None:
    check("npu:0,1,2", shape)


def test_other_devices_are_the_engines_to_judge(check: Check) -> None:
    check("cpu:0-2;cuda:0-2", "internlm2-20b", tensor_parallel_size=3)


def test_a_300i_duo_needs_both_cores_of_a_card(check: Check) -> None:
    check("npu:0", chip="800i-a2")
    check("npu:0")
    check("npu:0,1;npu:2,3", chip="300i-duo")
    with pytest.raises(
        DeviceGroupError, match="npu:2: a 300I DUO needs two visible cores at least: name both"
    ):
        check("npu:0,1;npu:2", chip="300i-duo")


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_int8_weights_are_for_npus(check: Check, scheme: str) -> None:
    check("npu:0,1", chip="800i-a2", quantization=scheme)
    check("npu:0,1", quantization=scheme)
    check("echo:0", quantization=scheme)
    for group in ("cpu:0", "npu:0,1;cuda:0"):
        with pytest.raises(DeviceGroupError, match=f"LONGHAUL_QUANTIZATION={scheme} is for NPUs"):
            check(group, quantization=scheme)


def test_a_300i_duo_keeps_activations_as_they_are(check: Check) -> None:
    check("npu:0,1", chip="300i-duo", quantization="w8a16")
    with pytest.raises(DeviceGroupError, match=r"300I DUO .* set LONGHAUL_QUANTIZATION to w8a16"):
        check("npu:0,1", chip="300i-duo", quantization="w8a8")


def test_ranks_and_ports_are_looked_at_before_anything_starts(check: Check) -> None:
    with pytest.raises(DeviceGroupError, match="2 ranks need as many CPUs"):
        check("cpu:0", tensor_parallel_size=2)
    with pytest.raises(DeviceGroupError, match="LONGHAUL_MASTER_PORTS"):
        check("cpu:0", master_ports="9-1")
    with pytest.raises(DeviceGroupError, match="2 device groups need as many ports"):
        check("cpu:0;cpu:1", master_ports="20000-20000")


def test_a_model_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    settings = Settings(model=tmp_path / "absent")
    with pytest.raises(CheckpointError, match="absent"):
        check_groups(parse_groups("npu:0"), settings, None)


def test_only_echo_needs_no_model() -> None:
    nothing, named = Settings(), Settings(model_name="m")
    assert served_name(parse_groups("echo:0"), nothing) == "echo"
    assert served_name(parse_groups("echo:0"), named) == "m"
    with pytest.raises(SettingsError, match="no model"):
        served_name(parse_groups("echo:0;cpu:0"), named)

"""Device groups: what can be written, and what a process then finds in its environment."""

import socket

import pytest

from worker.errors import DeviceGroupError
from worker.groups import DeviceGroup, parse_groups


def test_groups_are_read_in_order() -> None:
    assert parse_groups("npu:0,1,2,3; npu:4-7;cuda:0;cpu:0-1") == (
        DeviceGroup(index=0, kind="npu", devices=(0, 1, 2, 3)),
        DeviceGroup(index=1, kind="npu", devices=(4, 5, 6, 7)),
        DeviceGroup(index=2, kind="cuda", devices=(0,)),
        DeviceGroup(index=3, kind="cpu", devices=(0, 1)),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no device group"),
        (" ; ", "no device group"),
        ("gpu:0", "'gpu:0'"),
        ("cpu", "'cpu'"),
        ("npu:0,,1", "'npu:0,,1'"),
        ("cpu:3-1", "'3-1' is empty"),
        ("npu:0,1;npu:1,2", "npu:1 is named twice"),
        ("npu:0,0", "npu:0 is named twice"),
    ],
)
def test_what_can_not_be_read_is_named(text: str, reason: str) -> None:
    with pytest.raises(DeviceGroupError, match=reason):
        parse_groups(text)


def test_accelerators_are_pinned_before_any_library_loads() -> None:
    first, second, gpu = parse_groups("npu:0,1;npu:4,5;cuda:2")
    assert first.environment() == {"ASCEND_RT_VISIBLE_DEVICES": "0,1", "HCCL_IF_BASE_PORT": "60000"}
    assert second.environment() == {"ASCEND_RT_VISIBLE_DEVICES": "4,5", "HCCL_IF_BASE_PORT": "60032"}
    assert gpu.environment() == {"CUDA_VISIBLE_DEVICES": "2"}


def test_ranks_are_devices_and_cpus_are_shared_out() -> None:
    npu, cpu = parse_groups("npu:0,1,2,3;cpu:0-3")
    assert (npu.ranks(1), cpu.ranks(1), cpu.ranks(4)) == (4, 1, 4)
    with pytest.raises(DeviceGroupError, match="5 ranks need as many CPUs"):
        cpu.ranks(5)


def test_the_master_port_is_the_groups_own_unless_it_is_taken() -> None:
    group = DeviceGroup(index=37, kind="npu", devices=(0, 1))
    with socket.socket() as taken:
        if group.master_port() != 20037:
            pytest.skip("another process holds port 20037")
        taken.bind(("127.0.0.1", 20037))
        assert group.master_port() in range(20038, 20051)

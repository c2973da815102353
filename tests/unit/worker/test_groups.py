"""Device groups: what can be written, and what a process then finds in its environment."""

import socket

import pytest

from tests.services import free_port
from worker.errors import DeviceGroupError
from worker.groups import DeviceGroup, parse_groups, parse_ports, port_is_free

PORTS = range(20000, 20051)


def test_groups_are_read_in_order() -> None:
    assert parse_groups("npu:0,1,2,3; npu:4-7;cuda:0;cpu:0-1;echo:0") == (
        DeviceGroup(index=0, of=5, kind="npu", devices=(0, 1, 2, 3)),
        DeviceGroup(index=1, of=5, kind="npu", devices=(4, 5, 6, 7)),
        DeviceGroup(index=2, of=5, kind="cuda", devices=(0,)),
        DeviceGroup(index=3, of=5, kind="cpu", devices=(0, 1)),
        DeviceGroup(index=4, of=5, kind="echo", devices=(0,)),
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
        ("echo:0;echo:0", "echo:0 is named twice"),
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


def test_groups_have_ports_for_hccl_that_no_other_has() -> None:
    taken = [port for group in parse_groups("npu:0,1;npu:2,3;npu:4,5") for port in group.hccl_ports]
    assert len(set(taken)) == len(taken)
    assert min(len(group.hccl_ports) for group in parse_groups("npu:0,1")) >= 16


def test_cpus_get_as_many_threads_and_echo_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    cpu, echo = parse_groups("cpu:0-2;echo:0-2")
    hidden = {"GOMP_SPINCOUNT": "1000", "CUDA_VISIBLE_DEVICES": ""}
    assert cpu.environment() == {"OMP_NUM_THREADS": "3", **hidden}
    assert echo.environment() == {"OMP_NUM_THREADS": "1", **hidden}


def test_a_profile_is_for_accelerators_and_what_is_set_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HCCL_BUFFSIZE", "64")
    monkeypatch.delenv("TASK_QUEUE_ENABLE", raising=False)
    profile = {"HCCL_BUFFSIZE": "120", "TASK_QUEUE_ENABLE": "1"}
    npu, gpu, cpu, echo = parse_groups("npu:0;cuda:0;cpu:0;echo:0")
    for group in (npu, gpu):
        chosen = group.environment(profile)
        assert "HCCL_BUFFSIZE" not in chosen
        assert chosen["TASK_QUEUE_ENABLE"] == "1"
        assert chosen.items() >= group.environment().items()
    for group in (cpu, echo):
        assert group.environment(profile) == group.environment()


def test_ranks_are_devices_and_cpus_are_shared_out() -> None:
    npu, cpu, echo = parse_groups("npu:0,1,2,3;cpu:0-3;echo:0-3")
    assert (npu.ranks(1), cpu.ranks(1), cpu.ranks(4), echo.ranks(4)) == (4, 1, 4, 1)
    with pytest.raises(DeviceGroupError, match="5 ranks need as many CPUs"):
        cpu.ranks(5)


def test_the_master_port_is_the_groups_own_unless_it_is_taken() -> None:
    first = free_port()
    group = DeviceGroup(index=3, of=8, kind="npu", devices=(0, 1))
    ports = range(first - 3, first + 100)
    assert group.master_port(ports) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert not port_is_free(first)
        assert group.master_port(ports) in range(first + 8, first + 100, 8)


def test_no_two_groups_can_choose_the_same_port_whatever_is_taken() -> None:
    groups = parse_groups(";".join(f"npu:{number}" for number in range(7)))
    own = [set(group.master_ports(PORTS)) for group in groups]
    assert [min(ports) for ports in own] == [20000, 20001, 20002, 20003, 20004, 20005, 20006]
    assert set.union(*own) == set(PORTS)
    assert sum(map(len, own)) == len(PORTS)


def test_a_range_in_which_nothing_is_free_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            DeviceGroupError, match=f"no free MASTER_PORT in {port}-{port}.*LONGHAUL_MASTER_PORTS"
        ):
            DeviceGroup(index=0, kind="npu", devices=(0, 1)).master_port(range(port, port + 1))
    with pytest.raises(DeviceGroupError, match="3 device groups need as many ports"):
        parse_groups("npu:0;npu:1;npu:2")[2].master_ports(range(20000, 20002))


def test_a_range_of_ports_has_both_its_ends() -> None:
    assert parse_ports("20000-20050") == PORTS
    assert parse_ports("65535-65535") == range(65535, 65536)


@pytest.mark.parametrize("text", ["20000", "20050-20000", "0-10", "65000-65536", "a-b", "", "1-2-3", "-5"])
def test_what_is_no_range_of_ports_is_named(text: str) -> None:
    with pytest.raises(DeviceGroupError, match="write a range of ports"):
        parse_ports(text)

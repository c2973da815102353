"""The devices that the groups name, and whether the engine can drive them. Never loads a driver."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from model.config import EngineConfig
from worker.doctor.finding import Verdict, fail, ok, warn
from worker.doctor.subject import Subject
from worker.groups import VISIBLE

#: The device files of each kind's driver, and what to do where they lack.
_NODES = {"cuda": "nvidia[0-9]*", "npu": "davinci[0-9]*"}
_DRIVERS = {
    "cuda": "install NVIDIA's driver, or give the container its GPUs (the NVIDIA container toolkit does)",
    "npu": "install the Ascend driver, or give the container its /dev/davinci*, /dev/davinci_manager, "
    "/dev/devmm_svm and /dev/hisi_hdc",
}
_DEV = Path("/dev")


def groups(subject: Subject) -> Verdict:
    """LONGHAUL_DEVICE_GROUPS can be read, and each group has its ranks."""
    cpu_ranks = subject.settings.tensor_parallel_size
    described = [f"{group} ({_counted(group.ranks(cpu_ranks), 'rank')})" for group in subject.groups]
    return ok(", ".join(described))


def present(subject: Subject) -> Verdict:
    """The devices are there, and may be used."""
    allowed = os.sched_getaffinity(0)
    beyond = sorted({cpu for group in subject.of_kind("cpu") for cpu in group.devices} - allowed)
    if beyond:
        return fail(
            f"no CPU {_listed(beyond)} for this process, which may use {_listed(sorted(allowed))}",
            "name others in LONGHAUL_DEVICE_GROUPS, or let the process have these (taskset, cpuset)",
        )
    for kind, pattern in _NODES.items():
        named = [device for group in subject.of_kind(kind) for device in group.devices]
        # A container is given some of the host's files, and its devices are numbered from 0 all the same.
        count = len([*_DEV.glob(pattern)])
        if named and max(named) >= count:
            return fail(
                f"{kind}:{max(named)} is named, and {_DEV}/{pattern} is there {count} times", _DRIVERS[kind]
            )
        set_here = os.environ.get(VISIBLE[kind])
        if named and set_here is not None:
            return warn(
                f"{VISIBLE[kind]} is {set_here!r} here, and each group replaces it by its own",
                "name in LONGHAUL_DEVICE_GROUPS the devices' numbers on this machine",
            )
    return ok("all that the groups name" if subject.of_kind("cpu", "cuda", "npu") else "none needed")


def engine(subject: Subject) -> Verdict | None:
    """The engine knows such devices, and the packages for them are installed."""
    kinds = {group.kind for group in subject.groups} - {"echo"}
    if not kinds:
        return None
    unknown = sorted(kind for kind in kinds if not _has_device(kind))
    if unknown:
        return fail(f"the engine does not know {', '.join(unknown)} yet", "name groups of CPUs")
    needed = ["torch", *(["torch_npu"] if "npu" in kinds else [])]
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if absent:
        return fail(
            f"{' and '.join(absent)} not installed",
            "pip install 'longhaul[worker]', or 'longhaul[worker,npu]'",
        )
    torch = importlib.metadata.version("torch")
    if "cuda" in kinds and torch.endswith("+cpu"):
        return fail(f"torch {torch} is built for CPUs alone", "install a build of torch with CUDA")
    return ok(f"torch {torch}")


def lines_at_once(subject: Subject) -> Verdict | None:
    """An engine gets as many lines as it can run: the shards in flight hold all that it ever has."""
    if not subject.of_kind("cpu", "cuda", "npu"):
        return None
    settings = subject.settings
    room = settings.max_num_seqs or EngineConfig(path=Path()).max_num_seqs
    held = settings.shards_in_flight * settings.shard_lines
    found = f"{held} in {_counted(settings.shards_in_flight, 'shard')} for an engine that runs up to {room}"
    if held >= room:
        return ok(found)
    return warn(
        found,
        f"LONGHAUL_SHARDS_IN_FLIGHT={-(-room // settings.shard_lines)} would fill it, and so would longer "
        "shards: LONGHAUL_SHARD_LINES where jobs are submitted",
    )


def profile(subject: Subject) -> Verdict | None:
    """The variables for the devices' libraries can be read."""
    path, accelerators = subject.settings.profile, subject.of_kind("cuda", "npu")
    if path is None and not subject.of_kind("npu"):
        return None
    read = subject.profile
    if path is None:
        return warn("none", "set LONGHAUL_PROFILE to the file of your chip in ops/profiles")
    if not accelerators:
        return warn(f"{path} is read, and no group takes it", "profiles are for groups of accelerators")
    if subject.of_kind("npu") and read.chip is None:
        return warn(
            f"{path} does not say for which chip it is", "put LONGHAUL_CHIP=800i-a2 or 300i-duo into it"
        )
    found = f"{_counted(len(read.variables), 'variable')} for {read.chip or 'the devices'}"
    kept = [name for name, value in read.variables.items() if os.environ.get(name, value) != value]
    return ok(f"{found}; set otherwise here, and stay so: {', '.join(kept)}" if kept else found)


def _has_device(kind: str) -> bool:
    """Whether model/devices has a file for it; importing that package would load torch."""
    spec = importlib.util.find_spec("model")
    folders = spec.submodule_search_locations if spec else None
    return any((Path(folder) / "devices" / f"{kind}.py").is_file() for folder in folders or [])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))

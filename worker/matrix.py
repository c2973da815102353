"""What a model and a chip ask of a device group, before anything is loaded.

Owns the rules of the InternLM models' feature matrix on Ascend chips. Reads config.json alone; whether the
heads of any other model can be divided is the engine's to judge.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.settings import Settings
from model.config import ModelConfig
from model.shapes import model_config
from worker.errors import DeviceGroupError
from worker.groups import DeviceGroup, parse_ports
from worker.profiles import DUO

#: World sizes by names of model.shapes, the same on an 800I A2 and on a 300I DUO. internlm2_5-7b has the
#: shape and the sizes of internlm2-7b.
_WORLD_SIZES: Mapping[str, tuple[int, ...]] = {
    "internlm-20b": (2, 4, 8),
    "internlm2-7b": (1, 2, 4, 8),
    "internlm2-20b": (2, 4, 8),
}
#: A 300I DUO is two chips on one card.
_DUO_CORES = 2


def check_groups(groups: Sequence[DeviceGroup], settings: Settings, chip: str | None) -> None:
    """Raise `DeviceGroupError` for a group that can not serve the model.

    ModelError where the model's config.json is needed and can not be read.
    """
    ports = parse_ports(settings.master_ports)
    for group in groups:
        group.ranks(settings.tensor_parallel_size)
        group.master_ports(ports)
        _check_quantization(group, settings.quantization, chip)
        if group.kind == "npu":
            _check_cores(group, chip)
            _check_world_size(group, settings.served_model()[0])


def served_name(groups: Sequence[DeviceGroup], settings: Settings) -> str:
    """What jobs call the model of these groups; `SettingsError` where a group needs one and none is named."""
    if any(group.kind != "echo" for group in groups):
        return settings.served_model()[1]
    return settings.served_name or "echo"


def _check_quantization(group: DeviceGroup, scheme: str, chip: str | None) -> None:
    """Of echo groups nothing is asked: they have no weights."""
    if scheme == "none" or group.kind == "echo":
        return
    if group.kind != "npu":
        raise DeviceGroupError(
            f"{group}: LONGHAUL_QUANTIZATION={scheme} is for NPUs: set it to none, or name groups of npu"
        )
    if scheme == "w8a8" and chip == DUO:
        raise DeviceGroupError(
            f"{group}: a 300I DUO does not quantize activations: set LONGHAUL_QUANTIZATION to w8a16"
        )


def _check_cores(group: DeviceGroup, chip: str | None) -> None:
    if chip == DUO and len(group.devices) < _DUO_CORES:
        raise DeviceGroupError(
            f"{group}: a 300I DUO needs two visible cores at least: name both of a card, as npu:0,1"
        )


def _check_world_size(group: DeviceGroup, folder: Path) -> None:
    name = _recognised(ModelConfig.load(folder))
    if name is None or len(group.devices) in _WORLD_SIZES[name]:
        return
    sizes = ", ".join(map(str, _WORLD_SIZES[name]))
    raise DeviceGroupError(
        f"{group}: {folder} is {name}, which runs on {sizes} NPUs, not on {len(group.devices)}: "
        "name so many in LONGHAUL_DEVICE_GROUPS"
    )


def _recognised(model: ModelConfig) -> str | None:
    """The name of the matrix that the model goes by there."""
    return next((name for name in _WORLD_SIZES if _shape(model_config(name)) == _shape(model)), None)


def _shape(model: ModelConfig) -> tuple[str, int, int, int]:
    return model.architecture, model.num_layers, model.hidden_size, model.num_heads

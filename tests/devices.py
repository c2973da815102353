"""On which devices the engine's tests run: the CPU, and what else this machine has."""


def at_hand() -> list[str]:
    """Names of devices, as `EngineConfig.device` has them."""
    import torch  # noqa: PLC0415 - most tests need none

    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

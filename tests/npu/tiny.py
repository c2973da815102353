"""A tiny checkpoint for checks of what is called: heads of 64, which the chips' rotary operations take."""

from pathlib import Path

from tests.tiny_checkpoint import make_tiny_checkpoint


def tiny_checkpoint(folder: Path) -> Path:
    """Write it into a new folder, for engines with random weights."""
    config_file = make_tiny_checkpoint(folder) / "config.json"
    wide = config_file.read_text().replace('"hidden_size": 32', '"head_dim": 64, "hidden_size": 32')
    config_file.write_text(wide)
    return folder

"""`model doctor --device npu` from end to end, and that it sees what is wrong."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from model.cli import app
from model.devices import npu_ops
from model.devices.npu_chips import this_chip


def examined(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor", "--device", "npu", *options])
    return done.exit_code, done.output


def test_a_sound_card(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    status, text = examined("--output", str(path))
    assert status == 0, text
    assert "SIMULATED: computed on the host" in text
    report = json.loads(path.read_text())
    assert report["simulated"] is True
    found = {each["check"]: each["status"] for each in report["checks"]}
    skipped = {check for check, status in found.items() if status == "skipped"}
    assert skipped == {"graph", "speed"}
    assert found["ranks"] == "ok"
    assert sum(check.startswith("attention") for check in found) == 4 * len(this_chip().dtypes)


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = npu_ops.rms_norm

    def wrong(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
        return own(x, gamma, eps) * 1.1

    monkeypatch.setattr(npu_ops, "rms_norm", wrong)
    monkeypatch.setattr(torch.npu, "device_count", lambda: 1)
    status, text = examined("--json")
    report = json.loads(text.splitlines()[-1])
    assert status == 1
    failed = {each["check"] for each in report["checks"] if each["status"] == "failed"}
    assert failed == {f"norms {str(dtype).removeprefix('torch.')}" for dtype in this_chip().dtypes}

"""The GPU's kernels on a GPU, or else on CPU tensors in Triton's interpreter: see `tests/cuda/card.py`.

At the end a table says how far each kernel was from plain formulas in float64, by dtype.
"""

from importlib.util import find_spec

import pytest

from tests.cuda import card

TRITON = find_spec("triton") is not None
#: Of what needs triton, nothing is collected without it.
collect_ignore_glob = [] if TRITON else ["test_[!w]*.py"]


@pytest.fixture(autouse=True)
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the device finds a card whose memory is the host's."""
    if TRITON and not card.REAL:
        card.simulate(monkeypatch.setattr)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    worst: dict[tuple[str, str], float] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "error":
                kernel, dtype, error = value
                worst[kernel, dtype] = max(error, worst.get((kernel, dtype), 0.0))
    if not worst:
        return
    where = "on the GPU" if card.REAL else "in Triton's interpreter, simulated"
    terminalreporter.section(f"largest errors against float64, {where}")
    for (kernel, dtype), error in sorted(worst.items()):
        terminalreporter.write_line(f"{kernel:<24}{dtype:<10}{error:.1e}")

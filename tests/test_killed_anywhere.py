"""A command that fills the prior cache, killed at random moments: benchmarks/killed_anywhere.py with few kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).resolve().parents[1] / "benchmarks" / "killed_anywhere.py"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_masks_killed_three_times_are_those_of_an_uninterrupted_run(tmp_path: Path):
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--kills", "3", "--pairs", "15", "--seed", "1", "--out", str(out)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert sum(result["moments"].values()) == 3
    assert result["records"] == 30
    assert (result["lost"], result["damaged"], result["different"]) == (0, 0, 0)
    assert result["computed"] - result["needed"] <= 3 * result["in_flight_bound"]
    assert str(tmp_path) not in out.read_text()

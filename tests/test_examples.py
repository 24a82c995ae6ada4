"""The examples run, with small numbers."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_multimodal(tmp_path):
    command = [sys.executable, str(EXAMPLES / "multimodal.py"), "--share", "0.02", "--jobs", "1", "--folder", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Picture: " in output
    shares = {name: measured["shares"] for name, measured in json.loads((tmp_path / "multimodal.json").read_text()).items()}
    assert {name: len(share) for name, share in shares.items()} == {
        "well, SAC": 8,
        "well, DiffSAC": 8,
        "well, SAC, cold": 8,
        "well, DiffSAC, cold": 8,
        "goals, SAC": 4,
        "goals, DiffSAC": 4,
    }
    assert (tmp_path / "multimodal.png").stat().st_size > 0

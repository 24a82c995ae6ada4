"""The examples run, with small numbers."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# Name: small numbers, what is printed, what is written
SHORT = {
    "quickstart": ("--steps 300 --folder .", "The deterministic action: ", ["diffcrossq_pendulum.zip"]),
    "ppo": ("--steps 128 --n-steps 32", "the best is 1000", []),
    "wpo": ("--steps 200", "nats of 0.1", []),
    "stock_sb3": ("--sac-steps 150 --ppo-steps 256 --n-steps 64", "PPO on InvertedPendulum-v5: ", []),
    "custom_network": ("--steps 150", "FourierFeatures", []),
    "her": ("--steps 540", "Return: ", []),
    "vec_normalize": ("--steps 150 --folder .", "Return: ", ["model.zip", "vec_normalize.pkl"]),
    "images": ("--steps 120", "Return: ", []),
    "callbacks": ("--steps 200 --every 100 --folder .", "the best model: best_model.zip", ["best_model.zip", "tensorboard"]),
    "imitation": (
        "--demonstrations 10 --epochs 2 --steps 1024 --episodes 5 --folder .",
        "Chain, fine-tuned: ",
        ["imitation.png"],
    ),
    "optuna_study": ("--steps 120 --trials 2 --folder .", "Best: ", ["study.db"]),
}


@pytest.mark.parametrize("name", SHORT)
def test_short_example(name, tmp_path, monkeypatch, capsys):
    arguments, printed, written = SHORT[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments.split()])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert printed in capsys.readouterr().out
    assert all((tmp_path / path).exists() for path in written)


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"demo", "multimodal", *SHORT}  # the demo: .ci/run


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

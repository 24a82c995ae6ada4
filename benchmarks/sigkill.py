"""
One training run that is killed again and again with SIGKILL and resumed each time: half of the times at a random moment, half
while a checkpoint is being written. What was lost, and whether the run ends as well as one that nobody has killed.

Example::

    python -m benchmarks.sigkill
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import CheckpointCallback, DiffSAC, resume_latest
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.results import write_json
from sb3_diffusion.saving.checkpoints import TEMPORARY, find_checkpoints, find_damage, get_steps

RESULT = Path(__file__).parent / "results" / "sigkill.json"
ENV, LEARNING_STARTS = "Pendulum-v1", 100


class Progress(BaseCallback):
    """
    Tells another process how many steps the run has learned from.

    :param path: path of the file
    """

    def __init__(self, path: Path):
        super().__init__()
        self.file = os.open(path, os.O_CREAT | os.O_WRONLY)

    def _on_rollout_start(self) -> None:
        os.pwrite(self.file, f"{self.model.num_timesteps:8d}".encode(), 0)

    def _on_step(self) -> bool:
        return True


def run(folder: Path, steps: int, save_freq: int) -> None:
    """
    The process that is killed: begin or go on, and say in ``started.json`` where.

    :param folder: where everything goes
    :param steps: steps of the whole run
    :param save_freq: steps between checkpoints
    """
    th.set_num_threads(1)
    try:
        model = resume_latest(folder / "checkpoints", ENV)
    except FileNotFoundError:
        model = DiffSAC("MlpPolicy", ENV, learning_starts=LEARNING_STARTS, buffer_size=20_000, seed=0, device="cpu")
    state = {
        "num_timesteps": model.num_timesteps,
        "transitions": model.replay_buffer.size(),
        "updates": model._n_updates,
        "ent_coef": model.log_ent_coef.exp().item(),
    }
    write_json(folder / "started.json", state)
    callbacks = [Progress(folder / "progress"), CheckpointCallback(save_freq, folder / "checkpoints", keep=3)]
    model.learn(steps - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
    returns, _ = evaluate_policy(model, make_vec_env(ENV, seed=1000), 10, return_episode_rewards=True)
    write_json(folder / "finished.json", {"returns": returns})


def start(folder: Path, steps: int, save_freq: int) -> tuple[subprocess.Popen, dict[str, Any]]:
    """
    :param folder: where everything goes
    :param steps: steps of the whole run
    :param save_freq: steps between checkpoints
    :return: the process, and where it has begun
    """
    (folder / "started.json").unlink(missing_ok=True)
    (folder / "progress").unlink(missing_ok=True)
    arguments = ["--run", str(folder), "--steps", str(steps), "--save-freq", str(save_freq)]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.sigkill", *arguments])
    while not (folder / "started.json").exists() or not (folder / "progress").exists():
        if process.poll() is not None:
            raise RuntimeError(f"The run has ended with {process.returncode}")
        time.sleep(0.01)
    return process, json.loads((folder / "started.json").read_text())


def read_progress(folder: Path) -> int:
    """
    :param folder: where everything goes
    :return: steps that the run has learned from
    """
    return int((folder / "progress").read_text().strip() or 0)


def kill(folder: Path, steps: int, save_freq: int, aimed: bool, rng: random.Random) -> dict[str, Any]:
    """
    Start or resume the run, kill it, and look at what is left.

    :param folder: where everything goes
    :param steps: steps of the whole run
    :param save_freq: steps between checkpoints
    :param aimed: whether to kill it while it is saving
    :param rng: random numbers
    :return: what was found
    """
    checkpoints = folder / "checkpoints"
    process, state = start(folder, steps, save_freq)
    enough = state["num_timesteps"] + rng.randint(1, 2 * save_freq)
    while True:
        trained = read_progress(folder)
        saving = any(checkpoints.glob(f"*{TEMPORARY}"))
        if trained >= enough and (saving or not aimed):
            break
        if process.poll() is not None:
            raise RuntimeError(f"The run has ended with {process.returncode}")
        time.sleep(0.0002)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    trained = read_progress(folder)
    found = find_checkpoints(checkpoints)
    whole = [path for path in found if find_damage(path) is None]
    newest = get_steps(whole[-1]) if whole else 0
    return {
        "aimed": aimed,
        "begun": state,
        "trained": trained,
        "unfinished": len(list(checkpoints.glob(f"*{TEMPORARY}"))),
        "newest": newest,
        "damaged": len(found) - len(whole),
        "lost": trained - newest,
    }


def check(kills: list[dict[str, Any]], save_freq: int) -> None:
    """
    :param kills: what was found after each
    :param save_freq: steps between checkpoints
    :raises AssertionError: if more than an interval was lost, or the run did not go on from the newest checkpoint
    """
    expected = 0
    for each in kills:
        begun = each["begun"]
        assert begun["num_timesteps"] == begun["transitions"] == expected, each
        assert begun["updates"] == max(expected - LEARNING_STARTS, 0), each
        assert each["damaged"] == 0 and each["lost"] <= save_freq, each
        expected = each["newest"]


def main() -> None:
    """Kill and resume, let the run end, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=whole_number(1), default=20)
    parser.add_argument("--steps", type=whole_number(1), default=8_000, help="steps of the whole run")
    parser.add_argument("--save-freq", type=whole_number(1), default=200)
    parser.add_argument("--seed", type=seed_number, default=0, help="of the moments")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run, args.steps, args.save_freq)
        return
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kills = []
        for index in range(args.kills):
            kills.append(kill(folder, args.steps, args.save_freq, index % 2 == 1, rng))
            print(kills[-1], flush=True)
        check(kills, args.save_freq)
        returns = {}
        for kind, path in (("killed", folder), ("not killed", folder / "whole")):
            path.mkdir(exist_ok=True)
            process, _ = start(path, args.steps, args.save_freq)
            assert process.wait() == 0
            returns[kind] = json.loads((path / "finished.json").read_text())["returns"]
    write_json(RESULT, {"settings": vars(args) | {"run": None}, "kills": kills, "returns": returns})
    print("| Kills | left an unfinished folder | checkpoints damaged | steps lost, mean | most |\n" + "| --- " * 5 + "|")
    for title, aimed in (("at a random moment", False), ("while saving", True)):
        some = [each for each in kills if each["aimed"] == aimed]
        lost = [each["lost"] for each in some]
        left, damaged = sum(each["unfinished"] > 0 for each in some), sum(each["damaged"] for each in some)
        print(f"| {len(some)} {title} | {left} | {damaged} | {sum(lost) / len(lost):.0f} | {max(lost)} |")
    for kind, values in returns.items():
        print(f"Mean return of the run that was {kind}: {sum(values) / len(values):.0f}")


if __name__ == "__main__":
    main()

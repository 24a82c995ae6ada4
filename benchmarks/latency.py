"""
How long one decision takes on a CPU: ``predict`` of stable_baselines3.SAC and of DiffSAC, and the exported files.

One thread, deterministic actions, milliseconds of CPU time, which on an idle machine is the time on the clock. What is
compared is measured in turn, round by round, and a ratio is the median over the rounds of the ratios within each; so it does
not depend on what else the machine did meanwhile.

Example::

    python -m benchmarks.latency
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from stable_baselines3 import SAC

from benchmarks.speed import Rows, Task, cpu_time, in_turn, print_table
from sb3_diffusion import DiffSAC
from sb3_diffusion.analysis.command_line import whole_number
from sb3_diffusion.analysis.results import write_json
from sb3_diffusion.deployment import export_onnx, export_program

RESULT = Path(__file__).parent / "results" / "latency.json"


def exported_functions(model: DiffSAC, folder: Path) -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """
    :param model: model to export
    :param folder: where the files go
    :return: functions of observations and noise, by what runs them
    """
    export_onnx(model, folder / "policy.onnx")
    export_program(model, folder / "policy.pt2")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "policy.onnx", options, providers=["CPUExecutionProvider"])
    program = th.export.load(folder / "policy.pt2").module()

    def in_torch(function: Callable[..., th.Tensor], obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return function(th.as_tensor(obs), th.as_tensor(noise)).numpy()

    return {
        "ONNX in onnxruntime": lambda obs, noise: session.run(["action"], {"observation": obs, "noise": noise}),
        "torch.export": partial(in_torch, program),
    }


def measure(args: argparse.Namespace) -> dict[str, Rows]:
    """
    :param args: the command line
    :return: rows by number of observations
    """
    sac = SAC("MlpPolicy", args.env, buffer_size=1, device="cpu")
    models, functions = {}, {}
    for steps in args.diffusion_steps:
        models[steps] = DiffSAC("MlpPolicy", args.env, diffusion_steps=steps, buffer_size=1, device="cpu")
        with tempfile.TemporaryDirectory() as folder:
            functions[steps] = exported_functions(models[steps], Path(folder))
    space = gym.make(args.env).observation_space
    results = {}
    for n_obs in (1, 64):
        obs = np.stack([space.sample() for _ in range(n_obs)])
        calls: dict[str, Callable[[], Any]] = {"sac, predict": partial(sac.predict, obs, deterministic=True)}
        for steps, model in models.items():
            predict = partial(model.predict, obs, deterministic=True)
            calls[f"diffsac, K = {steps}, predict"] = predict
            noise = np.zeros((n_obs, steps + 1, model.actor.action_dim), dtype=np.float32)
            for name, function in functions[steps].items():
                np.testing.assert_allclose(np.squeeze(function(obs, noise)), np.squeeze(predict()[0]), atol=1e-5)
                calls[f"diffsac, K = {steps}, {name}"] = partial(function, obs, noise)
        tasks: dict[str, Task] = {name: partial(cpu_time, call, args.calls) for name, call in calls.items()}
        results[f"{n_obs} observation{'s' * (n_obs > 1)}"] = in_turn(tasks, args.rounds, "sac, predict")
    return results


def main() -> None:
    """Measure, print the tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--diffusion-steps", type=whole_number(1), nargs="+", default=[5, 20])
    parser.add_argument("--rounds", type=whole_number(1), default=15)
    parser.add_argument("--calls", type=whole_number(1), default=50, help="decisions of each kind in a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    th.set_num_threads(1)
    results = measure(args)
    for title, rows in results.items():
        print_table(title, rows)
    write_json(args.out, {"env": args.env, "rounds": args.rounds, "calls": args.calls, **results})


if __name__ == "__main__":
    main()

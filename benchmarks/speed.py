"""
CPU time of one gradient step and of one action, DiffSAC against SB3's SAC, measured in turn in one process.

Example::

    python benchmarks/speed.py
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from sb3_diffusion import DiffSAC

RESULT = Path(__file__).parent / "results" / "speed.json"


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--diffusion-steps", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--updates", type=int, default=50, help="gradient steps a round")
    args = parser.parse_args()
    th.set_num_threads(1)
    settings: dict[str, Any] = dict(learning_starts=300, buffer_size=1000, seed=0, device="cpu")
    models: dict[str, SAC] = {"sac": SAC("MlpPolicy", args.env, **settings)}
    for actor_loss in ("adjoint", "pathwise", "diffusion_value"):
        for steps in args.diffusion_steps:
            name = f"diffsac-{actor_loss}, K = {steps}"
            models[name] = DiffSAC("MlpPolicy", args.env, actor_loss=actor_loss, diffusion_steps=steps, **settings)
    update: dict[str, list[float]] = {name: [] for name in models}
    action: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.learn(310)
        model.set_logger(Logger(None, []))
    obs = models["sac"].observation_space.sample()
    for _ in range(args.rounds):
        for name, model in models.items():
            started = time.process_time()
            model.train(args.updates, 256)
            trained = time.process_time()
            for _ in range(args.updates):
                model.predict(obs)
            update[name].append((trained - started) / args.updates * 1000)
            action[name].append((time.process_time() - trained) / args.updates * 1000)
    results = {}
    print("| | gradient step, ms | ratio to SAC | action, ms |\n| --- | --- | --- | --- |")
    for name in models:
        results[name] = {
            "update_ms": float(np.median(update[name])),
            "update_ratio": float(np.median(np.array(update[name]) / np.array(update["sac"]))),
            "action_ms": float(np.median(action[name])),
        }
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in results[name].values())} |")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"env": args.env, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

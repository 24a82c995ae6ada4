"""
Environment steps per second of a rollout: DiffPPO, which runs the chain inside the policy, against stock PPO on the augmented
MDP (the first open question of DMERL, arXiv 2512.02019).

Example::

    python -m benchmarks.vectorisation --figure docs/_static/vectorisation.png
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_diffusion import DiffPPO, DiffusionActorCriticPolicy, DiffusionMDPWrapper
from sb3_diffusion.analysis.command_line import whole_number
from sb3_diffusion.analysis.results import write_json

RESULT = Path(__file__).parent / "results" / "vectorisation.json"
FORMS = {"diffppo": DummyVecEnv, "wrapped, SubprocVecEnv": SubprocVecEnv, "wrapped, DummyVecEnv": DummyVecEnv}


def make_model(
    form: str, env_id: str, n_envs: int, diffusion_steps: int, n_steps: int
) -> tuple[OnPolicyAlgorithm, BaseCallback]:
    """
    :param form: key of ``FORMS``
    :param env_id: environment
    :param n_envs: number of environments
    :param diffusion_steps: number of denoising steps K
    :param n_steps: steps of each environment in a rollout
    :return: a model that is ready to collect rollouts, and its callback
    """
    wrapper = (
        {}
        if form == "diffppo"
        else dict(wrapper_class=DiffusionMDPWrapper, wrapper_kwargs=dict(diffusion_steps=diffusion_steps))
    )
    env = make_vec_env(env_id, n_envs, seed=0, vec_env_cls=FORMS[form], **wrapper)  # type: ignore[arg-type]
    model: OnPolicyAlgorithm
    if form == "diffppo":
        model = DiffPPO("MlpPolicy", env, n_steps=n_steps, diffusion_steps=diffusion_steps, device="cpu")
    else:
        model = PPO(DiffusionActorCriticPolicy, env, n_steps=n_steps * diffusion_steps, device="cpu")
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(1_000_000)
    return model, callback


def main() -> None:
    """Measure in turn, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--n-envs", type=whole_number(1), default=8)
    parser.add_argument("--diffusion-steps", type=whole_number(1), nargs="+", default=[2, 5, 10, 20])
    parser.add_argument("--rounds", type=whole_number(1), default=5)
    parser.add_argument("--n-steps", type=whole_number(1), default=32, help="steps of each environment in a rollout")
    parser.add_argument("--figure", type=Path, help="where the picture goes; none if left out")
    args = parser.parse_args()
    th.set_num_threads(1)
    results = {}
    for diffusion_steps in args.diffusion_steps:
        models = {form: make_model(form, args.env, args.n_envs, diffusion_steps, args.n_steps) for form in FORMS}
        speeds: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(args.rounds + 1):
            for form, (model, callback) in models.items():
                started = time.perf_counter()
                model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
                speeds[form].append(args.n_steps * args.n_envs / (time.perf_counter() - started))
        for model, _ in models.values():
            model.env.close()  # type: ignore[union-attr]
        # The first round warms up
        results[diffusion_steps] = {form: values[1:] for form, values in speeds.items()}
    write_json(RESULT, {"env": args.env, "n_envs": args.n_envs, "steps_per_second": results})

    print("| K | " + " | ".join(FORMS) + " | to SubprocVecEnv | to DummyVecEnv |\n" + "| --- " * (len(FORMS) + 3) + "|")
    figure, axis = plt.subplots(figsize=(6, 4))
    ratios: dict[str, list[float]] = {form: [] for form in list(FORMS)[1:]}
    for diffusion_steps, of_form in results.items():
        medians = [float(np.median(values)) for values in of_form.values()]
        for form, of_ratio in ratios.items():
            of_ratio.append(float(np.median(np.array(of_form["diffppo"]) / np.array(of_form[form]))))
        cells = [f"{value:,.0f}" for value in medians] + [f"{of_ratio[-1]:.1f}" for of_ratio in ratios.values()]
        print(f"| {diffusion_steps} | " + " | ".join(cells) + " |")
    for form, of_ratio in ratios.items():
        axis.plot(args.diffusion_steps, of_ratio, "o-", label=f"DiffPPO over PPO {form}")
    axis.set(
        xlabel="denoising steps K",
        ylabel="ratio of environment steps per second",
        title=f"{args.env}, {args.n_envs} environments",
    )
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    if args.figure:
        args.figure.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()

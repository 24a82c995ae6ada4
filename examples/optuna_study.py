"""
Tune the number of denoising steps and the temperature with Optuna, without the Zoo.

Finished trials are in a file: started again, the script goes on with those that are missing.

Example::

    python examples/optuna_study.py
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffSAC

PARTS = 4


def objective(trial: optuna.Trial, n_steps: int) -> float:
    """
    :param trial: trial
    :param n_steps: steps of the environment
    :return: mean return
    """
    model = DiffSAC(
        "MlpPolicy",
        "Pendulum-v1",
        diffusion_steps=trial.suggest_int("diffusion_steps", 1, 16, log=True),
        noise_schedule=trial.suggest_categorical("noise_schedule", ["cosine", "linear"]),
        ent_coef=f"auto_{trial.suggest_float('initial_ent_coef', 0.1, 10, log=True)}",
        target_entropy=f"auto_{trial.suggest_float('target_entropy_scale', 0.5, 2, log=True)}",
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        seed=trial.number,
        device="cpu",
    )
    eval_env = make_vec_env("Pendulum-v1", seed=10_000)
    for part in range(1, PARTS + 1):
        model.learn(n_steps // PARTS, reset_num_timesteps=part == 1)
        returns, _ = evaluate_policy(model, eval_env, n_eval_episodes=5, return_episode_rewards=True)
        mean_return = float(np.mean(returns))
        trial.report(mean_return, model.num_timesteps)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return mean_return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6_000, help="steps of the environment of a trial")
    parser.add_argument("--trials", type=int, default=10, help="number of finished trials to have in the end")
    parser.add_argument("--folder", type=Path, default=Path("optuna_study"), help="where the study stands")
    args = parser.parse_args()
    th.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)

    study = optuna.create_study(
        storage=f"sqlite:///{args.folder / 'study.db'}", study_name="diffsac", direction="maximize", load_if_exists=True
    )
    finished = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    missing = args.trials - len(study.get_trials(states=finished))
    # What training reports when a loss is NaN is a ValueError: such a trial has failed, the study goes on
    study.optimize(partial(objective, n_steps=args.steps), n_trials=max(0, missing), catch=(ValueError,))
    print(f"Best: {study.best_value:.0f} with {study.best_params}")

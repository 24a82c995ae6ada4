"""
Normalise observations and rewards by running statistics, and take them along with the model.

Example::

    python examples/vec_normalize.py
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion import DiffSAC

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_000, help="steps of the environment")
    parser.add_argument("--folder", type=Path, default=Path("vec_normalize"), help="where model and statistics go")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    model = DiffSAC("MlpPolicy", env, verbose=1, seed=0)
    model.learn(args.steps, progress_bar=True)
    model.save(args.folder / "model")
    env.save(str(args.folder / "vec_normalize.pkl"))

    # The statistics belong to the policy: without them it sees observations that it was not trained on
    eval_env = VecNormalize.load(str(args.folder / "vec_normalize.pkl"), make_vec_env("Pendulum-v1", seed=1))
    eval_env.training = False  # the statistics stay as they are
    eval_env.norm_reward = False  # returns in the units of the task
    model = DiffSAC.load(args.folder / "model")
    mean_return, std_return = evaluate_policy(model, eval_env, n_eval_episodes=10)
    print(f"Return: {mean_return:.0f} +- {std_return:.0f}")

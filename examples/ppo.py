"""
Train DiffPPO on InvertedPendulum-v5 with a temperature that falls to 0.

Example::

    python examples/ppo.py
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffPPO

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="steps of the environments")
    parser.add_argument("--n-steps", type=int, default=512, help="steps of each environment in a rollout")
    args = parser.parse_args()

    env = make_vec_env("InvertedPendulum-v5", n_envs=4, seed=0)
    model = DiffPPO("MlpPolicy", env, n_steps=args.n_steps, ent_coef="lin_0.05", verbose=1, seed=0)
    model.learn(args.steps, progress_bar=True)

    mean_return, std_return = evaluate_policy(model, make_vec_env("InvertedPendulum-v5", seed=1), n_eval_episodes=10)
    print(f"Return: {mean_return:.0f} +- {std_return:.0f}, the best is 1000")

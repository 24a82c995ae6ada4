"""
Train DiffWPO on Pendulum-v1 and show how far its updates went within the trust region.

Example::

    python examples/wpo.py
"""

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffWPO

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the environment")
    args = parser.parse_args()

    model = DiffWPO("MlpPolicy", "Pendulum-v1", kl_bound_mean=1.0, kl_bound_std=0.1, seed=0)
    # In episodes, and more than there are: a table of the logger would empty it of the values that are read below
    model.learn(args.steps, log_interval=args.steps, progress_bar=True)

    mean_return, std_return = evaluate_policy(model, make_vec_env("Pendulum-v1", seed=1), n_eval_episodes=10)
    print(f"Return: {mean_return:.0f} +- {std_return:.0f}")
    for name in ("mean", "std"):
        kl = model.logger.name_to_value[f"train/kl_{name}"]
        print(f"KL of the {name}: {kl:.3f} nats of {getattr(model, f'kl_bound_{name}')}")

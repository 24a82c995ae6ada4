"""
Train DiffCrossQ on Pendulum-v1, evaluate, save, load and act.

Example::

    python examples/quickstart.py
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffCrossQ

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4_000, help="steps of the environment")
    parser.add_argument("--folder", type=Path, default=Path("quickstart"), help="where the model goes")
    args = parser.parse_args()

    model = DiffCrossQ("MlpPolicy", "Pendulum-v1", diffusion_steps=5, verbose=1, seed=0)
    model.learn(args.steps, progress_bar=True)

    env = make_vec_env("Pendulum-v1", seed=1)
    mean_return, std_return = evaluate_policy(model, env, n_eval_episodes=10)
    print(f"Return: {mean_return:.0f} +- {std_return:.0f}")

    args.folder.mkdir(parents=True, exist_ok=True)
    model.save(args.folder / "diffcrossq_pendulum")
    model = DiffCrossQ.load(args.folder / "diffcrossq_pendulum")
    obs = env.observation_space.sample()
    print(f"Three samples at one state: {[model.predict(obs, deterministic=False)[0].item() for _ in range(3)]}")
    print(f"The deterministic action:   {model.predict(obs, deterministic=True)[0].item()}")

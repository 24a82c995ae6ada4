"""
Train the diffusion policy with the loops of Stable-Baselines3 itself: SAC, and PPO on the augmented MDP.

Example::

    python examples/stock_sb3.py
"""

import argparse

import gymnasium as gym
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffusion import DiffusionActorCriticPolicy, DiffusionMDPWrapper, DiffusionSACPolicy

DIFFUSION_STEPS = 5


def augmented() -> gym.Env:
    """
    :return: InvertedPendulum-v5, each denoising step a call of ``step``
    """
    return DiffusionMDPWrapper(gym.make("InvertedPendulum-v5"), diffusion_steps=DIFFUSION_STEPS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sac-steps", type=int, default=8_000, help="steps of the environment")
    parser.add_argument("--ppo-steps", type=int, default=100_000, help="denoising steps")
    parser.add_argument("--n-steps", type=int, default=2048, help="denoising steps in a rollout of PPO")
    args = parser.parse_args()

    sac = SAC(DiffusionSACPolicy, "Pendulum-v1", policy_kwargs=dict(diffusion_steps=DIFFUSION_STEPS), seed=0)
    sac.learn(args.sac_steps, progress_bar=True)
    mean_return, std_return = evaluate_policy(sac, make_vec_env("Pendulum-v1", seed=1), n_eval_episodes=10)
    print(f"SAC on Pendulum-v1: {mean_return:.0f} +- {std_return:.0f}")

    # PPO discounts every denoising step, so the discount of a step of the environment is the fifth power of this one
    env = make_vec_env(augmented, n_envs=4, seed=0)
    ppo = PPO(DiffusionActorCriticPolicy, env, n_steps=args.n_steps, gamma=0.99 ** (1 / DIFFUSION_STEPS), seed=0)
    ppo.learn(args.ppo_steps, progress_bar=True)
    mean_return, std_return = evaluate_policy(ppo, make_vec_env(augmented, seed=1), n_eval_episodes=10)
    print(f"PPO on InvertedPendulum-v5: {mean_return:.0f} +- {std_return:.0f}, the best is 1000")

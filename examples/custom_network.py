"""
Networks of one's own: a features extractor that actor and critics share, the widths of encoder, critics and head, and their
activations.

Example::

    python examples/custom_network.py
"""

import argparse

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_diffusion import DiffSAC


class FourierFeatures(BaseFeaturesExtractor):
    """
    Sines and cosines of random projections of the observation, which let a small network change fast between states.

    :param observation_space: a ``Box`` of one dimension
    :param features_dim: number of features, even
    :param scale: standard deviation of the projections
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 64, scale: float = 0.5):
        super().__init__(observation_space, features_dim)
        self.projection = nn.Linear(observation_space.shape[0], features_dim // 2)
        nn.init.normal_(self.projection.weight, std=scale)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        angles = self.projection(observations)  # (B, features_dim / 2)
        return th.cat([angles.sin(), angles.cos()], dim=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_000, help="steps of the environment")
    args = parser.parse_args()

    policy_kwargs = dict(
        features_extractor_class=FourierFeatures,
        features_extractor_kwargs=dict(features_dim=64),
        share_features_extractor=True,
        # The encoder runs once per action, the head at every denoising step: a small head makes many steps cheap
        net_arch=dict(pi=[128, 128], qf=[256, 256], denoiser=[32, 32]),
        activation_fn=nn.ReLU,
        denoiser_activation_fn=nn.SiLU,
    )
    model = DiffSAC("MlpPolicy", "Pendulum-v1", diffusion_steps=10, policy_kwargs=policy_kwargs, verbose=1, seed=0)
    print(model.policy)
    model.learn(args.steps, progress_bar=True)

"""The true entropy of a policy, beside the bound on it that training sees."""

import numpy as np
import torch as th
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffusion.common.chain import action_log_prob, squash_log_det
from sb3_diffusion.diffsac.off_policy import DiffusionOffPolicyAlgorithm


def sample_entropy(samples: np.ndarray, n_neighbors: int = 4) -> float:
    """
    Differential entropy by distances to nearest neighbours (Kozachenko and Leonenko, 1987; Kraskov et al., 2004, arXiv
    cond-mat/0305641, equation 20). Each dimension is scaled by its standard deviation first, which is added back.

    :param samples: independent samples, (N, d)
    :param n_neighbors: which neighbour's distance counts; more of them have less noise and more bias
    :return: entropy in nats
    :raises ValueError: for fewer samples than neighbours
    """
    n_samples, dim = samples.shape
    if n_samples <= n_neighbors:
        raise ValueError(f"{n_samples} samples: the distance to the neighbour number {n_neighbors} needs more")
    scale = samples.std(axis=0) + 1e-12
    distances, _ = cKDTree(samples / scale).query(samples / scale, k=n_neighbors + 1)
    log_volume = 0.5 * dim * np.log(np.pi) - gammaln(0.5 * dim + 1)
    mean_log_distance = np.log(np.maximum(distances[:, -1], 1e-12)).mean()
    entropy = digamma(n_samples) - digamma(n_neighbors) + log_volume + dim * mean_log_distance
    return float(entropy + np.log(scale).sum())


def policy_entropy(model: BaseAlgorithm, n_states: int = 32, n_samples: int = 1000) -> dict[str, float]:
    """
    Entropy of the squashed actions at states of the replay buffer, estimated from samples, and the bound on it.

    :param model: an off-policy model of this package, with transitions in its buffer
    :param n_states: number of states
    :param n_samples: sampled actions at each
    :return: means over the states of ``entropy`` and ``entropy_bound``, in nats
    :raises ValueError: for another model, or one without transitions
    """
    if not isinstance(model, DiffusionOffPolicyAlgorithm) or model.replay_buffer is None or model.replay_buffer.size() == 0:
        raise ValueError(f"{type(model).__name__}: give an off-policy model of this package with transitions in its buffer")
    policy = model.policy
    random_state = np.random.get_state()
    obs = model.replay_buffer.sample(n_states, env=model.get_vec_normalize_env()).observations
    np.random.set_state(random_state)  # the training that is looked at must not change
    policy.set_training_mode(False)
    with th.no_grad(), th.random.fork_rng():
        context = policy.actor.encode(obs).repeat_interleave(n_samples, dim=0)
        chain = policy.actor.sample(context)
        bound = -action_log_prob(policy.actor.schedule, chain).mean()
        latents = chain.x[0].reshape(n_states, n_samples, -1).double().cpu().numpy()
        squash = squash_log_det(chain.x[0]).mean()
    entropy = np.mean([sample_entropy(of_state) for of_state in latents]) + squash.item()
    return {"entropy": float(entropy), "entropy_bound": bound.item()}

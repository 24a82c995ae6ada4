"""Settings of DiffPPO by name."""

from typing import Any

# DPPO (arXiv 2409.00588): no entropy, a value function of the state alone, a discount along the chain, and a clip range
# that grows with the denoising step; the numbers are in the range of its configurations, which fine-tune
DPPO_KWARGS: dict[str, Any] = dict(
    ent_coef=0.0,
    gae_lambda_diffusion=1.0,
    gamma_diffusion=0.99,
    clip_range=0.01,
    clip_range_first_step=0.001,
    policy_kwargs=dict(state_value=True),
)

# Its configurations of Gym tasks, for a cloned policy of 20 steps: the last half of them learns, no kernel is narrower than
# 0.1, and all have the same clip range
DPPO_FINETUNING_KWARGS: dict[str, Any] = {
    **DPPO_KWARGS,
    "clip_range_first_step": None,
    "diffusion_steps": 20,
    "finetuned_steps": 10,
    "min_denoising_std": 0.1,
}

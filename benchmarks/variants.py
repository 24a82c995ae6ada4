"""
Variants of DiffCrossQ on equal terms: kernels, estimators of the actor's gradient and numbers of denoising steps; and what
DIME (arXiv 2502.02316), CrossQ (arXiv 1902.05605) and SimBa (arXiv 2410.09754) add to critics and actor, each by itself.
A name like ``posterior+mixed+k16`` joins several.

Example::

    python -m benchmarks.variants --envs HalfCheetah-v5 Hopper-v5 --seeds 0 1 2
    python -m benchmarks.report benchmarks/results/variants.csv
"""

from typing import Any

from benchmarks.command_line import carry_out, make_parser
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.runner import Run

# What all share, on top of which come the keyword arguments of each
SHARED: dict[str, Any] = {"learning_rate": 1e-3, "policy_delay": 3, "critic_type": "crossq", "learning_starts": 5000}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "actor_batch_norm": {"policy_kwargs": {"actor_batch_norm": True}},
    "mean": {"critic_type": "crossq-mean"},
    "actor_mean": {"critic_type": "crossq-actor-mean"},
    "clip": {"algorithm": "benchmarks.algorithms:ClippedDiffSAC"},
    "layer_norm": {"critic_type": "layer-norm"},
    "categorical": {"critic_type": "categorical"},
    "two_updates": {"gradient_steps": 2},
    "recent": {"replay_recency": 2.0},
    "very_recent": {"replay_recency": 3.0},
    "half_entropy": {"target_entropy": "auto_0.5"},
    "wide": {"policy_kwargs": {"net_arch": {"pi": [128, 128], "qf": [512, 512]}}},
    "gaussian": {"diffusion_steps": 1},
    # Kernels and estimators
    "k16": {"diffusion_steps": 16},
    "posterior": {"policy_kwargs": {"kernel": "posterior"}},
    "mixed": {"actor_loss": "mixed_adjoint"},
    "pathwise": {"actor_loss": "pathwise"},
    "forward": {"divergence": "forward"},
    "all_steps": {"denoising_steps_per_update": 64},
    "fast_actor": {"actor_lr_scale": 3.0},
    "slow_actor": {"learning_rate": 3e-4, "qf_learning_rate": 1e-3},
    "zero_entropy": {"target_entropy": 0.0},
}


def make_run(variant: str, env: str, seed: int, width: int, steps: int, eval_every: int, eval_episodes: int) -> Run:
    """
    :param variant: key of ``VARIANTS``; several are joined by ``+``
    :param env: environment
    :param seed: seed
    :param width: width of all hidden layers but the denoising head's
    :param steps: steps of the environment
    :param eval_every: steps between two evaluations
    :param eval_episodes: episodes of each
    :return: the run
    """
    settings: dict[str, Any] = dict(SHARED)
    policy_kwargs: dict[str, Any] = {"net_arch": [width, width], "kernel": "reference", "actor_batch_norm": False}
    for part in variant.split("+"):
        settings |= VARIANTS[part]
        policy_kwargs |= VARIANTS[part].get("policy_kwargs", {})
    # This class of DiffSAC's, and not DiffSAC itself, so that the critics of the benchmarks are known wherever it runs
    algorithm = settings.pop("algorithm", "benchmarks.algorithms:DiffSAC")
    return Run(
        f"{variant}_w{width}",
        algorithm,
        env,
        steps,
        seed,
        {**settings, "policy_kwargs": policy_kwargs},
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        logged=("diffusion/entropy_bound", "train/ent_coef", "train/critic_loss"),
        measure="sb3_diffusion.analysis.entropy:policy_entropy",
    )


def main() -> None:
    """Train what is missing, or print what there is."""
    parser = make_parser(__doc__, "variants")
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=whole_number(1), default=128)
    parser.add_argument("--steps", type=whole_number(1), default=20_000)
    parser.add_argument("--eval-every", type=whole_number(1), default=5_000)
    parser.add_argument("--eval-episodes", type=whole_number(1), default=5)
    args = parser.parse_args()
    lengths = args.width, args.steps, args.eval_every, args.eval_episodes
    runs = [make_run(name, env, seed, *lengths) for seed in args.seeds for name in args.variants for env in args.envs]
    carry_out(runs, args)


if __name__ == "__main__":
    main()

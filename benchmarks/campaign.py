"""
The campaign: five MuJoCo tasks, 100,000 steps each, this package's algorithms beside those they are made from.

Example::

    python -m benchmarks.campaign --jobs 2          # goes on where it stood
    python -m benchmarks.campaign --ray auto        # on all machines of a Ray cluster
    python -m benchmarks.campaign --status
    python -m benchmarks.campaign --table
    python -m benchmarks.report benchmarks/results/campaign.csv --aggregate
"""

from typing import Any

from benchmarks.command_line import carry_out, make_parser
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.runner import Run

STEPS, EVAL_EVERY, EVAL_EPISODES = 100_000, 10_000, 10
TASKS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5")
WIDE: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}}
CROSSQ_CRITICS: dict[str, Any] = {"critic_type": "crossq", "learning_rate": 1e-3, "policy_delay": 3}

# Name: algorithm, number of seeds, its own settings, tasks. All networks are 256 wide but the critics of the last row, which
# has sb3-contrib's defaults. In the row before it the actor learns as fast as the critics, as CrossQ's does
VARIANTS: dict[str, tuple[str, int, dict[str, Any], tuple[str, ...]]] = {
    "DiffCrossQ": ("sb3_diffusion:DiffCrossQ", 5, {}, TASKS),
    "CrossQ": ("benchmarks.algorithms:NativeCrossQ", 5, WIDE, TASKS),
    "SAC": ("stable_baselines3:SAC", 3, {}, TASKS),
    "TQC": ("sb3_contrib:TQC", 3, {}, TASKS),
    "DiffTQC": ("sb3_diffusion:DiffTQC", 3, {}, TASKS),
    "DiffWPO": ("sb3_diffusion:DiffWPO", 3, CROSSQ_CRITICS, TASKS),
    "DiffCrossQ-slow": ("sb3_diffusion:DiffCrossQ", 3, {"actor_lr_scale": 1.0}, TASKS[:4]),
    "CrossQ-1024": ("benchmarks.algorithms:NativeCrossQ", 2, {}, TASKS[:1]),
}
# Settings of all
SHARED: dict[str, Any] = {"learning_starts": 5000}
# The first two are run before the others of the same seed, the last two after all
FIRST, LAST = tuple(VARIANTS)[:2], tuple(VARIANTS)[-2:]


def make_runs(
    steps: int = STEPS,
    eval_every: int = EVAL_EVERY,
    eval_episodes: int = EVAL_EPISODES,
    envs: list[str] | None = None,
    algos: list[str] | None = None,
    seeds: list[int] | None = None,
) -> list[Run]:
    """
    :param steps: steps of the environment
    :param eval_every: steps between two evaluations
    :param eval_episodes: episodes of each
    :param envs: tasks; all if None, and so are the others
    :param algos: names of variants
    :param seeds: seeds
    :return: the runs in their order, in which the table is useful at every moment: seed by seed, the first two variants on
        all tasks, then the others
    """
    runs = [
        Run(name, algorithm, env, steps, seed, {**SHARED, **own}, eval_every=eval_every, eval_episodes=eval_episodes)
        for name, (algorithm, n_seeds, own, tasks) in VARIANTS.items()
        for seed in range(n_seeds)
        for env in tasks
        if (algos is None or name in algos) and (seeds is None or seed in seeds) and (envs is None or env in envs)
    ]
    return sorted(runs, key=lambda run: (run.name in LAST, run.seed, run.name not in FIRST, TASKS.index(run.env)))


def main() -> None:
    """Run, list, or print what there is."""
    parser = make_parser(__doc__, "campaign")
    parser.add_argument("--steps", type=whole_number(1), default=STEPS)
    parser.add_argument("--eval-every", type=whole_number(1), default=EVAL_EVERY)
    parser.add_argument("--eval-episodes", type=whole_number(1), default=EVAL_EPISODES)
    parser.add_argument("--envs", nargs="+", choices=TASKS)
    parser.add_argument("--algos", nargs="+", choices=VARIANTS)
    parser.add_argument("--seeds", type=seed_number, nargs="+")
    args = parser.parse_args()
    carry_out(make_runs(args.steps, args.eval_every, args.eval_episodes, args.envs, args.algos, args.seeds), args)


if __name__ == "__main__":
    main()

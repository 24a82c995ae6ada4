"""
Variants of DiffCrossQ on equal terms: kernels, estimators of the actor's gradient and numbers of denoising steps; and what
DIME (arXiv 2502.02316), CrossQ (arXiv 1902.05605) and SimBa (arXiv 2410.09754) add to critics and actor, each by itself.
A name like ``posterior+mixed+k16`` joins several.

Each run is written when it ends and skipped when its file is there.

Example::

    python benchmarks/variants.py --envs HalfCheetah-v5 Hopper-v5 --seeds 0 1 2
    python benchmarks/variants.py --table
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from campaign import RESULTS, run_all
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_diffusion import DiffSAC
from sb3_diffusion.analysis.entropy import policy_entropy
from sb3_diffusion.analysis.evaluation import EvaluationPoints, markdown, train_and_evaluate
from sb3_diffusion.common.critics import CRITIC_RULES, CriticRule, CrossQRule


class MeanRule(CrossQRule):
    """The mean of the critics in place of the least, for the target and for the actor, as DIME has it."""

    def value(self, q_values: th.Tensor) -> th.Tensor:
        return q_values.mean(dim=1)

    def next_values(self, next_q_values: th.Tensor) -> th.Tensor:
        return next_q_values.mean(dim=1, keepdim=True)


class ActorMeanRule(CrossQRule):
    """The mean of the critics for the actor alone."""

    def value(self, q_values: th.Tensor) -> th.Tensor:
        return q_values.mean(dim=1)


class LayerNormRule(CriticRule):
    """Layer normalisation after each hidden layer, with target networks, in place of batch renormalisation."""

    betas = CrossQRule.betas

    def make_network(self, **kwargs: Any) -> Any:
        network = super().make_network(**kwargs)
        n_inputs = network.q_networks[0][0].in_features  # type: ignore[union-attr, index]
        for index in range(len(network.q_networks)):  # type: ignore[arg-type]
            layers = create_mlp(n_inputs, 1, kwargs["net_arch"], post_linear_modules=[nn.LayerNorm])
            q_net = nn.Sequential(*layers)
            network.q_networks[index] = q_net  # type: ignore[operator, assignment]
            network.add_module(f"qf{index}", q_net)
        return network


CRITIC_RULES.update({"crossq-mean": MeanRule, "crossq-actor-mean": ActorMeanRule, "layer-norm": LayerNormRule})


def clip_actor_gradient(model: DiffSAC, max_norm: float = 1.0) -> None:
    """
    :param model: model whose actor's gradient is clipped from now on
    :param max_norm: its greatest norm
    """
    parameters = list(model.actor.parameters())
    model.actor.optimizer.register_step_pre_hook(lambda *_: void(th.nn.utils.clip_grad_norm_(parameters, max_norm)))


def void(_: Any) -> None:
    """A hook must return None."""


# Keyword arguments of DiffSAC, on top of the ones that all share
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "actor_batch_norm": {"policy_kwargs": {"actor_batch_norm": True}},
    "mean": {"critic_type": "crossq-mean"},
    "actor_mean": {"critic_type": "crossq-actor-mean"},
    "clip": {},
    "layer_norm": {"critic_type": "layer-norm"},
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
    "slow_actor": {"learning_rate": 3e-4, "qf_learning_rate": 1e-3},
    "zero_entropy": {"target_entropy": 0.0},
}
AFTERWARDS: dict[str, Callable[[DiffSAC], None]] = {"clip": clip_actor_gradient}


def make_model(variant: str, env: str, seed: int, width: int) -> DiffSAC:
    """
    :param variant: key of ``VARIANTS``; several are joined by ``+``
    :param env: environment
    :param seed: seed
    :param width: width of all hidden layers but the denoising head's
    :return: the model to train
    """
    keywords: dict[str, Any] = dict(learning_rate=1e-3, policy_delay=3, critic_type="crossq", learning_starts=5000)
    policy_kwargs: dict[str, Any] = dict(net_arch=[width, width])
    for part in variant.split("+"):
        keywords |= VARIANTS[part]
        policy_kwargs |= VARIANTS[part].get("policy_kwargs", {})
    model = DiffSAC("MlpPolicy", env, seed=seed, device="cpu", **{**keywords, "policy_kwargs": policy_kwargs})
    for part in variant.split("+"):
        if part in AFTERWARDS:
            AFTERWARDS[part](model)
    return model


def train(env: str, seed: int, variant: str, width: int, steps: int, eval_every: int, eval_episodes: int) -> dict[str, Any]:
    """
    :param env: environment
    :param seed: seed
    :param variant: key of ``VARIANTS``; several are joined by ``+``
    :param width: width of all hidden layers but the denoising head's
    :param steps: steps of the environment
    :param eval_every: steps between two evaluations
    :param eval_episodes: episodes of each
    :return: the result
    """
    logged = ("diffusion/entropy_bound", "train/ent_coef", "train/critic_loss")
    callback = partial(EvaluationPoints, env, eval_every, eval_episodes, logged, policy_entropy)
    return train_and_evaluate(partial(make_model, variant, env, seed, width), steps, callback)


def print_table(folder: Path) -> None:
    """
    :param folder: where the results are
    """
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.rglob("*.json")):
        result = json.loads(path.read_text())
        settings = result["settings"]
        runs.setdefault((settings["env"], settings["variant"]), []).append(result)
    rows = []
    for (env, variant), results in runs.items():
        row: dict[str, Any] = {"task": env, "variant": variant, "seeds": len(results)}
        n_points = min(len(result["points"]) for result in results)
        for index in range(n_points):
            returns = [result["points"][index]["return"] for result in results]
            row[f"{results[0]['points'][index]['step']:,.0f}"] = f"{np.mean(returns):.0f}"
        row["each seed at the end"] = ", ".join(f"{result['points'][-1]['return']:.0f}" for result in results)
        for title, key in (("sampled", "stochastic_return"), ("entropy", "entropy"), ("its bound", "entropy_bound")):
            numbers = [result["points"][-1].get(key, np.nan) for result in results]
            row[title] = f"{np.mean(numbers):.{0 if key == 'stochastic_return' else 2}f}"
        rows.append(row)
    print(markdown(rows))


def main() -> None:
    """Train what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--eval-every", type=int, default=5_000)
    parser.add_argument("--eval-episodes", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "variants")
    parser.add_argument("--table", action="store_true", help="print what is there")
    args = parser.parse_args()
    if args.table:
        print_table(args.out)
        return
    tasks = {}
    for seed in args.seeds:
        for variant in args.variants:
            for env in args.envs:
                path = args.out / f"{env}_{variant}_w{args.width}_seed{seed}.json"
                tasks[path] = dict(env=env, seed=seed, variant=variant, width=args.width, steps=args.steps)
                tasks[path] |= dict(eval_every=args.eval_every, eval_episodes=args.eval_episodes)
    run_all(train, tasks, args.jobs)


if __name__ == "__main__":
    main()

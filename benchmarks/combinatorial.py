"""
DiffPPO on MaxCut-v0 and TSP-v0, on held-out instances, beside the product policy of PPO (``--diffusion-steps 1``), networkx's
approximations and the optimum of OR-tools.

Example::

    python -m benchmarks.combinatorial maxcut --size 50 --seeds 0 1 2 --solver-seconds 0.5
    python -m benchmarks.combinatorial tsp --size 20 --seeds 0 1 2
    python -m benchmarks.combinatorial maxcut --size 50 --figure docs/_static/maxcut.png
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffPPO, GraphDenoiser, TourDenoiser
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.results import provenance
from sb3_diffusion.common.envs import MaxCutEnv, TSPEnv
from sb3_diffusion.common.envs.combinatorial import tour_length
from sb3_diffusion.common.envs.graphs import cut_value, one_exchange, random_graph


class Task(NamedTuple):
    """What a task is trained with, where the command line says nothing else."""

    env_class: type[MaxCutEnv] | type[TSPEnv]
    denoiser_class: type[GraphDenoiser] | type[TourDenoiser]
    steps: int
    batch_size: int
    learning_rate: float
    n_layers: int


TASKS = {
    "maxcut": Task(MaxCutEnv, GraphDenoiser, 20_480, 128, 1e-3, 3),
    "tsp": Task(TSPEnv, TourDenoiser, 204_800, 32, 3e-3, 2),
}

FOLDER = Path(__file__).parent / "results" / "discrete"
# Instances that are held out: no environment draws from this seed
HELD_OUT_SEED, SAMPLES = 20_000, 32


def best_local_cut(adjacency: np.ndarray, rng: np.random.Generator, n_starts: int = 1000) -> np.ndarray:
    """
    :param adjacency: adjacency, (n, n)
    :param rng: random number generator
    :param n_starts: random starts
    :return: sides of the best cut that local search comes to from these, (n,)
    """
    cuts = [one_exchange(adjacency, rng.integers(0, 2, len(adjacency))) for _ in range(n_starts)]
    return max(cuts, key=lambda sides: float(cut_value(adjacency, sides)))


def optimal_cut(adjacency: np.ndarray, seconds: float, hint: np.ndarray) -> tuple[float, bool]:
    """
    :param adjacency: adjacency with whole weights, (n, n)
    :param seconds: time limit
    :param hint: sides of a good cut to begin with, (n,)
    :return: the greatest cut found, and whether it is proven to be the optimum
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    sides = [model.new_bool_var(f"side{i}") for i in range(len(adjacency))]
    terms = []
    for i, j in np.argwhere(np.triu(adjacency)):
        cut = model.new_bool_var(f"cut{i}_{j}")
        # Of two equal sides no edge is cut
        model.add(cut <= sides[i] + sides[j])
        model.add(cut <= 2 - sides[i] - sides[j])
        terms.append(int(adjacency[i, j]) * cut)
    model.maximize(sum(terms))
    for side, value in zip(sides, hint, strict=True):
        model.add_hint(side, int(value))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, 1
    status = solver.solve(model)
    return solver.objective_value, status == cp_model.OPTIMAL


def optimal_tour(points: np.ndarray, seconds: float) -> tuple[float, bool]:
    """
    :param points: cities, (n, 2)
    :param seconds: time limit
    :return: length of the shortest tour found, and whether it is proven to be the optimum
    """
    from ortools.sat.python import cp_model

    n, scale = len(points), 10**6
    model = cp_model.CpModel()
    arcs, terms = [], []
    for i, j in ((i, j) for i in range(n) for j in range(n) if i != j):
        used = model.new_bool_var(f"arc{i}_{j}")
        arcs.append((i, j, used))
        terms.append(round(float(np.linalg.norm(points[i] - points[j])) * scale) * used)
    model.add_circuit(arcs)
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = seconds, 1
    status = solver.solve(model)
    return solver.objective_value / scale, status == cp_model.OPTIMAL


def held_out(task: str, size: int, n_instances: int, seconds: float) -> dict[str, Any]:
    """
    :param task: ``"maxcut"`` or ``"tsp"``
    :param size: number of nodes
    :param n_instances: number of instances
    :param seconds: time limit of the exact solver for each
    :return: observations, and the values of the optimum and of networkx's approximations
    """
    rng = np.random.default_rng(HELD_OUT_SEED)
    env: Any = MaxCutEnv(size) if task == "maxcut" else TSPEnv(size)
    observations, found = [], []
    for index in range(n_instances):
        if task == "maxcut":
            instance = random_graph("ba", size, rng)
            observations.append(env.reset(options=dict(graph=instance))[0])
            graph = nx.from_numpy_array(instance)
            one = nx.algorithms.approximation.one_exchange(graph, seed=index)[0]
            local = best_local_cut(instance, np.random.default_rng(index))
            best, proven = optimal_cut(instance, seconds, local)
            best = max(best, float(cut_value(instance, local)))
            found.append(dict(optimum=best, proven=proven, one_exchange=float(one)))
        else:
            instance = rng.random((size, 2)).astype(np.float32)
            observations.append(env.reset(options=dict(nodes=instance))[0])
            distance = np.linalg.norm(instance[:, None] - instance[None], axis=-1)
            graph = nx.from_numpy_array(distance)
            greedy, christofides = (
                tour_length(instance, np.array(solve(graph)[:-1]))
                for solve in (nx.algorithms.approximation.greedy_tsp, nx.algorithms.approximation.christofides)
            )
            best, proven = optimal_tour(instance, seconds)
            found.append(dict(optimum=best, proven=proven, greedy_tsp=greedy, christofides=christofides))
    return {"observations": observations, **{key: [row[key] for row in found] for key in found[0]}}


def sample_values(model: DiffPPO, task: str, observations: list[dict[str, np.ndarray]], n_samples: int) -> np.ndarray:
    """
    :param model: model
    :param task: ``"maxcut"`` or ``"tsp"``
    :param observations: one for each instance
    :param n_samples: number of samples of each
    :return: cut or length of each sample, (instances, samples)
    """
    values: list[Any] = []
    for obs in observations:
        actions, _ = model.predict({key: np.stack([value] * n_samples) for key, value in obs.items()})
        if task == "maxcut":
            values.append(cut_value(obs["adjacency"], actions))
        else:
            values.append([tour_length(obs["nodes"], np.argsort(action, kind="stable")) for action in actions])
    return np.array(values)


def describe(values: np.ndarray, optimum: np.ndarray, larger_is_better: bool) -> dict[str, Any]:
    """
    :param values: value of each sample, (instances, samples)
    :param optimum: optimum of each instance, (instances,)
    :param larger_is_better: whether it is
    :return: ratio to the optimum of the mean sample and of the best of 1, 2, 4 ... samples, in the mean over the instances
    """
    ratio = values / optimum[:, None]
    best = (np.maximum if larger_is_better else np.minimum).accumulate(ratio, axis=1)
    counts = [2**i for i in range(int(np.log2(values.shape[1])) + 1)]
    return dict(mean=float(ratio.mean()), best_of={n: float(best[:, n - 1].mean()) for n in counts})


def plot(args: argparse.Namespace) -> None:
    """
    Draw the results that are there: the best of some samples against their number, in the mean over the seeds.

    :param args: arguments of the command line
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    curves: dict[tuple[int, int], list[list[float]]] = {}
    for path in sorted(args.out.glob(f"{args.task}{args.size}_K*_seed*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for n_steps, found in result["trained"].items():
            key = (result["settings"]["diffusion_steps"], int(n_steps))
            curves.setdefault(key, []).append(list(found["best_of"].values()))
        others = result["others"]
    for (trained, used), values in sorted(curves.items()):
        label = "PPO's product policy (K = 1)" if trained == 1 else f"K = {trained}, {used} steps at evaluation"
        counts = 2 ** np.arange(len(values[0]))
        axes.plot(counts, np.mean(values, axis=0), marker="o", label=f"{label}, {len(values)} seeds")
    for style, (name, ratio) in zip((":", "--"), others.items(), strict=False):
        axes.axhline(ratio, color="grey", linestyle=style, label=name)
    axes.set(xscale="log", xlabel="samples, the best of which counts", ylabel="ratio to the best known")
    axes.set_xticks(counts, map(str, counts))
    axes.legend(fontsize="small")
    figure.savefig(args.figure, dpi=120)


def make_model(args: argparse.Namespace, seed: int) -> DiffPPO:
    """
    :param args: arguments of the command line
    :param seed: seed
    :return: model
    """
    task = TASKS[args.task]
    return DiffPPO(
        "MultiInputPolicy",
        make_vec_env(lambda: task.env_class(args.size), 256),
        n_steps=2,
        batch_size=task.batch_size,
        n_epochs=2,
        learning_rate=lambda progress: args.learning_rate * min(1.0, 2 * progress),
        ent_coef=args.ent_coef,
        diffusion_steps=args.diffusion_steps,
        denoising_steps_per_update=min(3, args.diffusion_steps),
        seed=seed,
        policy_kwargs=dict(denoiser_class=task.denoiser_class, denoiser_kwargs=dict(width=args.width, n_layers=task.n_layers)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--size", type=whole_number(1), default=50, help="number of nodes")
    parser.add_argument(
        "--steps", type=whole_number(1), help="of the environment; if left out 20,480 of maxcut, 204,800 of tsp"
    )
    parser.add_argument("--diffusion-steps", type=whole_number(1), default=6, help="1 is PPO's product policy")
    parser.add_argument("--ent-coef", default="exp_0.003_0.0001")
    parser.add_argument("--learning-rate", type=float, help="if left out 0.001 of maxcut, 0.003 of tsp")
    parser.add_argument("--width", type=whole_number(1), default=32)
    parser.add_argument("--instances", type=whole_number(1), default=20)
    parser.add_argument("--solver-seconds", type=float, default=5.0, help="of OR-tools, for each instance")
    parser.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--figure", type=Path, help="draw the results that are there, and train nothing")
    args = parser.parse_args()
    args.steps = args.steps or TASKS[args.task].steps
    if args.learning_rate is None:
        args.learning_rate = TASKS[args.task].learning_rate
    if args.figure:
        plot(args)
        return
    if find_spec("ortools") is None:
        parser.error("the optimum needs OR-tools: pip install 'sb3-diffusion[solvers]'")
    instances = held_out(args.task, args.size, args.instances, args.solver_seconds)
    observations, optimum = instances.pop("observations"), np.array(instances["optimum"])
    larger = args.task == "maxcut"
    others = {
        key: float((np.array(value) / optimum).mean()) for key, value in instances.items() if key not in ("optimum", "proven")
    }
    print(f"proven {sum(instances['proven'])} of {args.instances}, ratios to the optimum: {others}", flush=True)
    for seed in args.seeds:
        model, start = make_model(args, seed), time.process_time()
        untrained = describe(sample_values(model, args.task, observations, SAMPLES), optimum, larger)
        model.learn(args.steps)
        seconds, by_steps = time.process_time() - start, {}
        k = args.diffusion_steps
        for n_steps in sorted({max(1, k // 2), k, 2 * k, 3 * k} if k > 1 else {1}):
            model.policy.inference_steps = n_steps
            by_steps[n_steps] = describe(sample_values(model, args.task, observations, SAMPLES), optimum, larger)
        result = dict(
            settings={key: value for key, value in vars(args).items() if key not in ("seeds", "out", "figure")},
            seed=seed,
            made_with=provenance(),
            cpu_seconds=seconds,
            **instances,
            others=others,
            untrained=untrained,
            trained=by_steps,
        )
        args.out.mkdir(parents=True, exist_ok=True)
        name = f"{args.task}{args.size}_K{k}_seed{seed}.json"
        (args.out / name).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(name, round(seconds), "untrained", untrained, "trained", by_steps[k], flush=True)


if __name__ == "__main__":
    main()

"""
Move results of the old format, a JSON file each, into the files of their campaigns, and remove them. Files of runs that a
campaign has already stay where they are.

Example::

    python -m benchmarks.collect
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import annealing, learning_curves, ppo_clip_scaling, variants
from sb3_diffusion.analysis.results import add_results, read_details, write_details
from sb3_diffusion.analysis.runner import Run

RESULTS = Path(__file__).parent / "results"
RENAMED = {"entropy_bound": "diffusion/entropy_bound", "ent_coef": "train/ent_coef"}


def curve_run(name: str, settings: dict[str, Any]) -> Run:
    """
    :param name: name of the run in ``learning_curves``
    :param settings: settings of the file
    :return: the run
    """
    settings = dict(settings)
    algo = max((each for each in learning_curves.ALGORITHMS if name.startswith(each)), key=len)
    actor_loss = re.match(rf"{algo}-([a-z_]+)_K", name)
    args = learning_curves.parse_args([])
    for key in ("env", "steps", "eval_every", "eval_episodes", "learning_starts", "diffusion_steps", "n_envs"):
        setattr(args, key, settings.pop(key, getattr(args, key)))
    algo = f"{algo}-{actor_loss[1]}" if actor_loss else algo
    args.settings, args.suffix, seed = {}, "", settings.pop("seed")
    args.suffix = name.removeprefix(learning_curves.make_run(algo, seed, args).name)
    args.settings = settings
    return learning_curves.make_run(algo, seed, args)


def divergence_run(name: str, settings: dict[str, Any]) -> Run:
    """
    :param name: name of the run in ``divergence``
    :param settings: settings of the file
    :return: the run
    """
    settings = dict(settings)
    of_run = {key: settings.pop(key) for key in ("env", "steps", "seed", "eval_every", "eval_episodes")}
    measure = None if of_run["env"] == "HalfCheetah-v5" else "sb3_diffusion.analysis.divergences:least_share"
    return Run(name, "sb3_diffusion:DiffSAC", settings=settings, measure=measure, **of_run)


def convert(path: Path) -> list[tuple[Run, dict[str, Any], list[dict[str, Any]]]]:
    """
    :param path: a file of the old format
    :return: the runs in it, each with what it was made with and its points
    """
    content, campaign = json.loads(path.read_text()), path.relative_to(RESULTS).parts[0]
    settings, name = content["settings"], path.stem.rsplit("_seed", 1)[0]
    if path.stem == "defaults_20000":
        shared = {"env": settings["env"], "steps": 20_000, "eval_every": 20_000, "learning_starts": 100}
        each = [(curve_run("diffcrossq_K5_defaults", {**shared, "seed": run["seed"]}), run) for run in content["runs"]]
        return [(run, content["made_with"], [{"step": 20_000, **point}]) for run, point in each]
    if campaign == "ppo_clip_scaling":
        run = ppo_clip_scaling.make_run(**settings)
        points = [
            {"step": run.steps, **{key: value for key, value in content.items() if key not in ("settings", "made_with")}}
        ]
    elif campaign == "annealing":
        run = annealing.make_run(**settings)
        points = [{RENAMED.get(key, key): value for key, value in point.items()} for point in content["points"]]
    else:
        if campaign.startswith("variants"):
            run = variants.make_run(**settings)
        else:
            run = divergence_run(name, settings) if campaign == "divergence" else curve_run(name, settings)
        points = content["points"]
        points[-1].update(content.get("logged_means", {}))  # means over the whole training
    return [(run, content.get("made_with", {}), points)]


def main() -> None:
    """Convert what is there."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for path in sorted(RESULTS.glob("*/**/*.json")):
        folder = path.relative_to(RESULTS).parts[0]
        out = RESULTS / f"{'learning_curves' if re.search(r'-v[0-9]$', folder) else folder}.csv"
        details = read_details(out)
        if path.stem.startswith("seconds"):
            content = json.loads(path.read_text())
            key, made_with = f"{path.parent.name} seconds per step", content.get("made_with", {})
            write_details(out, {**details, key: {"seconds": content["seconds"], "made_with": made_with}})
        else:
            runs = convert(path)
            if any(run.key in details for run, _, _ in runs):
                print(f"{path} is in {out} already")
                continue
            results = {}
            for run, made_with, points in runs:
                points = [{key: value for key, value in point.items() if key != "seed"} for point in points]
                points = [{**point, "step": int(point["step"])} for point in points]
                results[run.key] = {"run": run.as_json(), "made_with": made_with, "resumed_at": [], "points": points}
            add_results(out, results)
        path.unlink()
    for path in sorted(RESULTS.glob("**/"), reverse=True):
        if path != RESULTS and not any(path.iterdir()):
            path.rmdir()


if __name__ == "__main__":
    main()

"""Makes RL Zoo know this package's algorithms, their hyperparameters and their search spaces."""

import functools
import importlib
import inspect
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import yaml

ALGORITHMS = ("diffcrossq", "diffppo", "diffsac", "difftqc", "diffwpo")
_NAMESPACE = "sb3_diffusion:"
# Arguments that may be schedules, beyond those that the Zoo knows
SCHEDULES = ("qf_learning_rate", "clip_range_first_step")


def hyperparams_path(name: str) -> Path:
    """
    :param name: algorithm, or ``baselines/<algorithm>``
    :return: path of the file of hyperparameters, in the Zoo's format
    :raises ValueError: if there is none of that name
    """
    folder = Path(__file__).parent.parent / "hyperparams"
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yml")}
    if name not in known:
        raise ValueError(f"No hyperparameters for {name!r}: choose one of {', '.join(sorted(known))}")
    return known[name]


def register() -> None:
    """
    Make RL Zoo know this package's algorithms, in a script that calls the Zoo's functions itself. Its command line needs
    no call: there the start-up hook does the same.
    """
    import rl_zoo3.callbacks
    import rl_zoo3.exp_manager
    import rl_zoo3.hyperparams_opt
    import rl_zoo3.utils

    for module in (rl_zoo3.utils, rl_zoo3.hyperparams_opt, rl_zoo3.exp_manager, rl_zoo3.callbacks):
        patch_module(module)


def patch_module(module: ModuleType) -> None:
    """
    Add this package's algorithms to one of the Zoo's modules. What is already there stays.

    :param module: ``rl_zoo3.utils``, ``rl_zoo3.hyperparams_opt``, ``rl_zoo3.exp_manager`` or ``rl_zoo3.callbacks``
    """
    if module.__name__ == "rl_zoo3.utils":
        from sb3_diffusion.saving.safe_load import ALGORITHMS as CLASSES

        for name, algorithm in CLASSES.items():
            module.ALGOS.setdefault(name.lower(), algorithm)
        _add_environment_aliases()
    elif module.__name__ == "rl_zoo3.hyperparams_opt":
        import sb3_diffusion.zoo.hyperparams_opt as hyperparams_opt

        for name in ALGORITHMS:
            module.HYPERPARAMS_SAMPLER.setdefault(name, getattr(hyperparams_opt, f"sample_{name}_params"))
            module.HYPERPARAMS_CONVERTER.setdefault(name, getattr(hyperparams_opt, f"convert_{name}_params"))
    elif module.__name__ == "rl_zoo3.exp_manager":
        _patch_experiment_manager(module.ExperimentManager)
    elif module.__name__ == "rl_zoo3.callbacks":
        _patch_parallel_training(module)


def _add_environment_aliases() -> None:
    """Let the Zoo, which looks for ids in Gymnasium's registry, find ``sb3_diffusion:MultiGoal-v0`` there, too."""
    for env_id, spec in list(gym.registry.items()):
        if str(spec.entry_point).startswith("sb3_diffusion."):
            gym.registry.setdefault(_NAMESPACE + env_id, spec)


def has_entry(config: str | None, env_id: str) -> bool:
    """
    :param config: hyperparameters as the Zoo takes them, if any: a YAML file, a Python file or the name of a module
    :param env_id: id of an environment
    :return: whether they have an entry for it
    """
    path = Path(config or "")
    try:
        if path.suffix in (".yml", ".yaml"):
            entries = yaml.safe_load(path.read_text())
        elif path.suffix == ".py":
            entries = runpy.run_path(str(path)).get("hyperparams")
        else:
            entries = importlib.import_module(config or "").hyperparams
    except (OSError, ImportError, AttributeError, ValueError):
        return False  # the Zoo says what is wrong with it
    return isinstance(entries, dict) and env_id in entries


def _patch_parallel_training(module: Any) -> None:
    """
    Let the Zoo's ``ParallelTrainCallback`` copy a model of this package by its own class, and not by ``SAC`` or ``TQC``.
    """
    callback = module.ParallelTrainCallback
    original = callback._init_callback
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def _init_callback(self: Any) -> None:
        from sb3_diffusion.saving.safe_load import SafeLoadMixin

        stock = module.SAC
        if isinstance(self.model, SafeLoadMixin) and isinstance(self.model, stock):
            module.SAC = type(self.model)
        try:
            original(self)
        finally:
            module.SAC = stock

    callback._init_callback = _init_callback


def _patch_experiment_manager(manager: type) -> None:
    """
    Let the Zoo look for hyperparameters of this package's algorithms here, unless the user names a file, and let it parse all
    of their schedules.
    """
    original = manager.__init__  # type: ignore[misc]
    if hasattr(original, "__wrapped__"):
        return
    signature = inspect.signature(original)
    preprocess_schedules = manager._preprocess_schedules  # type: ignore[attr-defined]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(self, *args, **kwargs).arguments
        if arguments["algo"] in ALGORITHMS and not arguments.get("config"):
            arguments["config"] = str(hyperparams_path(arguments["algo"]))
        # Files of hyperparameters have the bare id, unless the user's has the full one
        env_id = arguments["env_id"]
        if env_id.startswith(_NAMESPACE) and not has_entry(arguments.get("config"), env_id):
            arguments["env_id"] = env_id.removeprefix(_NAMESPACE)
        arguments.pop(next(iter(signature.parameters)))
        original(self, **arguments)

    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        for key in SCHEDULES:
            if hyperparams.get(key) is not None:
                hyperparams[key] = preprocess_schedules({"learning_rate": hyperparams[key]})["learning_rate"]
        return preprocess_schedules(hyperparams)

    manager.__init__ = __init__  # type: ignore[misc]
    manager._preprocess_schedules = staticmethod(_preprocess_schedules)  # type: ignore[attr-defined]

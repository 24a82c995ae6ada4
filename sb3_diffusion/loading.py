"""Loading a model whose class the file says."""

import io
import pathlib
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_diffusion.common.archive import UnsafeModelError, show
from sb3_diffusion.common.safe_load import SafeAlgorithm, load_model, read_model
from sb3_diffusion.diffppo.diffppo import DiffPPO
from sb3_diffusion.diffsac.diffcrossq import DiffCrossQ
from sb3_diffusion.diffsac.diffsac import DiffSAC
from sb3_diffusion.diffsac.difftqc import DiffTQC
from sb3_diffusion.diffwpo.diffwpo import DiffWPO

ALGORITHMS: dict[str, type[SafeAlgorithm]] = {cls.__name__: cls for cls in (DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO)}


def load_safe(
    path: str | pathlib.Path | io.BufferedIOBase,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    force_reset: bool = True,
    **kwargs: Any,
) -> SafeAlgorithm:
    """
    Load a model of any of this package's algorithms, whichever it is, without unpickling anything.

    :param path: path to the file (or a file-like) where to load the agent from
    :param env: the new environment to run the loaded model on (can be None if you only need prediction from a trained model)
    :param device: Device on which the code should run.
    :param custom_objects: settings to replace upon loading, if the file has them
    :param print_system_info: Whether to print system info from the saved model and the current system info
    :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior.
    :param kwargs: extra arguments to change the model when loading; what the file could not store is given here
    :return: the model
    :raises UnsafeModelError: for a file that is broken, crafted, or has what only unpickling could read
    """
    file = read_model(path)
    if file.algorithm not in ALGORITHMS:
        raise UnsafeModelError(f"{file.what} is of a {show.repr(file.algorithm)}: this reads {', '.join(ALGORITHMS)}")
    return load_model(ALGORITHMS[file.algorithm], file, env, device, custom_objects, print_system_info, force_reset, kwargs)

from pathlib import Path

import sb3_diffusion_zoo_hook
from sb3_diffusion.common import envs
from sb3_diffusion.common.action_chunks import ActionChunkWrapper, VecActionChunkWrapper
from sb3_diffusion.common.graph_denoiser import GraphDenoiser
from sb3_diffusion.common.tour_denoiser import TourDenoiser
from sb3_diffusion.common.wrappers import DiffusionMDPWrapper, VecDiffusionMDPWrapper
from sb3_diffusion.diffppo import DiffPPO
from sb3_diffusion.diffppo.policies import DiffusionActorCriticPolicy
from sb3_diffusion.diffsac import DiffCrossQ, DiffSAC, DiffTQC
from sb3_diffusion.diffsac.policies import DiffusionSACPolicy
from sb3_diffusion.diffwpo import DiffWPO
from sb3_diffusion.saving.archive import UnsafeModelError
from sb3_diffusion.saving.checkpoints import CheckpointCallback, resume_latest
from sb3_diffusion.saving.safe_load import load_safe

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()

# Where .pth files are not read, this is what makes RL Zoo know the algorithms
sb3_diffusion_zoo_hook.install()

__all__ = [
    "ActionChunkWrapper",
    "CheckpointCallback",
    "DiffCrossQ",
    "DiffPPO",
    "DiffSAC",
    "DiffTQC",
    "DiffWPO",
    "DiffusionActorCriticPolicy",
    "DiffusionMDPWrapper",
    "DiffusionSACPolicy",
    "GraphDenoiser",
    "TourDenoiser",
    "UnsafeModelError",
    "VecActionChunkWrapper",
    "VecDiffusionMDPWrapper",
    "__version__",
    "envs",
    "load_safe",
    "resume_latest",
]

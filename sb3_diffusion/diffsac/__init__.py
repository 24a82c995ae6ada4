from sb3_diffusion.diffsac.diffcrossq import DiffCrossQ
from sb3_diffusion.diffsac.diffsac import MULTIMODAL_KWARGS, DiffSAC
from sb3_diffusion.diffsac.difftqc import DiffTQC
from sb3_diffusion.diffsac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["MULTIMODAL_KWARGS", "CnnPolicy", "DiffCrossQ", "DiffSAC", "DiffTQC", "MlpPolicy", "MultiInputPolicy"]

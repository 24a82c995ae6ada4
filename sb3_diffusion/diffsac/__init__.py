from sb3_diffusion.diffsac.diffcrossq import DiffCrossQ
from sb3_diffusion.diffsac.diffsac import DiffSAC
from sb3_diffusion.diffsac.difftqc import DiffTQC
from sb3_diffusion.diffsac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffCrossQ", "DiffSAC", "DiffTQC", "MlpPolicy", "MultiInputPolicy"]

from sb3_diffusion.diffsac.diffsac import DiffSAC
from sb3_diffusion.diffsac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffSAC", "MlpPolicy", "MultiInputPolicy"]

from pathlib import Path

from sb3_diffusion.common.policies import DiffusionSACPolicy
from sb3_diffusion.diffsac import DiffSAC

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()

__all__ = ["DiffSAC", "DiffusionSACPolicy", "__version__"]

from sb3_diffusion.zoo.registration import ALGORITHMS, hyperparams_path, patch_module, register

__all__ = ["ALGORITHMS", "hyperparams_path", "patch_module", "register"]

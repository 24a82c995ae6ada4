from sb3_diffusion.imitation.chunks import chunk_demonstrations
from sb3_diffusion.imitation.data import Demonstrations, load_demonstrations
from sb3_diffusion.imitation.pretraining import pretrain
from sb3_diffusion.imitation.recording import record
from sb3_diffusion.imitation.replay import fill_replay_buffer

__all__ = ["Demonstrations", "chunk_demonstrations", "fill_replay_buffer", "load_demonstrations", "pretrain", "record"]

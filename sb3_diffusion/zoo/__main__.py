"""
Print the path of a file of hyperparameters, for the Zoo's ``-conf``.

Example::

    python -m rl_zoo3.train --algo sac --env HalfCheetah-v5 -conf "$(python -m sb3_diffusion.zoo baselines/sac)"
"""

import sys

from sb3_diffusion.zoo.registration import hyperparams_path

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m sb3_diffusion.zoo <algorithm or baselines/algorithm>")
    print(hyperparams_path(sys.argv[1]))

"""
Print the path of a file of hyperparameters, for the Zoo's ``-conf``.

Example::

    python -m rl_zoo3.train --algo sac --env HalfCheetah-v5 -conf "$(python -m sb3_diffusion.zoo baselines/sac)"
"""

import argparse

from sb3_diffusion.zoo.registration import hyperparams_path

if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m sb3_diffusion.zoo", description="Print the path of a file of hyperparameters.")
    parser.add_argument("name", help="algorithm, or baselines/<algorithm>")
    try:
        print(hyperparams_path(parser.parse_args().name))
    except ValueError as error:
        parser.error(str(error))

"""
Memory of one update of DiffSAC against the number of denoising steps.

On the CPU, for each setting a fresh process reports its peak resident memory and the bytes that autograd keeps for the
backward pass; on a CUDA device, the peak of allocated memory.

Example::

    python -m benchmarks.memory
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from sb3_diffusion.analysis.command_line import whole_number

os.environ.setdefault("OMP_NUM_THREADS", "1")

RESULT = Path(__file__).parent / "results" / "memory.json"
MEGABYTE = 2**20


def peak_resident() -> float:
    """
    :return: peak resident memory of this process in megabytes
    """
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count what the process that started this one held, too
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / MEGABYTE
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE  # bytes on macOS


def measure(actor_loss: str, diffusion_steps: int, batch_size: int, device: str) -> dict[str, float]:
    """
    :param actor_loss: estimator of the actor's gradient
    :param diffusion_steps: number of denoising steps K
    :param batch_size: batch size
    :param device: ``"cpu"`` or ``"cuda"``
    :return: megabytes, by what was measured
    """
    import torch as th
    from stable_baselines3.common.logger import Logger

    from sb3_diffusion import DiffSAC

    model = DiffSAC(
        "MlpPolicy",
        "HalfCheetah-v5",
        actor_loss=actor_loss,
        diffusion_steps=diffusion_steps,
        buffer_size=1000,
        learning_starts=1000,
        device=device,
        seed=0,
    )
    model.learn(200)
    model.set_logger(Logger(None, []))
    # What the first update brings once for all: kernels, threads, the optimizers' state
    model.train(1, 16)
    saved = 0

    def pack(tensor: th.Tensor) -> th.Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    if device == "cuda":
        th.cuda.reset_peak_memory_stats()
        model.train(1, batch_size)
        return {"peak allocated": th.cuda.max_memory_allocated() / MEGABYTE}
    model.train(1, batch_size)
    peak = peak_resident()
    with th.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train(1, batch_size)
    return {"peak resident": peak, "saved for backward": saved / MEGABYTE}


def main() -> None:
    """Measure each setting in processes of its own and print the table, with ratios to the first number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actor-losses", nargs="+", default=["adjoint", "diffusion_value", "pathwise"])
    parser.add_argument("--diffusion-steps", type=whole_number(1), nargs="+", default=[4, 64])
    parser.add_argument("--batch-size", type=whole_number(1), default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--repetitions", type=whole_number(1), default=3, help="processes for each setting, of which the least counts"
    )
    parser.add_argument("--one", action="store_true", help="measure the first setting in this process and print it as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.actor_losses[0], args.diffusion_steps[0], args.batch_size, args.device)))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    print("| | K | what | MB | ratio |\n| --- | --- | --- | --- | --- |")
    for actor_loss in args.actor_losses:
        for steps in args.diffusion_steps:
            command = [sys.executable, __file__, "--one", "--actor-losses", actor_loss, "--diffusion-steps", str(steps)]
            command += ["--batch-size", str(args.batch_size), "--device", args.device]
            measured = []
            for _ in range(args.repetitions):
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                measured.append(json.loads(output.splitlines()[-1]))
            results.setdefault(actor_loss, {})[str(steps)] = {key: min(each[key] for each in measured) for key in measured[0]}
            first = results[actor_loss][str(args.diffusion_steps[0])]
            for what, value in results[actor_loss][str(steps)].items():
                print(f"| {actor_loss} | {steps} | {what} | {value:.1f} | {value / first[what]:.3f} |", flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(
        json.dumps({"batch_size": args.batch_size, "device": args.device, "megabytes": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()

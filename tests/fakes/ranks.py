"""Two processes as torchrun starts them, but without its own watch over them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRETRAIN = """
import sys, warnings
from fakes import duel_recipe
from fakes.training_fakes import FakeCohort
from training.config import resolve
from training.train import pretrain

warnings.simplefilter("ignore")
out, recipe, *sets = sys.argv[1:]
pretrain(FakeCohort(), resolve(recipe, "micro", sets=sets), out)
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(script: str, *args: Any, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """The processes of all ranks, each running `script` with `args`; they find each other by the environment."""
    known = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    known |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, args)],
            env={**known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def end(processes: list[subprocess.Popen[str]], timeout: float = 300) -> list[tuple[int, str, str]]:
    """Return code, stdout and the end of stderr of each; whoever does not end in time is killed, and the call fails."""
    ended = []
    try:
        for process in processes:
            said, error = process.communicate(timeout=timeout)
            ended.append((process.returncode, said, error[-3000:]))
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate(timeout=30)
    return ended

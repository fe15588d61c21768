"""Compare the speed of the environment in two checkouts that take turns on one machine.

    python tools/compare_speed.py b268c23 .                       # a revision with the working tree
    python tools/compare_speed.py ../before ../after --only digits-host-16 --rounds 5

OLD and NEW are folders with a checkout, or revisions of this repository. For each case, each checkout has one process
with its packages and the libraries of this interpreter. The processes take turns: both play the same number of steps
with the same actions, and the order changes from round to round. The cases are

    digits-host-16      Esper-Digits-v0 with 16 networks that wait
    digits-growing-16   Esper-Digits-v0 with 16 networks under random legal actions
    digits-growing-32   the same with 32 networks
    digits-planted-16   Esper-Digits-v0 with 16 networks that wait, with a conv_light seed in every slot
    digits-training-16  FactoredRecurrentPPO learns on Esper-Digits-v0 with 16 networks
    cifar-host-1        Esper-CIFAR-v0 on procedural data, with one network that waits
    cifar-host-4        the same with four networks

A step of a vector of n networks counts as n environment steps. Speeds are medians over rounds. NEW / OLD is the median
of the ratios of each round, with their range; above 1, NEW is faster. Run it on an idle machine. Exit code 0 when done,
2 for bad input or a checkout that fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import IO, Any, NamedTuple

from compare_checkouts import ComparisonError, checkout, environment, require_packages


class Case(NamedTuple):
    """A vector environment and its policy."""

    env_id: str
    networks: int
    workload: str  # "wait", "planted", "growing" or "training"
    settings: dict[str, Any]


CIFAR = {"dataset": "procedural"}
CASES = {
    "digits-host-16": Case("Esper-Digits-v0", 16, "wait", {}),
    "digits-growing-16": Case("Esper-Digits-v0", 16, "growing", {}),
    "digits-growing-32": Case("Esper-Digits-v0", 32, "growing", {}),
    "digits-planted-16": Case("Esper-Digits-v0", 16, "planted", {}),
    "digits-training-16": Case("Esper-Digits-v0", 16, "training", {}),
    "cifar-host-1": Case("Esper-CIFAR-v0", 1, "wait", CIFAR),
    "cifar-host-4": Case("Esper-CIFAR-v0", 4, "wait", CIFAR),
}


def play(case: Case, orders: IO[str], answers: IO[str]) -> None:
    """Play the number of steps in each line of ``orders``; answer with the seconds they took."""
    import esper_env  # noqa: F401
    import gymnasium
    import numpy as np

    if case.workload == "training":
        learn(case, orders, answers)
        return
    envs = gymnasium.make_vec(case.env_id, num_envs=case.networks, autoreset_mode="SameStep", **case.settings)
    vector: Any = envs.unwrapped
    planted = dict.fromkeys(vector.slot_ids, "conv_light") if case.workload == "planted" else {}
    envs.reset(seed=0, options={"topology": planted} if planted else None)
    rng, wait = np.random.default_rng(0), np.zeros((case.networks, 8), dtype=np.int64)
    for order in orders:
        started = time.perf_counter()
        for _ in range(int(order)):
            *_, ended, _, _ = envs.step(vector.sample_valid_actions(rng) if case.workload == "growing" else wait)
            if planted and ended.any():
                envs.reset(options={"topology": planted})
        print(time.perf_counter() - started, file=answers, flush=True)
    envs.close()


def learn(case: Case, orders: IO[str], answers: IO[str]) -> None:
    """Train for the number of steps in each line of ``orders``, rounded up to whole rollouts."""
    from esper_agent import FactoredRecurrentPPO, make_sb3_env

    env = make_sb3_env(case.env_id, num_envs=case.networks, seed=0, **case.settings)
    model = FactoredRecurrentPPO("FactoredLstmPolicy", env, seed=0, device="cpu")
    for order in orders:
        started = time.perf_counter()
        done = model.num_timesteps
        model.learn(int(order) * case.networks, reset_num_timesteps=False)
        played = (model.num_timesteps - done) / case.networks
        print((time.perf_counter() - started) * int(order) / played, file=answers, flush=True)
    env.close()


class Player:
    """The process of one checkout."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self._process = folder, process

    def seconds_per_step(self, steps: int) -> float:
        """Play a turn. Raises ``ComparisonError`` if the process has ended."""
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        try:
            print(steps, file=orders, flush=True)
            return float(answers.readline()) / steps
        except (OSError, ValueError):
            raise ComparisonError(f"the environment of {self.folder} failed; see the message above") from None


@contextmanager
def player(folder: Path, name: str, threads: int) -> Iterator[Player]:
    """Start the process of a checkout for a case; it ends with the context."""
    command = [sys.executable, str(Path(__file__).resolve()), "--play", str(folder), name]
    process = subprocess.Popen(
        command, env=environment(folder, threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Player(folder, process)
    finally:
        process.kill()
        with suppress(BrokenPipeError):  # an order that the process never read
            process.communicate()


def race(old: Player, new: Player, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds per step of both players, by round."""
    for each in (old, new):
        each.seconds_per_step(2)  # warm-up
    steps = max(1, round(seconds / max(each.seconds_per_step(1) for each in (old, new))))
    times = []
    for index in range(rounds):
        order = (old, new) if index % 2 == 0 else (new, old)
        own = {each: each.seconds_per_step(steps) for each in order}
        times.append((own[old], own[new]))
    return times


def report(name: str, networks: int, times: Sequence[tuple[float, float]]) -> str:
    """One line of the result."""
    ratios = [old / new for old, new in times]
    speeds = [networks / median(own) for own in zip(*times, strict=True)]
    spread = f"[{min(ratios):.3f}, {max(ratios):.3f}]"
    return f"{name:20}{speeds[0]:12,.1f}{speeds[1]:12,.1f}{median(ratios):12.3f}  {spread}"


def main(arguments: Sequence[str]) -> int:
    """Race the checkouts; see the module."""
    if arguments[:1] == ["--play"]:
        require_packages(arguments[1])
        play(CASES[arguments[2]], sys.stdin, sys.stdout)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases to play")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each checkout, default 15")
    parser.add_argument("--seconds", type=float, default=2.0, help="approximate length of a turn, default 2")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="intra-op threads, default all cores")
    options = parser.parse_args(arguments)
    for name in ("rounds", "seconds", "threads"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} is {getattr(options, name)}; expected a positive number")
    print(f"{'environment steps/s':20}{'OLD':>12}{'NEW':>12}{'NEW / OLD':>12}  range")
    with checkout(options.old) as old, checkout(options.new) as new:
        for name in options.only:
            with ExitStack() as players:
                first, second = (players.enter_context(player(folder, name, options.threads)) for folder in (old, new))
                times = race(first, second, options.rounds, options.seconds)
            print(report(name, CASES[name].networks, times), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

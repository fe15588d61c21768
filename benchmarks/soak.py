"""Soak test: a vector of growing networks under random legal and illegal actions, with injected faults.

    python benchmarks/soak.py --minutes 60 --out benchmarks/results/soak-digits-cpu.json

Every step is checked: observations and rewards are finite and inside their spaces, and an action acts as WAIT exactly
where the masks exclude it. Faults are NaN weights, infinite buffers, a loss explosion and a collapse to guessing. They
enter through the environment's state. The same step runs without them first: other networks must be equal bit for bit,
and a network that was rolled back must equal its snapshot, with zero momentum and no live seed. Sometimes a stretch of
steps is played twice from one state, the second time from files, and compared.

Exit codes: 0 done, 1 mismatches, an error of the environment or an unwritable file, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from esper_agent.cli.main import FAILED, OK
from esper_agent.cli.progress import say
from esper_agent.cli.script import check_out, origin, run_script, write_json
from esper_agent.evaluation.tables import print_table
from esper_agent.settings.named_values import ConfigError, parse_env_settings
from esper_agent.vectors import make_vector
from esper_env import EsperVectorEnv
from esper_env.checks import POSITIVE, SEED, SHARE, Interval, check
from esper_env.rules import Op, Stage
from esper_env.telemetry import JsonlSink
from esper_env.telemetry.memory import resident_mib
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from soaking.checks import check_rolled_back, check_step, differences
from soaking.faults import FAULTS, inject
from tqdm import tqdm

#: Share of the soak after which memory readings begin; by then everything has been allocated.
WARM = 0.2
#: Steps of a stretch that is played twice.
STRETCH = 3


@dataclass(frozen=True)
class SoakSettings:
    """Soak the environment."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    minutes: Annotated[float, POSITIVE] = 10.0
    """Duration."""
    steps: Annotated[int | None, tyro.conf.DisallowNone, POSITIVE] = None
    """Duration in steps of the vector, instead of minutes."""
    env: str = "Esper-Digits-v0"
    """Task."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example isolation=straight_through."""
    num_envs: Annotated[int, Interval(2)] = 16
    """Number of networks; faults break some and leave at least one."""
    seed: Annotated[int, SEED] = 0
    """Seed of the environments, the actions and the faults."""
    illegal_share: Annotated[float, SHARE] = 0.2
    """Share of the actions that ignore the masks."""
    fault_share: Annotated[float, SHARE] = 0.05
    """Share of the steps with faults."""
    replay_share: Annotated[float, SHARE] = 0.02
    """Share of the steps after which a stretch is played twice."""


class Soak:
    """A soak, with its results in ``counts``, ``mismatches`` and ``memory`` (MiB)."""

    def __init__(self, vector: Any, settings: SoakSettings, folder: Path) -> None:
        self.vector, self.settings, self.folder = vector, settings, folder
        self.counts: Counter[str] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.memory: list[float] = []
        self._rng = np.random.default_rng(settings.seed)
        self._observation, _ = vector.reset(seed=settings.seed)

    def run(self, bar: tqdm) -> None:
        """Play for the steps, or the minutes, of the settings."""
        begin, steps, share = time.monotonic(), 0, 0.0
        while share < 1:
            actions = self._actions()
            if self._rng.random() < self.settings.fault_share:
                self._step_with_faults(actions)
            else:
                self._step(actions)
            if self._rng.random() < self.settings.replay_share:
                self._replay()
            steps += 1
            elapsed = time.monotonic() - begin
            share = steps / self.settings.steps if self.settings.steps else elapsed / (60 * self.settings.minutes)
            if share >= WARM:
                self.memory.append(resident_mib() or float("nan"))
            found = sum(self.mismatches.values())
            bar.set_postfix(steps=self.counts["steps"], mismatches=found, refresh=False)
            bar.update(min(round(share * bar.total), bar.total) - bar.n)

    def _actions(self) -> np.ndarray:
        """(N, 8) legal actions, some of them replaced by samples of the action space."""
        legal = self.vector.sample_valid_actions(self._rng)
        anything = self._rng.integers(0, self.vector.single_action_space.nvec, size=legal.shape)
        replaced = self._rng.random(len(legal)) < self.settings.illegal_share
        return np.where(replaced[:, None], anything, legal)

    def _step(self, actions: np.ndarray) -> tuple[Any, ...]:
        before = self._observation
        result = self.vector.step(actions)
        self._observation, _, terminated, truncated, infos = result
        self.mismatches.update(check_step(self.vector, before, actions, result))
        last = infos.get("final_info", {})
        self.counts["steps"] += len(actions)
        self.counts["episodes"] += int((terminated | truncated).sum())
        for name, key, wanted in (("rollbacks", "rollback", True), ("illegal actions", "action_valid", False)):
            for part in (infos, last):
                if key in part:
                    self.counts[name] += int((part[f"_{key}"] & (part[key] == wanted)).sum())
        return result

    def _step_with_faults(self, actions: np.ndarray) -> None:
        """Play a step without faults and, from the same state, with faults."""
        state = self.vector.get_state()
        sound, sound_after = self.vector.step(actions), self.vector.get_state()
        count = int(self._rng.integers(1, self.settings.num_envs))
        rows = np.sort(self._rng.choice(self.settings.num_envs, size=min(count, 3), replace=False))
        kinds = [FAULTS[self._rng.integers(len(FAULTS))] for _ in rows]
        slots = [inject(kind, state, row, self._rng) for row, kind in zip(rows.tolist(), kinds, strict=True)]
        self.counts.update(f"fault: {kind}" for kind in kinds)
        self.vector.set_state(state)
        faulty = self._step(actions)
        self.mismatches["other networks after a fault"] += differences(sound, faulty, ignored=rows)
        _, _, terminated, truncated, infos = faulty
        after = self.vector.get_state()
        hosts = (each["population"]["host"] for each in (sound_after, after))
        self.mismatches["other networks after a fault"] += differences(*hosts, ignored=rows)
        for row, kind, slot in zip(rows.tolist(), kinds, slots, strict=True):
            ended = terminated[row] or truncated[row]
            info = infos["final_info"] if ended else infos
            # An immediate prune removes the fault together with the seed.
            pruned = slot is not None and info["slot_stage"][row, slot] == Stage.PRUNED and info["op"][row] == Op.PRUNE
            if kind.must_be_caught and not (info["rollback"][row] or pruned):
                self.mismatches["a fault that was not caught"] += 1
            if info["rollback"][row]:
                self.counts["faults rolled back at once"] += 1
            if info["rollback"][row] and not ended:
                self.mismatches.update(check_rolled_back(after, row))

    def _replay(self) -> None:
        """Play a stretch of steps twice from one state, the second time from files."""
        self.vector.save_state(self.folder / "state")
        actions = [self._actions() for _ in range(STRETCH)]
        first = [self.vector.step(each) for each in actions]
        self.vector.load_state(self.folder / "state")
        again = [self._step(each) for each in actions]
        self.counts["stretches played twice"] += 1
        for one, other in zip(first, again, strict=True):
            self.mismatches["a stretch that was played twice"] += differences(one, other)

    def readings(self, count: int = 20) -> list[float]:
        """``count`` memory readings in MiB, evenly spaced over the soak; none if it failed early."""
        count = count if self.memory else 0
        return [self.memory[index] for index in np.linspace(0, len(self.memory) - 1, count).astype(int)]

    @property
    def growth(self) -> float:
        """Growth of memory in MiB: median of the last tenth of the readings minus that of the first; NaN for none."""
        if not self.memory:
            return float("nan")
        tenth = max(1, len(self.memory) // 10)
        return float(np.median(self.memory[-tenth:]) - np.median(self.memory[:tenth]))


@contextmanager
def open_soak(settings: SoakSettings) -> Iterator[Soak]:
    """A soak of a new environment, which writes its events to a temporary folder."""
    env_kwargs = parse_env_settings(settings.env_settings)
    envs = make_vector(settings.env, settings.num_envs, AutoresetMode.SAME_STEP, **env_kwargs)
    with tempfile.TemporaryDirectory() as folder:
        try:
            vector: Any = envs.unwrapped
            if not isinstance(vector, EsperVectorEnv):
                raise ConfigError(f"env is {settings.env}; expected a task of Esper, such as Esper-Digits-v0")
            vector.telemetry.add_sink(JsonlSink(Path(folder) / "events", keep=2))
            yield Soak(vector, settings, Path(folder))
            vector.telemetry.close()
        finally:
            envs.close()


def measure(settings: SoakSettings, flags: Sequence[str], console: Console) -> int:
    """Soak, write the file and print the table; return the exit code."""
    check(settings)
    check_out(settings.out)
    in_steps = settings.steps is not None
    total, unit = (settings.steps, "step") if in_steps else (round(60 * settings.minutes), "s")
    failure = ""
    with open_soak(settings) as soak, tqdm(total=total, unit=unit, desc=settings.env, mininterval=1) as bar:
        begin = time.monotonic()
        try:
            soak.run(bar)
        except Exception as error:  # a failed environment is a result
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        elapsed = time.monotonic() - begin
    mismatches = {name: count for name, count in soak.mismatches.items() if count}
    faults = sum(count for name, count in soak.counts.items() if name.startswith("fault: "))
    content = {
        **origin("benchmarks/soak.py", flags),
        "env": settings.env,
        "num_envs": settings.num_envs,
        "seconds": elapsed,
        "counts": dict(sorted(soak.counts.items())),
        "faults": faults,
        "mismatches": mismatches,
        "failure": failure or None,
        "memory_mib": {"growth": soak.growth, "readings": [round(mib, 1) for mib in soak.readings()]},
    }
    write_json(content, settings.out)
    table = Table(title=f"{settings.env}, {settings.num_envs} networks, {elapsed / 60:.1f} minutes")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in sorted(soak.counts.items()):
        table.add_row(name, f"{count:,}")
    table.add_row("memory growth, MiB", f"{soak.growth:+.1f}")
    table.add_row("mismatches", f"{sum(mismatches.values()):,}")
    print_table(console, table)
    if failure:
        say(console, f"FAILED after {soak.counts['steps']:,} network steps: {failure}")
    for name, count in mismatches.items():
        say(console, f"MISMATCH {name}: {count}")
    say(console, f"Written to {settings.out}")
    return FAILED if mismatches or failure else OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    return run_script(SoakSettings, measure, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main())

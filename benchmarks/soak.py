"""Run a vector of growing networks for a while under random actions, legal and not, with faults put into it.

    python benchmarks/soak.py --minutes 60 --out benchmarks/results/soak-digits-cpu.json

Every step is checked: what is observed is finite and inside its space, and an action acts as WAIT exactly where the
masks exclude it. Faults (a weight that is not a number, an infinite buffer, a loss explosion, a collapse to guessing)
are put into some networks through the environment's state. The same step is played without them first: the other
networks must come out the same bit for bit, and a network that was rolled back must equal its snapshot, at rest,
without live seeds. Now and then a stretch of steps is played twice from one state, through files too, and compared.

Exit codes: 0 done, 1 something did not match or a file could not be written, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from esper_agent.cli.info import machine
from esper_agent.cli.main import FAILED, OK, exit_code
from esper_agent.settings.config_file import ConfigError, parse_env_settings
from esper_agent.training.run_folder import package_versions
from esper_agent.vectors import make_vector
from esper_env.persistence import atomic
from esper_env.rules.heads import Op
from esper_env.rules.stages import Stage
from esper_env.telemetry import JsonlSink
from esper_env.telemetry.memory import resident_mib
from esper_env.vector_env import EsperVectorEnv
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from soaking.checks import check_rescued, check_step, differences
from soaking.faults import FAULTS, inject
from tqdm import tqdm

#: Share of the time after which memory is first looked at: by then everything has been allocated.
WARM = 0.2
#: Steps of a stretch that is played twice.
STRETCH = 3


@dataclass(frozen=True)
class SoakSettings:
    """Soak the environment."""

    out: Path
    """JSON file of the results; an existing one is replaced."""
    minutes: float = 10.0
    """How long."""
    env: str = "Esper-Digits-v0"
    """Task."""
    env_settings: tuple[str, ...] = ()
    """Settings of the environment as NAME=VALUE, for example isolation=straight_through."""
    num_envs: int = 16
    """Networks."""
    seed: int = 0
    """Of the environments, the actions and the faults."""
    illegal_share: float = 0.2
    """Share of the actions that are drawn without regard to the masks."""
    fault_share: float = 0.05
    """Share of the steps in which faults are put in."""
    replay_share: float = 0.02
    """Share of the steps after which a stretch is played twice."""

    def checked(self) -> SoakSettings:
        """These settings, or a ``ConfigError``."""
        if not 0 < self.minutes < float("inf"):
            raise ConfigError(f"minutes is {self.minutes}; expected a positive number")
        if self.num_envs < 2:
            raise ConfigError(f"num_envs is {self.num_envs}; expected at least 2: one has a fault, another has none")
        for name in ("illegal_share", "fault_share", "replay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a share from 0 to 1")
        if self.out.is_dir():
            raise ConfigError(f"out is {self.out}, a folder; expected the name of a file")
        return self


class Soak:
    """One soak: plays, and keeps count in ``counts`` and ``mismatches``."""

    def __init__(self, vector: Any, settings: SoakSettings, folder: Path) -> None:
        self.vector, self.settings, self.folder = vector, settings, folder
        self.counts: Counter[str] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.memory: list[float] = []
        self._rng = np.random.default_rng(settings.seed)
        self._observation, _ = vector.reset(seed=settings.seed)

    def run(self, seconds: float, bar: tqdm) -> None:
        """Play for so long."""
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            actions = self._actions()
            if self._rng.random() < self.settings.fault_share:
                self._step_with_faults(actions)
            else:
                self._step(actions)
            if self._rng.random() < self.settings.replay_share:
                self._replay()
            if elapsed >= WARM * seconds:
                self.memory.append(resident_mib() or float("nan"))
            found = sum(self.mismatches.values())
            bar.set_postfix(steps=self.counts["steps"], mismatches=found, refresh=False)
            bar.update(min(round(elapsed), bar.total) - bar.n)

    def _actions(self) -> np.ndarray:
        """(N, 8) legal actions, some of them replaced by whatever the action space has."""
        legal = self.vector.sample_valid_actions(self._rng)
        anything = self._rng.integers(0, self.vector.single_action_space.nvec, size=legal.shape)
        anyhow = self._rng.random(len(legal)) < self.settings.illegal_share
        return np.where(anyhow[:, None], anything, legal)

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
        """The same step without faults and with them."""
        state = self.vector.get_state()
        sound, sound_after = self.vector.step(actions), self.vector.get_state()
        count = int(self._rng.integers(1, self.settings.num_envs))
        rows = np.sort(self._rng.choice(self.settings.num_envs, size=min(count, 3), replace=False))
        kinds = [FAULTS[self._rng.integers(len(FAULTS))] for _ in rows]
        slots = [inject(kind, state, row, self._rng) for row, kind in zip(rows.tolist(), kinds, strict=True)]
        self.counts.update(f"fault: {kind}" for kind in kinds)
        self.vector.set_state(state)
        faulty = self._step(actions)
        self.mismatches["other networks after a fault"] += differences(sound, faulty, besides=rows)
        _, _, terminated, truncated, infos = faulty
        after = self.vector.get_state()
        hosts = (each["population"]["host"] for each in (sound_after, after))
        self.mismatches["other networks after a fault"] += differences(*hosts, besides=rows)
        for row, kind, slot in zip(rows.tolist(), kinds, slots, strict=True):
            ended = terminated[row] or truncated[row]
            told = infos["final_info"] if ended else infos
            # A prune at once takes the fault away with the seed.
            cured = slot is not None and told["slot_stage"][row, slot] == Stage.PRUNED and told["op"][row] == Op.PRUNE
            if kind.must_be_caught and not (told["rollback"][row] or cured):
                self.mismatches["a fault that was not caught"] += 1
            if told["rollback"][row]:
                self.counts["faults rolled back at once"] += 1
            if told["rollback"][row] and not ended:
                self.mismatches.update(check_rescued(after, row))

    def _replay(self) -> None:
        """A stretch of steps twice from one state, the second time from files."""
        self.vector.save_state(self.folder / "state")
        actions = [self._actions() for _ in range(STRETCH)]
        first = [self.vector.step(each) for each in actions]
        self.vector.load_state(self.folder / "state")
        again = [self._step(each) for each in actions]
        self.counts["stretches played twice"] += 1
        for one, other in zip(first, again, strict=True):
            self.mismatches["a stretch that was played twice"] += differences(one, other)

    def readings(self, count: int = 20) -> list[float]:
        """MiB of resident memory, evenly over the time."""
        return [self.memory[index] for index in np.linspace(0, len(self.memory) - 1, count).astype(int)]

    @property
    def growth(self) -> float:
        """MiB by which the last tenth of the memory readings lies above the first tenth, by medians."""
        tenth = max(1, len(self.memory) // 10)
        return float(np.median(self.memory[-tenth:]) - np.median(self.memory[:tenth]))


@contextmanager
def soaked(settings: SoakSettings) -> Iterator[Soak]:
    """A soak on a fresh environment that writes its events to a temporary folder."""
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


def measure(settings: SoakSettings, command: Sequence[str], console: Console) -> int:
    """Soak, write the file, print the table; the exit code."""
    seconds = 60 * settings.checked().minutes
    with soaked(settings) as soak, tqdm(total=round(seconds), unit="s", desc=settings.env, mininterval=1) as bar:
        begin = time.monotonic()
        soak.run(seconds, bar)
        elapsed = time.monotonic() - begin
    mismatches = {name: count for name, count in soak.mismatches.items() if count}
    faults = sum(count for name, count in soak.counts.items() if name.startswith("fault: "))
    content = {
        "command": shlex.join(["python", "benchmarks/soak.py", *command]),
        "env": settings.env,
        "num_envs": settings.num_envs,
        "seconds": elapsed,
        "counts": dict(sorted(soak.counts.items())),
        "faults": faults,
        "mismatches": mismatches,
        "memory_mib": {"growth": soak.growth, "readings": [round(mib, 1) for mib in soak.readings()]},
        "machine": machine(),
        "versions": package_versions(),
    }
    atomic.write_text(settings.out, json.dumps(content, indent=2) + "\n")
    table = Table(title=f"{settings.env}, {settings.num_envs} networks, {elapsed / 60:.1f} minutes")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in sorted(soak.counts.items()):
        table.add_row(name, f"{count:,}")
    table.add_row("memory growth, MiB", f"{soak.growth:+.1f}")
    table.add_row("mismatches", f"{sum(mismatches.values()):,}")
    console.print(table)
    for name, count in mismatches.items():
        console.print(f"MISMATCH {name}: {count}")
    console.print(f"Written to {settings.out}")
    return FAILED if mismatches else OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def run(console: Console) -> int:
        return measure(tyro.cli(SoakSettings, description=__doc__, args=given), given, console)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())

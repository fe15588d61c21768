"""Scenarios of ``compare_checkouts.py``, run in a child process that imports one checkout's packages.

    python tools/checkout_scenarios.py FOLDER SCENARIO RESULT [IDS ...]

plays a scenario with the packages of the checkout in FOLDER and saves every value by name to the npz file RESULT.
"""

from __future__ import annotations

import csv
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare_checkouts import ComparisonError, require_packages
from numpy.typing import NDArray

Record = dict[str, NDArray[Any]]


class ScenarioError(ComparisonError):
    """A scenario failed."""


#: Short episodes on data that need no download.
SMALL = {"horizon": 26, "batches_per_step": 1, "batch_size": 8}
DATASETS = {"CIFAR": "procedural", "TinyStories": "grammar"}
#: (form, isolation, precision). Every pair of values of two settings occurs in some row.
FORMS = (
    ("single", "shadow", "float32"),
    ("vector", "straight_through", "float32"),
    ("vector", "shadow", "bfloat16"),
    ("single", "straight_through", "bfloat16"),
)
WAIT, GERMINATE, RETARGET, PRUNE, FOSSILIZE, ADVANCE = range(6)
ROLLBACK_STEP, STEPS = 20, 32


def script(blueprints: Sequence[int]) -> list[list[int]]:
    """(STEPS, 8) actions: slot, blueprint, style, tempo, alpha target, alpha speed, alpha curve, op."""
    first, second = (int(blueprint) for blueprint in blueprints[:2])
    wait = [0, 0, 0, 0, 0, 0, 0, WAIT]
    life = [
        [0, first, 0, 0, 2, 1, 0, GERMINATE],
        [1, second, 3, 0, 2, 1, 0, GERMINATE],
        [0, 0, 0, 0, 0, 0, 0, ADVANCE],  # into TRAINING
        [1, 0, 0, 0, 0, 0, 0, ADVANCE],
        *[wait] * 2,
        [0, 0, 0, 0, 0, 0, 0, ADVANCE],  # into BLENDING, for three epochs
        [1, 0, 0, 0, 0, 0, 0, ADVANCE],
        *[wait] * 2,
        [0, 0, 0, 0, 0, 0, 0, ADVANCE],  # into HOLDING
        [0, 0, 1, 0, 0, 1, 1, RETARGET],  # to half within three epochs, under another operator
        [1, 0, 0, 0, 0, 0, 0, PRUNE],  # at once
        *[wait] * 2,
        [0, 0, 1, 0, 2, 0, 0, RETARGET],  # back to full at once
        [0, 0, 0, 0, 0, 0, 0, ADVANCE],
        [0, 0, 0, 0, 0, 0, 0, FOSSILIZE],
        *[wait] * 2,  # the network breaks before the second of them
        [1, first, 2, 1, 2, 1, 0, GERMINATE],
    ]
    return life + [wait] * (STEPS - len(life))


def play_environments(ids: Sequence[str]) -> Record:
    """Every id in every form."""
    import esper_env

    record: Record = {}
    for env_id in ids or sorted(esper_env.ENV_IDS):
        for form in FORMS:
            for name, value in play_life(env_id, *form)[0].items():
                record[f"{env_id} {' '.join(form)}: {name}"] = value
    return record


def play_telemetry(ids: Sequence[str]) -> Record:
    """The events of a vector in full detail."""
    record: Record = {}
    for env_id in ids or ["Esper-Digits-v0", "Esper-Text-v0"]:
        _, events = play_life(env_id, *FORMS[1], listen=True)
        if len(events) < STEPS:
            raise ScenarioError(f"{env_id} emitted {len(events)} events in {STEPS} steps")
        record |= {f"{env_id}: event {index}": np.array(repr(event)) for index, event in enumerate(events)}
    return record


def play_life(
    env_id: str, form: str, isolation: str, precision: str, listen: bool = False
) -> tuple[Record, list[tuple[Any, ...]]]:
    """Play the script in one environment; environment i of a vector runs i steps behind.

    Returns the record and, if ``listen``, the events.
    """
    import esper_env  # noqa: F401
    import gymnasium
    from esper_env.telemetry import Detail, MemorySink

    single = form == "single"
    settings: dict[str, Any] = SMALL | {"isolation": isolation, "precision": precision, "render_mode": "ansi"}
    dataset = DATASETS.get(env_id.split("-")[1])
    settings |= {"dataset": dataset} if dataset else {}
    count = 1 if single else 3
    if single:
        made: Any = gymnasium.make(env_id, **settings)
    else:
        made = gymnasium.make_vec(env_id, num_envs=count, autoreset_mode="SameStep", **settings)
    env = made
    sink = MemorySink()
    if listen:
        env.unwrapped.telemetry.detail = Detail.FULL
        env.unwrapped.telemetry.add_sink(sink)
    record: Record = {}
    note(record, "reset", env.reset(seed=3))
    lives = script(env.unwrapped.offered_blueprints)
    happened: set[str] = set()
    for step in range(STEPS):
        if step == ROLLBACK_STEP:
            state = env.unwrapped.get_state()
            break_first_network(state)
            env.unwrapped.set_state(state)
        actions = np.array([lives[max(step - row, 0)] for row in range(count)], dtype=np.int64)
        outcome = env.step(actions[0] if single else actions)
        note(record, f"step {step}", outcome)
        note(record, f"step {step} render", env.render())
        happened |= events_of(outcome[4])
        if single and (outcome[2] or outcome[3]):
            note(record, f"step {step} reset", env.reset())
    missing = {"rollback", "fossilization", "prune", "retarget", "end of an episode"} - happened
    if missing:
        raise ScenarioError(f"{env_id} {form}: the script caused no {', '.join(sorted(missing))}")
    if listen:
        env.unwrapped.telemetry.flush()
    events = [(event.type, event.env, event.episode, event.epoch, event.slot) for event in sink.events]
    env.close()
    return record, events


def events_of(infos: Mapping[str, Any]) -> set[str]:
    """Names of the events that a step's infos show."""
    stages = np.asarray(infos["slot_stage"])
    found = {"fossilization"} if (stages == 7).any() else set()
    found |= {"prune"} if (stages == 8).any() else set()
    last = infos.get("final_info", infos)
    found |= {"end of an episode"} if np.any(last.get("committed_measured", "shapley" in last)) else set()
    if "op" in infos:
        found |= {"rollback"} if np.any(infos["rollback"]) else set()
        retargeted = (np.asarray(infos["op"]) == RETARGET) & np.asarray(infos["action_succeeded"])
        found |= {"retarget"} if retargeted.any() else set()
    return found


def break_first_network(state: dict[str, Any]) -> None:
    """Write NaN into the first weight of the first network's host, wherever the state keeps it."""
    for path, value in leaves(state):
        wanted = "host" in path and path.endswith("weight") and "snapshot" not in path and "momentum" not in path
        if wanted and isinstance(value, np.ndarray):
            value[0] = np.nan
            return
    raise ScenarioError("the state of the environment holds no weight of a host")


def leaves(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested dicts."""
    for key, value in tree.items():
        path = f"{place}/{key}" if place else str(key)
        if isinstance(value, Mapping):
            yield from leaves(value, path)
        else:
            yield path, value


def note(record: Record, name: str, value: Any) -> None:
    """Add everything in ``value`` to the record, as arrays by path; of containers and None also the type."""
    if name in record:
        raise ScenarioError(f"two values are called {name}")
    if isinstance(value, Mapping):
        record[name] = np.array(f"<mapping of {len(value)}>")
        for key in value:
            note(record, f"{name}/{key}", value[key])
    elif isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.dtype == object):
        record[name] = np.array(f"<{type(value).__name__} of {len(value)}>")
        for index, item in enumerate(value):
            note(record, f"{name}[{index}]", item)
    else:
        record[name] = np.array(f"<{value!r}>" if value is None else value)


def play_heuristic(ids: Sequence[str]) -> Record:
    """A whole episode of four networks on each id."""
    import esper_env  # noqa: F401
    import gymnasium
    from esper_agent import HeuristicPolicy

    record: Record = {}
    for env_id in ids or ["Esper-Digits-v0", "Esper-Text-v0"]:
        settings: dict[str, Any] = {"batches_per_step": 4} if env_id != "Esper-Digits-v0" else {}
        env: Any = gymnasium.make_vec(env_id, num_envs=4, autoreset_mode="Disabled", **settings)
        observation, _ = env.reset(seed=11)
        policy, state, start = HeuristicPolicy.for_env(env), None, np.ones(4, dtype=bool)
        for step in range(env.unwrapped.task.horizon):
            actions, state = policy.predict(observation, state, start)
            start = np.zeros(4, dtype=bool)
            observation, rewards, _, _, infos = env.step(actions)
            note(record, f"{env_id} step {step}", {"actions": actions, "rewards": rewards, "infos": infos})
        env.close()
    return record


#: Columns of progress.csv that are times.
TIMES = ("time/", "fps", "seconds")


def play_training(_ids: Sequence[str]) -> Record:
    """A training run that is killed after a checkpoint, and resumed."""
    from esper_agent import FactoredRecurrentPPO

    record: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = ["--total-timesteps", "480", "--num-envs", "4", "--n-steps", "20", "--checkpoint-every", "80"]
        flags += ["--env-settings", "horizon=10", "batches_per_step=2", "--seed", "5", "--out", str(run)]
        command = [sys.executable, "-m", "esper_agent", "train", "--no-progress"]
        with (Path(folder) / "errors").open("w+") as errors:
            process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=errors)
            while process.poll() is None and rollouts_logged(run) < 2:  # the first checkpoint is then complete
                time.sleep(0.02)
            interrupted = process.poll() is None
            process.kill()
            process.wait()
            if not interrupted:
                errors.seek(0)
                raise ScenarioError(f"the training ended before it could be killed: {errors.read()[-2000:]}")
        subprocess.run([*command, "--resume", str(run)], check=True, stdout=subprocess.DEVNULL)
        model = FactoredRecurrentPPO.load(run / "model.zip", device="cpu")
        for name, value in model.policy.state_dict().items():
            record[f"weights {name}"] = value.numpy()
        for index, moments in model.policy.optimizer.state_dict()["state"].items():
            record |= {f"optimizer {index} {name}": value.numpy() for name, value in moments.items()}
        with (run / "vecnormalize.pkl").open("rb") as file:
            returns = pickle.load(file).ret_rms  # written by the run above
        note(record, "normaliser", {"mean": returns.mean, "var": returns.var, "count": returns.count})
        for name in ("episodes.csv", "progress.csv"):
            with (run / name).open(newline="", encoding="utf-8") as file:
                for index, row in enumerate(csv.DictReader(file)):
                    kept = {key: value for key, value in row.items() if not any(part in key for part in TIMES)}
                    note(record, f"{name} {index}", kept)
    return record


def rollouts_logged(run: Path) -> int:
    """Lines of progress.csv without its header."""
    file = run / "progress.csv"
    return max(file.read_bytes().count(b"\n") - 1, 0) if file.exists() else 0


def play_info(_ids: Sequence[str]) -> Record:
    """Line by line, on a wide terminal."""
    shown = subprocess.run(
        [sys.executable, "-m", "esper_agent", "info"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    return {f"line {index}": np.array(line) for index, line in enumerate(shown.stdout.splitlines())}


SCENARIOS: dict[str, Callable[[Sequence[str]], Record]] = {
    "info": play_info,
    "telemetry": play_telemetry,
    "heuristic": play_heuristic,
    "training": play_training,
    "environments": play_environments,
}


def main(folder: str, scenario: str, result: str, *ids: str) -> None:
    """Run a scenario and save its record."""
    require_packages(folder)
    record = SCENARIOS[scenario](ids)
    if not record:
        raise ScenarioError(f"{scenario} recorded nothing")
    arrays = {str(index): value for index, value in enumerate(record.values())}
    np.savez(result, names=np.array(list(record)), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ComparisonError as error:
        sys.exit(f"error: {error}")

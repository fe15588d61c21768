"""Play two checkouts of this repository on one machine and compare what they return, bit for bit.

    python tools/compare_checkouts.py 3374426 .              # a revision with the working tree
    python tools/compare_checkouts.py ../before ../after --only info heuristic
    python tools/compare_checkouts.py HEAD . --ids Esper-Digits-v0 Esper-Text-v0

OLD and NEW are folders with a checkout, or revisions of this repository. Each scenario runs in its own process, with
the packages of that checkout and the libraries of this interpreter:

    environments  every registered id through one script of growth: germination, pruning, a retarget, fossilization, a
                  rollback, several episodes; single and vector, both isolations, float32 and bfloat16
    telemetry     the events of such a life: type, environment, episode, epoch and slot
    heuristic     the heuristic's decisions over an episode, and what they lead to
    training      a short `esper train`, killed after its first checkpoint and resumed: weights, curves, episodes
    info          what `esper info` prints

The scenarios use the public interface only, so that a checkout may be laid out in any way. Exit code 0 if everything is
equal, 1 if something differs, 2 for bad input or a scenario that fails.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("packages/esper-env/src", "packages/esper-agent/src")
Record = dict[str, NDArray[Any]]

# What is played. This half runs in the process of a checkout, and imports its packages.

#: Short episodes on data that need no download.
SMALL = {"horizon": 26, "batches_per_step": 1, "batch_size": 8}
DATASETS = {"CIFAR": "procedural", "TinyStories": "grammar"}
#: (form, isolation, precision): each value of each with each value of the others in some row.
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
        record |= {f"{env_id}: event {index}": np.array(repr(event)) for index, event in enumerate(events)}
    return record


def play_life(
    env_id: str, form: str, isolation: str, precision: str, listen: bool = False
) -> tuple[Record, list[tuple[Any, ...]]]:
    """One environment through the script, in which environment i of a vector is i steps behind; events if asked for."""
    import esper_env  # noqa: F401
    import gymnasium
    from esper_env.telemetry import Detail, MemorySink

    single = form == "single"
    settings: dict[str, Any] = SMALL | {"isolation": isolation, "precision": precision, "render_mode": "ansi"}
    dataset = DATASETS.get(env_id.split("-")[1])
    settings |= {"dataset": dataset} if dataset else {}
    count = 1 if single else 3
    made = gymnasium.make(env_id, **settings) if single else gymnasium.make_vec(env_id, num_envs=count, **settings)
    env: Any = made
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
    missing = {"rolled back", "fossilized", "pruned", "retargeted", "episode ended"} - happened
    if missing:
        raise SystemExit(f"{env_id} {form}: the script did not lead to {', '.join(sorted(missing))}")
    if listen:
        env.unwrapped.telemetry.flush()
    events = [(event.type, event.env, event.episode, event.epoch, event.slot) for event in sink.events]
    env.close()
    return record, events


def events_of(infos: Mapping[str, Any]) -> set[str]:
    """What the infos of a step say that happened."""
    stages = np.asarray(infos["slot_stage"])
    found = {"fossilized"} if (stages == 7).any() else set()
    found |= {"pruned"} if (stages == 8).any() else set()
    found |= {"episode ended"} if "shapley" in infos or "final_info" in infos else set()
    if "op" in infos:
        found |= {"rolled back"} if np.any(infos["rollback"]) else set()
        retargeted = (np.asarray(infos["op"]) == RETARGET) & np.asarray(infos["action_succeeded"])
        found |= {"retargeted"} if retargeted.any() else set()
    return found


def break_first_network(state: dict[str, Any]) -> None:
    """Write NaN into the first weight of the first network's host, wherever the state keeps it."""
    for path, value in leaves(state):
        wanted = "host" in path and path.endswith("weight") and "snapshot" not in path and "momentum" not in path
        if wanted and isinstance(value, np.ndarray):
            value[0] = np.nan
            return
    raise SystemExit("the state of the environment holds no weight of a host")


def leaves(tree: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every leaf of nested dicts."""
    for key, value in tree.items():
        path = f"{place}/{key}" if place else str(key)
        if isinstance(value, Mapping):
            yield from leaves(value, path)
        else:
            yield path, value


def note(record: Record, name: str, value: Any) -> None:
    """Add everything in ``value`` to the record, as arrays by path."""
    if isinstance(value, Mapping):
        for key in value:
            note(record, f"{name}/{key}", value[key])
    elif isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.dtype == object):
        for index, item in enumerate(value):
            note(record, f"{name}[{index}]", item)
    else:
        record[name] = np.array("None" if value is None else value)


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
    """A run that is killed as soon as it has a checkpoint, and resumed."""
    from esper_agent import FactoredRecurrentPPO

    record: Record = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = ["--total-timesteps", "480", "--num-envs", "4", "--n-steps", "20", "--checkpoint-every", "80"]
        flags += ["--env-settings", "horizon=10", "batches_per_step=2", "--seed", "5", "--out", str(run)]
        command = [sys.executable, "-m", "esper_agent", "train"]
        process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and rollouts_logged(run) < 2:  # one checkpoint is complete by then
            time.sleep(0.02)
        interrupted = process.poll() is None
        process.kill()
        process.communicate()
        if not interrupted:
            raise SystemExit("the training ended before it could be killed")
        subprocess.run([*command, "--resume", str(run), "--no-progress"], check=True, stdout=subprocess.DEVNULL)
        model = FactoredRecurrentPPO.load(next(run.glob("*.zip")), device="cpu")
        for name, value in model.policy.state_dict().items():
            record[f"weights {name}"] = value.numpy()
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


# How two checkouts are compared. This half runs in the process that was called.


@contextmanager
def checkout(name: str) -> Iterator[Path]:
    """The folder of a checkout; a revision is exported to a temporary one."""
    if Path(name).is_dir():
        yield checked(Path(name).resolve(), name)
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "revision.tar"
        made = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "--output", str(archive), name], capture_output=True, text=True
        )
        if made.returncode != 0:
            raise SystemExit(f"error: {name!r} is neither a folder nor a revision of this repository")
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        yield checked(Path(folder), name)


def checked(folder: Path, name: str) -> Path:
    """The folder, if it has both packages."""
    missing = [package for package in PACKAGES if not (folder / package).is_dir()]
    if missing:
        raise SystemExit(f"error: {name!r} has no folder {missing[0]}; expected a checkout of this repository")
    return folder


def play(folder: Path, scenario: str, ids: Sequence[str]) -> tuple[Record, float]:
    """What a scenario returns with the packages of a checkout, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "record.npz"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(folder / package) for package in PACKAGES),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).resolve()), "--play", scenario, str(result), *ids]
        started = time.monotonic()
        done = subprocess.run(command, env=environment, cwd=scratch, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"error: {scenario} failed with {folder}:\n{done.stderr[-4000:]}")
        with np.load(result) as stored:
            names = stored["names"].tolist()
            return {name: stored[str(index)] for index, name in enumerate(names)}, time.monotonic() - started


def differences(old: Record, new: Record) -> list[str]:
    """Names of what is not equal in both, with both values where they are short."""
    found = [f"{name}: only in OLD" for name in old if name not in new]
    found += [f"{name}: only in NEW" for name in new if name not in old]
    for name in old.keys() & new.keys():
        left, right = old[name], new[name]
        if (left.dtype.kind, left.shape) != (right.dtype.kind, right.shape):
            found.append(f"{name}: {left.dtype} {left.shape} in OLD, {right.dtype} {right.shape} in NEW")
        elif left.dtype.kind == "U":
            if left.tolist() != right.tolist():
                found.append(f"{name}: {left.tolist()!r} in OLD, {right.tolist()!r} in NEW")
        elif left.dtype != right.dtype or left.tobytes() != right.tobytes():
            found.append(f"{name}: {brief(left)} in OLD, {brief(right)} in NEW")
    return sorted(found)


def brief(array: NDArray[Any]) -> str:
    """An array in a few words."""
    return repr(array.tolist()) if array.size <= 4 else f"{array.dtype} {array.shape}, sum {array.sum()!r}"


def main(arguments: Sequence[str]) -> int:
    """Compare; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="scenarios to play")
    parser.add_argument("--ids", nargs="+", default=[], help="ids to play instead of all")
    options = parser.parse_args(arguments)
    equal = True
    with checkout(options.old) as old, checkout(options.new) as new:
        for scenario in options.only:
            with ThreadPoolExecutor(2) as both:
                (before, seconds), (after, _) = both.map(play, (old, new), [scenario] * 2, [options.ids] * 2)
            found = differences(before, after)
            equal = equal and not found
            verdict = f"{len(found)} DIFFER" if found else "equal"
            print(f"{scenario:14}{len(before):8,} values, {verdict} ({seconds:.0f} s each)", flush=True)
            for line in found[:8]:
                print(f"    {line}", flush=True)
            if len(found) > 8:
                print(f"    and {len(found) - 8} more", flush=True)
    return 0 if equal else 1


def play_here(scenario: str, result: str, *ids: str) -> int:
    """The other end of :func:`play`."""
    record = SCENARIOS[scenario](ids)
    arrays = {str(index): value for index, value in enumerate(record.values())}
    np.savez(result, names=np.array(list(record)), **arrays)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    if shutil.which("git") is None:
        sys.exit("error: git is not installed")
    sys.exit(play_here(*sys.argv[2:]) if sys.argv[1:2] == ["--play"] else main(sys.argv[1:]))

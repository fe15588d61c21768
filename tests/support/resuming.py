"""Runs that are interrupted and resumed, and comparisons of two runs."""

import csv
import json
import pickle

import numpy as np
from esper_agent.ppo.settings import PPOSettings
from esper_agent.settings.train import TrainSettings
from esper_agent.training.run_folder import load_run
from esper_env.telemetry import Detail, read_events
from stable_baselines3.common.callbacks import BaseCallback

#: Rollouts of four environments that end within episodes.
N_STEPS, NUM_ENVS = 3, 4
ROLLOUT = N_STEPS * NUM_ENVS
REAL = ("Esper-Digits-v0", ("horizon=5", "batches_per_step=2"))


def small_settings(out, env, env_settings=(), **changes):
    """Settings of six rollouts with two updates each on the CPU, with a checkpoint before each but the first."""
    ppo = {"n_steps": N_STEPS, "batch_size": 6, "n_epochs": 1} | changes.pop("ppo", {})
    values = {"total_timesteps": 6 * ROLLOUT, "num_envs": NUM_ENVS, "checkpoint_every": 1, "seed": 3} | changes
    return TrainSettings(
        out=out, env=env, env_settings=env_settings, device="cpu", progress=False, ppo=PPOSettings(**ppo), **values
    )


class Crash(BaseCallback):
    """Imitates a kill at a timestep: the run cannot save its model."""

    class Killed(BaseException):
        pass

    def __init__(self, timesteps):
        super().__init__()
        self.timesteps = timesteps

    def _on_step(self):
        if self.num_timesteps >= self.timesteps:
            raise self.Killed
        return True


class StopAt(BaseCallback):
    """Ends training at a timestep."""

    def __init__(self, timesteps):
        super().__init__()
        self.timesteps = timesteps

    def _on_step(self):
        return self.num_timesteps < self.timesteps


def progress(folder):
    """Rows of progress.csv without clock times."""
    with (folder / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def policy_bytes(folder):
    """Bytes of every tensor of the policy and its optimizer."""
    model = load_run(folder, device="cpu").model
    moments = model.policy.optimizer.state_dict()["state"]
    return {name: value.numpy().tobytes() for name, value in model.policy.state_dict().items()} | {
        f"{index}.{name}": value.numpy().tobytes() for index, own in moments.items() for name, value in own.items()
    }


def normaliser(folder):
    """Saved statistics of the returns."""
    with (folder / "vecnormalize.pkl").open("rb") as file:
        statistics = pickle.load(file).ret_rms
    return float(statistics.mean), float(statistics.var), float(statistics.count)


def events(run):
    """Events of networks and policy, without times and without events of the run itself."""
    recorded = read_events(run / "events") if (run / "events").is_dir() else []
    own = [each for each in recorded if "CHECKPOINT" not in each.type and each.type != "TRAINING_STARTED"]
    kept = [each for each in own if each.payload.DETAIL == Detail.NORMAL]
    return [
        (each.type, each.env, each.episode, each.epoch, each.slot, json.dumps(vars(each.payload), sort_keys=True))
        for each in kept
    ]


def differences(folder, other):
    """Names of the parts in which two finished runs differ, ignoring clock times."""
    looks = {
        "weights": policy_bytes,
        "normaliser": normaliser,
        "progress": progress,
        "episodes": lambda run: (run / "episodes.csv").read_bytes(),
        "events": events,
        "timesteps": lambda run: load_run(run, device="cpu").model.num_timesteps,
    }
    return [name for name, look in looks.items() if look(folder) != look(other)]


def flat(tree, place=""):
    """Map paths of a state to comparable leaves: dtype, shape and bytes of an array, repr of a value."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{place}/{key}")
        elif isinstance(value, np.ndarray):
            leaves[f"{place}/{key}"] = (str(value.dtype), value.shape, value.tobytes())
        else:
            leaves[f"{place}/{key}"] = repr(value)
    return leaves

"""Vectors of networks that all act alike, with their full record, and checks of rollbacks.

The networks are float64 (``float64_networks``), so values agree within 1e-6 on every CPU and beside any neighbours.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from esper_env.data import load_data
from esper_env.rules.heads import HEAD_DEFAULTS, NO_BLUEPRINT, Head, Op
from esper_env.rules.stages import IS_LIVE, Stage
from faults import growth_of, stack_of
from growing import tensors
from plain_rules import base_index
from stepping import reward_components
from torch.func import functional_call


def wait(steps=1):
    """Return ``steps`` WAIT actions."""
    assert HEAD_DEFAULTS[Head.OP] == Op.WAIT
    return [np.array(HEAD_DEFAULTS, dtype=np.int64)] * steps


class Trip:
    """Vector of networks that all act alike, with a record of every step's outputs and arrays."""

    def __init__(self, env, seed=3, options=None):
        self.env, self.growth = env, growth_of(env)
        self.steps = [(*env.reset(seed=seed, options=options), self.held())]

    def held(self):
        return tensors(self.growth) | {
            f"table {name}": column.copy() for name, column in vars(self.growth.table).items()
        }

    def go(self, *actions):
        """Step with one action (8,) for all, or one each (N, 8); return the result of the last step."""
        for action in actions:
            of_each = np.broadcast_to(action, (self.env.num_envs, 8))
            self.steps.append((*self.env.step(of_each), self.held()))
        return self.steps[-1]


def of_rows(value, rows):
    """Select some networks from anything that a step returns."""
    if isinstance(value, dict):
        return {key: of_rows(item, rows) for key, item in value.items()}
    return value[rows] if isinstance(value, np.ndarray) else value


def assert_agree(left, right, path=""):
    """Compare two trees; a seed that only broken networks had is zero on one side and missing on the other."""
    if isinstance(left, dict):
        for key in left.keys() | right.keys():
            here, there = left.get(key), right.get(key)
            if here is None or there is None:
                assert not np.any(here if there is None else there), f"{path}/{key}"
            else:
                assert_agree(here, there, f"{path}/{key}")
        return
    assert (left.dtype, left.shape) == (right.dtype, right.shape), path
    if left.dtype.kind == "f":
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-6, err_msg=path)
    else:
        assert left.tolist() == right.tolist(), path


def assert_restored(trip, row, epoch):
    """Check that host and fossils equal those after an epoch bit for bit, without momentum."""
    then, now, table = trip.steps[epoch][-1], trip.held(), trip.growth.table
    places = ["host "]
    for slot in np.flatnonzero(table.stage[row] == Stage.FOSSILIZED):
        places += [f"seed {slot} {table.blueprint[row, slot]} ", f"gate {slot} "]
    kept = [name for name in now if name.startswith(tuple(places))]
    assert len(kept) > 20
    for name in kept:
        if " momentum " in name:
            assert not now[name][row].any(), name
        else:
            assert now[name][row].tobytes() == then[name][row].tobytes(), name


def accuracy_and_loss(growth, row):
    """Return accuracy and loss of host and fossils on the validation images, in plain PyTorch."""
    data = load_data(family="digits")
    shard, local = growth._population._locate(row)
    host, _ = stack_of(growth, row, 0, "host")
    mean, std = (torch.tensor(values, dtype=host.dtype).view(1, -1, 1, 1) for values in (data.mean, data.std))
    x = (torch.tensor(data.val_images).to(host.dtype) / 255 - mean) / std
    for k, segment in enumerate(shard.segments):
        prefix = f"segments.{k}."
        own = {name.removeprefix(prefix): v[local] for name, v in host.values().items() if name.startswith(prefix)}
        x = functional_call(deepcopy(segment).eval(), own, (x,))
        if k < len(shard.execution_order):
            slot = shard.execution_order[k]
            if growth.table.stage[row, slot] == Stage.FOSSILIZED:  # ADD at alpha 1 is the seed's output
                seed, _ = stack_of(growth, row, slot, "seed")
                x = functional_call(seed.template, {name: v[local] for name, v in seed.values().items()}, (x,))
    labels = torch.tensor(data.val_labels)
    loss = torch.nn.functional.cross_entropy(x, labels)
    return float((x.argmax(1) == labels).float().mean()) * 100, float(loss)


def feature(observation, name):
    return observation["features"][:, base_index(name)]


def check_rolled_back(trip, rows, before, epoch):
    """Check networks that were just restored to their snapshots of ``epoch``."""
    observation, reward, _, _, infos, _ = trip.steps[-1]
    growth = trip.growth
    for row in rows:
        assert_restored(trip, row, epoch)
        gone = IS_LIVE[before[row]]
        assert (growth.table.stage[row][gone] == Stage.PRUNED).all()
        assert (growth.table.blueprint[row][gone] == NO_BLUEPRINT).all()
        assert (growth.table.stage[row][~gone] == before[row][~gone]).all()
        for name in ("gradient_norm", "gradient_health", "gradient_ratio"):  # the broken epoch measured nothing
            known = trip.steps[-2][-1][f"table {name}"][row][~gone]
            np.testing.assert_array_equal(getattr(growth.table, name)[row][~gone], known)
        accuracy, loss = accuracy_and_loss(growth, row)
        assert infos["val_accuracy"][row] == pytest.approx(accuracy, abs=1e-4)
        assert infos["val_loss"][row] == pytest.approx(loss, rel=1e-9)
        governor = growth._governor.get_state()  # its history starts with the restored network
        assert governor["count"][row] == 1
        assert governor["history"][row, -1] == pytest.approx(min(loss, growth._governor.guessing), rel=1e-9)
    components = reward_components(infos)
    np.testing.assert_array_equal(components["governor"][rows], -1.0)
    np.testing.assert_allclose(sum(components.values()), reward, atol=1e-12)
    assert not infos["action_succeeded"][rows].any()
    assert (infos["op"][rows] == Op.WAIT).all()
    np.testing.assert_array_equal(infos["slot_stage"], growth.table.stage)
    assert np.isfinite(observation["features"]).all()
    assert observation in trip.env.observation_space
    np.testing.assert_allclose(feature(observation, "val_accuracy"), infos["val_accuracy"] / 100, atol=1e-6)
    assert (feature(observation, "last_op_wait")[rows] == 1).all()
    assert (feature(observation, "last_action_succeeded")[rows] == 0).all()


def check_after_rollback(trip, rows):
    """Check that the two steps after the rollback are ordinary."""
    for _, reward, _, _, infos, _ in trip.steps[-2:]:
        assert not infos["rollback"].any()
        assert np.isfinite(reward).all()
        assert np.isfinite(infos["train_loss"]).all()
        assert infos["action_succeeded"].all()
        assert not infos["reward_governor"].any()
    weights = [held["host parameters segments.3.1.bias"] for *_, held in trip.steps[-3:]]
    for row in rows:
        assert not np.array_equal(weights[0][row], weights[1][row])
        assert not np.array_equal(weights[1][row], weights[2][row])

"""Networks are broken between two steps, wherever and whenever: what the governor undoes, and what it leaves alone."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env.data import load_image_data
from esper_env.rules.heads import NO_BLUEPRINT, AlphaSpeed, AlphaTarget, Blueprint, Op
from esper_env.rules.observation import base_index
from esper_env.rules.stages import HAS_SEED, IS_LIVE, Stage
from faults import IN_HOST, IN_SEED, growth_of, stack_of
from growing import tensors
from torch.func import functional_call

#: Network 0 and the last one stay healthy; in between, one network for every fault.
HOST_ROWS = dict(enumerate(IN_HOST, start=1))
SEED_ROWS = dict(enumerate(IN_SEED, start=1 + len(IN_HOST)))
COUNT = 2 + len(IN_HOST) + len(IN_SEED)
HEALTHY = [0, COUNT - 1]

#: Steps of the shortest life of a seed until it is at a stage, and epoch of the snapshot that is there by then.
STEPS = {
    Stage.GERMINATED: (1, 0),
    Stage.TRAINING: (3, 0),
    Stage.BLENDING: (7, 5),
    Stage.HOLDING: (8, 5),
    Stage.FOSSILIZED: (9, 9),
}
CASES = [
    (stage, op, when)
    for stage, ops in {
        Stage.GERMINATED: (Op.WAIT, Op.ADVANCE, Op.GERMINATE, Op.PRUNE),
        Stage.TRAINING: (Op.WAIT, Op.ADVANCE, Op.GERMINATE, Op.PRUNE),
        Stage.BLENDING: (Op.WAIT, Op.ADVANCE, Op.GERMINATE, Op.PRUNE, Op.SET_ALPHA_TARGET),
        Stage.HOLDING: (Op.FOSSILIZE, Op.GERMINATE, Op.PRUNE, Op.SET_ALPHA_TARGET, Op.ADVANCE),
        Stage.FOSSILIZED: (Op.WAIT, Op.GERMINATE, Op.PRUNE),
    }.items()
    for op in ops
    for when in ("middle", "last")
    if when == "middle" or op == ops[0]
]


def wait(steps=1):
    return [np.array([0, 1, 2, 1, 2, 0, 0, Op.WAIT])] * steps


class Trip:
    """One vector of networks that all do the same, with everything that is seen and held after every step."""

    def __init__(self, env, seed=3, options=None):
        self.env, self.growth = env, growth_of(env)
        self.steps = [(*env.reset(seed=seed, options=options), self.held())]

    def held(self):
        return tensors(self.growth) | {
            f"table {name}": column.copy() for name, column in vars(self.growth.table).items()
        }

    def go(self, *actions):
        for action in actions:
            actions_of_all = np.tile(action, (self.env.num_envs, 1))
            self.steps.append((*self.env.step(actions_of_all), self.held()))
        return self.steps[-1]


def of_rows(value, rows):
    """What is about some networks, of anything that a step returns."""
    if isinstance(value, dict):
        return {key: of_rows(item, rows) for key, item in value.items()}
    return value[rows] if isinstance(value, np.ndarray) else value


def assert_same_bits(left, right, path=""):
    """A tensor of a seed that only broken networks ever had is zero on one side, and missing on the other."""
    if isinstance(left, dict):
        for key in left.keys() | right.keys():
            here, there = left.get(key), right.get(key)
            if here is None or there is None:
                assert not np.any(here if there is None else there), f"{path}/{key}"
            else:
                assert_same_bits(here, there, f"{path}/{key}")
    elif left.dtype == object:
        assert left.tolist() == right.tolist(), path
    else:
        assert left.tobytes() == right.tobytes(), path


def assert_restored(trip, row, epoch):
    """Host and fossils are what they were after an epoch of the episode, to the last bit, and at rest."""
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
    """Of host and fossils on the validation images, module by module as PyTorch runs them."""
    data = load_image_data(family="digits")
    shard, local = growth._population._locate(row)
    x = torch.from_numpy(data.val_images).float() / 255
    x = (x - torch.tensor(data.mean).view(1, -1, 1, 1)) / torch.tensor(data.std).view(1, -1, 1, 1)
    host, _ = stack_of(growth, row, 0, "host")
    for k, segment in enumerate(shard.segments):
        prefix = f"segments.{k}."
        own = {name.removeprefix(prefix): v[local] for name, v in host.values().items() if name.startswith(prefix)}
        x = functional_call(segment.eval(), own, (x,))
        if k < len(shard.execution_order):
            slot = shard.execution_order[k]
            if growth.table.stage[row, slot] == Stage.FOSSILIZED:  # ADD at alpha 1: the seed's output alone
                seed, _ = stack_of(growth, row, slot, "seed")
                x = functional_call(seed.template, {name: v[local] for name, v in seed.values().items()}, (x,))
    labels = torch.from_numpy(data.val_labels)
    loss = torch.nn.functional.cross_entropy(x, labels)
    return float((x.argmax(1) == labels).float().mean()) * 100, float(loss)


def feature(observation, name):
    return observation["features"][:, base_index(name)]


def make(count=COUNT, **kwargs):
    settings = {"horizon": 16, "batches_per_step": 2, "batch_size": 16, "autoreset_mode": "Disabled"} | kwargs
    return gymnasium.make_vec("Esper-Digits-v0", num_envs=count, **settings)


def break_all(growth, slot):
    """Every fault in a network of its own; those of seeds where there is a seed."""
    rows = {row: IN_HOST[name] for row, name in HOST_ROWS.items()}
    if slot is not None:
        rows |= {row: IN_SEED[name] for row, name in SEED_ROWS.items()}
    for row, fault in rows.items():
        fault(growth, row, slot)
    return list(rows)


def pending(action, op, slot):
    """An action about the sick seed; GERMINATE is about the slot beside it, PRUNE takes time where it can."""
    if op == Op.GERMINATE:
        return action(op, 1, blueprint=Blueprint.NORM)
    return action(op, slot, alpha_speed=AlphaSpeed.FAST, alpha_target=AlphaTarget.HALF)


def check_rolled_back(trip, rows, before, epoch):
    """What holds for networks that were just put back to their snapshots of ``epoch``."""
    observation, reward, _, _, infos, _ = trip.steps[-1]
    growth = trip.growth
    for row in rows:
        assert_restored(trip, row, epoch)
        gone = IS_LIVE[before[row]]
        assert (growth.table.stage[row][gone] == Stage.PRUNED).all()
        assert (growth.table.blueprint[row][gone] == NO_BLUEPRINT).all()
        assert (growth.table.stage[row][~gone] == before[row][~gone]).all()
        accuracy, loss = accuracy_and_loss(growth, row)
        assert infos["val_accuracy"][row] == pytest.approx(accuracy, abs=1e-4)
        assert infos["val_loss"][row] == pytest.approx(loss, rel=1e-4)
    components = {name: value for name, value in infos["reward_components"].items() if name[0] != "_"}
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


@pytest.mark.parametrize(("stage", "op", "when"), CASES)
def test_what_is_not_finite_is_undone_in_any_stage_and_whatever_is_pending(stage, op, when, script, action):
    """Seven networks break at once, each in its own way; the healthy ones are those of a run without a fault."""
    steps, snapshot = STEPS[stage]
    horizon = steps + (1 if when == "last" else 3)
    healthy, sick = (Trip(make(horizon=horizon)) for _ in range(2))
    for trip in (healthy, sick):
        trip.go(*script()[:steps])
        assert (trip.growth.table.stage[:, 0] == stage).all()
    before = sick.growth.table.stage.copy()
    rows = break_all(sick.growth, 0)
    for trip in (healthy, sick):
        trip.go(pending(action, op, 0))
    if op == Op.PRUNE and stage in (Stage.GERMINATED, Stage.TRAINING):  # the sick seed went before it did any harm
        rows = list(HOST_ROWS)
        assert sick.steps[-1][4]["action_succeeded"][list(SEED_ROWS)].all()
    infos = sick.steps[-1][4]
    assert np.flatnonzero(infos["rollback"]).tolist() == rows
    assert infos["rollbacks"].tolist() == infos["rollback"].astype(int).tolist()
    check_rolled_back(sick, rows, before, snapshot)
    assert (sick.steps[-1][2] == (when == "last")).all()
    if when == "last":
        np.testing.assert_allclose(infos["committed_val_accuracy"][rows], infos["val_accuracy"][rows], atol=1e-9)
    else:
        for trip in (healthy, sick):
            trip.go(*wait(2))
        check_going_on(sick, rows)
    for ours, theirs in zip(healthy.steps, sick.steps, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            assert_same_bits(of_rows(left, HEALTHY), of_rows(right, HEALTHY))


def check_going_on(trip, rows):
    """The two steps after the rollback are ordinary ones."""
    for _, reward, _, _, infos, _ in trip.steps[-2:]:
        assert not infos["rollback"].any()
        assert np.isfinite(reward).all()
        assert np.isfinite(infos["train_loss"]).all()
        assert infos["action_succeeded"].all()
        assert not infos["reward_components"]["governor"].any()
    weights = [held["host parameters segments.0.0.weight"] for *_, held in trip.steps[-3:]]
    for row in rows:
        assert not np.array_equal(weights[0][row], weights[1][row])
        assert not np.array_equal(weights[1][row], weights[2][row])


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("planted", [False, True])
def test_the_first_step_of_an_episode(planted, horizon, action):
    """The snapshot is the newborn network, with the seeds that were planted in it."""
    options = {"topology": {"r0c1": "conv_small", "r0c2": "conv_light"}} if planted else None
    trip = Trip(make(horizon=horizon), options=options)
    before = trip.growth.table.stage.copy()
    rows = break_all(trip.growth, 2 if planted else None)
    trip.go(action(Op.GERMINATE, 0, blueprint=Blueprint.NORM))
    assert np.flatnonzero(trip.steps[-1][4]["rollback"]).tolist() == rows
    check_rolled_back(trip, rows, before, 0)
    healthy = [row for row in range(COUNT) if row not in rows]
    assert (trip.growth.table.stage[healthy, 0] == Stage.GERMINATED).all()
    assert (trip.steps[-1][2] == (horizon == 1)).all()
    if horizon > 1:
        trip.go(*wait(2))
        check_going_on(trip, rows)


@pytest.mark.parametrize("fault", [*IN_HOST, *IN_SEED])
@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("shard_size", [1, 2, 3])
def test_one_network_breaks_in_shards_of_any_size(fault, row, shard_size, script, action):
    trip = Trip(make(3, shard_size=shard_size))
    trip.go(*script(), *script(1)[:3])  # a fossil in slot 0, a TRAINING seed in slot 1
    before = trip.growth.table.stage.copy()
    (IN_HOST | IN_SEED)[fault](trip.growth, row, 0)
    trip.go(action(Op.GERMINATE, 2))
    assert trip.steps[-1][4]["rollback"].tolist() == [other == row for other in range(3)]
    check_rolled_back(trip, [row], before, 9)
    assert before[row].tolist() == [Stage.FOSSILIZED, Stage.TRAINING, Stage.DORMANT]
    assert HAS_SEED[trip.growth.table.stage].sum(axis=1).tolist() == [1 if other == row else 3 for other in range(3)]


def test_a_slot_that_waits_after_a_prune_waits_on(script, action):
    trip = Trip(make(2, horizon=20))
    trip.go(*script()[:2], action(Op.PRUNE, 0))
    left = []
    IN_HOST["NaN weight"](trip.growth, 1, None)
    for _ in range(8):
        trip.go(*wait())
        left.append(trip.steps[-1][4]["slot_stage"][:, 0].tolist())
    assert [stages[0] for stages in left] == [stages[1] for stages in left]
    assert left[-1] == [Stage.DORMANT] * 2

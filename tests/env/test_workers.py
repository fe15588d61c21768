"""Vectors with worker processes equal vectors in one process, bit for bit in equal shards."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from esper_env import FlatVectorActions
from esper_env.env import EsperEnv
from esper_env.telemetry import Detail, MemorySink
from esper_env.vector_env import EsperVectorEnv
from esper_env.workers import available_cores, divide, resolve_workers
from growing import examples
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st
from stepping import ENV, TINY, drive, growth_of, new_env, plan_for

#: Five networks in shards of three, so that the workers have different numbers of networks.
COUNT, SHARD = 5, 3
SETTINGS = {"render_mode": "rgb_array", "max_episode_steps": 7}
MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def pair():
    """A vector with two workers, and one in this process whose shards have the same networks."""
    envs = new_env(COUNT, workers=2, **SETTINGS), new_env(COUNT, shard_size=SHARD, **SETTINGS)
    yield envs
    for env in envs:
        env.close()


def in_mode(env, mode):
    env.autoreset_mode = mode
    return env


def watched(env):
    """Attach a new sink and return it; the events are numbered from 0."""
    env.telemetry.close()
    env.telemetry.next_id, env.telemetry.detail = 0, Detail.FULL
    return env.telemetry.add_sink(MemorySink())


def recorded(env, sink):
    env.telemetry.flush()
    return [repr(event._replace(time=0.0)) for event in sink.events]


@pytest.mark.parametrize("mode", MODES)
def test_steps_states_pictures_and_events_are_equal(mode, pair, assert_same):
    plan, results, kinds = plan_for(pair[0]), [], []
    for env in pair:
        in_mode(env, mode)
        sink = watched(env)
        found = [env.reset(seed=4), *drive(env, plan, range(20))]
        found += [env.observe(), env.render(), env.action_masks(), env.get_state(), env.np_random_seed]
        results.append([*found, recorded(env, sink)])
        kinds = {event.type for event in sink.events}
    assert_same(*results)
    assert {"SEED_GERMINATED", "SEED_STAGE_CHANGED", "EPISODE_COMPLETED", "COUNTERFACTUAL_COMPUTED"} <= kinds


SEED = st.one_of(
    st.none(), st.integers(0, 99), st.lists(st.none() | st.integers(0, 99), min_size=COUNT, max_size=COUNT)
)
MASK = st.lists(st.booleans(), min_size=COUNT, max_size=COUNT).filter(any)
PLANTED = st.sampled_from([{}, {"r0c0": "conv_light"}, {"r0c0": "norm", "r0c2": "conv_small"}])
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("reset"), SEED, MASK, PLANTED),
        st.tuples(st.just("step"), st.integers(0, 2**32 - 1), st.booleans()),
        st.tuples(st.just("exchange states")),
    ),
    min_size=10,
    max_size=20,
)


def carry_out(env, call):
    match call:
        case "reset", seed, mask, planted:
            return env.reset(seed=seed, options={"reset_mask": np.array(mask), "topology": planted})
        case "step", seed, legal:
            rng = np.random.default_rng(seed)
            actions = env.sample_valid_actions(rng)
            if not legal:
                actions = rng.integers(0, env.single_action_space.nvec, size=actions.shape)
            return env.step(actions)


@pytest.mark.parametrize("mode", MODES[:2])
@given(calls=CALLS)
@examples(6)
def test_any_calls_have_equal_results(calls, mode, pair, assert_same):
    for env in pair:
        in_mode(env, mode).reset(seed=0)
    for call in calls:
        if call == ("exchange states",):
            states = [env.get_state() for env in pair]
            for env, state in zip(pair, reversed(states), strict=True):
                env.set_state(state)
        else:
            assert_same(*(carry_out(env, call) for env in pair))
    assert_same(*(env.get_state() for env in pair))


def test_attributes_methods_and_wrappers_are_those_of_one_process(pair, assert_same):
    for env in pair:
        in_mode(env, AutoresetMode.SAME_STEP).reset(seed=1)
    names = ("slot_ids", "topology", "offered_blueprints", "blueprint_names", "dataset_name", "data_digest", "task")
    for name in names[:-1]:
        assert pair[0].get_attr(name) == pair[1].get_attr(name)
    assert_same(*(env.call("action_masks") for env in pair))
    assert_same(*(env.call("render") for env in pair))
    for env in pair:
        env.set_attr("note", "new") if hasattr(env, "note") else setattr(env, "note", "old")
        env.np_random = [np.random.default_rng(row) for row in range(COUNT)]
    assert_same(*(env.reset() for env in pair))
    flat = [FlatVectorActions(env) for env in pair]
    actions = [int(np.flatnonzero(mask)[-1]) for mask in flat[0].action_masks()]
    assert_same(*(env.step(np.array(actions)) for env in flat))
    assert [env.workers for env in pair] == [2, 1]
    assert growth_of(pair[0]).host_parameters == pair[1].host_parameters


def test_rejected_states_and_actions_change_nothing(pair, assert_same):
    for env in pair:
        in_mode(env, AutoresetMode.SAME_STEP).reset(seed=2)
        env.step(np.zeros((COUNT, 8), dtype=np.int64))
    before, messages = pair[0].get_state(), []
    damaged = [copy.deepcopy(before) for _ in range(3)]
    damaged[0]["population"]["streams"]["left_lengths"][0] += 1
    damaged[1]["population"]["episode_seeds"] = before["population"]["episode_seeds"][1:]
    damaged[2]["population"]["streams"]["left"][0] = -1
    for env in pair:
        for state in damaged:
            with pytest.raises(ValueError, match="population: ") as caught:
                env.set_state(state)
            messages.append(str(caught.value))
        with pytest.raises(ValueError, match="actions"):
            env.step(np.zeros((COUNT, 3), dtype=np.int64))
        assert_same(env.get_state(), before)
    assert messages[:3] == messages[3:]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_copy_has_workers_of_its_own_and_continues_bit_for_bit(copied, pair, assert_same):
    env = in_mode(pair[0], AutoresetMode.SAME_STEP)
    plan = plan_for(env)
    env.reset(seed=4)
    drive(env, plan, range(5))
    twin = copied(env)
    try:
        assert twin.workers == 2
        assert set(growth_of(twin)._population.processes).isdisjoint(growth_of(env)._population.processes)
        assert_same(drive(twin, plan, range(5, 12)), drive(env, plan, range(5, 12)))
    finally:
        twin.close()


def test_results_equal_those_of_other_shards_up_to_rounding(float64_networks, make):  # noqa: ARG001
    results = []
    for settings in ({"workers": 3}, {}):
        env = make(COUNT, **settings)
        plan = plan_for(env)
        env.reset(seed=4)
        results.append(np.array([infos["val_loss"] for *_, infos in drive(env, plan, range(8))]))
    np.testing.assert_allclose(*results, atol=1e-6)


MAIN = """
import esper_env, gymnasium, numpy as np
from esper_env.hosts import SegmentedHost, SlotSpec
from torch import nn

class Host(SegmentedHost):
    topology = "mine"

    def __init__(self, data):
        super().__init__()
        self.segments = nn.ModuleList([Widen(), nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, data.classes))])
        self.slots, self.execution_order = (SlotSpec("r0c0", 4, "wide", 0, 0, 0, (4, 8, 8)),), (0,)

class Widen(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 4, 1)

esper_env.register_topology("mine", (4, 8, 8))
esper_env.register_blueprint("linear", "mine", lambda channels: nn.Conv2d(channels, channels, 1))
esper_env.register_task("Mine-v0", host=Host, horizon=4, batches_per_step=2, batch_size=8, device="cpu")
results = []
for settings in ({"workers": 2}, {"shard_size": 1}):
    envs = gymnasium.make_vec("Mine-v0", num_envs=2, autoreset_mode="SameStep", **settings)
    envs.reset(seed=0, options={"topology": {"r0c0": "linear"}})
    results.append([envs.step(np.zeros((2, 8), dtype=np.int64))[4]["val_loss"].tolist() for _ in range(4)])
    envs.close()
assert results[0] == results[1], results
print("equal")
"""


@pytest.mark.slow
def test_host_blueprint_and_topology_of_a_script_without_main_guard_reach_the_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    command = [sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("equal", "", 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "`workers` is 0; expected a positive integer or 'auto'"),
        ({"workers": True}, "`workers` is True; expected a positive integer or 'auto'"),
        ({"workers": "many"}, "`workers` is 'many'; expected a positive integer or 'auto'"),
        ({"workers": 6}, "`workers` is 6, for 5 environments; expected at most one for each"),
        ({"worker_timeout": 0}, "`worker_timeout` is 0; expected a positive number or None"),
    ],
)
def test_impossible_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match="^" + message):
        EsperVectorEnv(ENV, COUNT, **TINY, **settings)


def test_single_environment_has_no_workers():
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'workers'"):
        EsperEnv(ENV, workers=2)


def test_auto_is_one_worker_per_core_but_at_most_one_per_environment():
    assert resolve_workers("auto", 1000, "cpu") == available_cores() <= (os.cpu_count() or 1)
    assert resolve_workers("auto", 1, "cpu") == 1
    assert resolve_workers("auto", 1000, "cuda") == 1
    assert resolve_workers(3, 1000, "cuda") == 3


@given(st.integers(1, 200), st.integers(1, 64), st.integers(1, 16))
def test_every_worker_has_whole_shards_and_nearly_as_many_networks(count, shard_size, workers):
    shard_size, workers = min(shard_size, count), min(workers, count)
    size, parts = divide(count, shard_size, workers)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    assert size == shard_size if workers == 1 else size <= shard_size
    assert len(parts) <= workers
    assert all(part.start % size == 0 for part in parts)
    shards = [-(-(part.stop - part.start) // size) for part in parts]
    assert max(shards) - min(shards) <= 1
    assert max(part.stop - part.start for part in parts) <= -(-count // workers) + size - 1
    assert len(parts) == 1 or divide(count, shard_size, len(parts)) == (size, parts)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list mapped files")
def test_workers_map_one_copy_of_the_data(pair):
    pids = growth_of(pair[0])._population.processes
    files = {
        (fields[3], fields[4])
        for pid in pids
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        if "memfd:esper" in line and (fields := line.split())
    }
    assert len(pids) == 2
    assert len(files) == 1

"""Checks and faults of the soak: sound steps pass, and every kind of defect is found."""

import copy
import importlib
import sys
from contextlib import closing
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op
from esper_env.rules.stages import Stage

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = {"horizon": 9, "batches_per_step": 1, "batch_size": 8}
LITTLE = ["--num-envs", "3", "--env-settings", *(f"{name}={value}" for name, value in TINY.items())]
ROW, SEED, GATE = 1, ("seeds", "1", "1"), ("gates", "1")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "soak", raising=False)


@pytest.fixture
def checks():
    return importlib.import_module("soaking.checks")


@pytest.fixture
def faults():
    return importlib.import_module("soaking.faults")


@pytest.fixture
def env():
    """Three networks with a fossilized seed in the middle."""
    with closing(gymnasium.make_vec("Esper-Digits-v0", num_envs=3, **TINY).unwrapped) as made:
        made.reset(seed=0, options={"topology": {"r0c1": "conv_light"}})
        yield made


def actions(**heads):
    """WAIT for all but network 1."""
    made = np.stack([np.array(HEAD_DEFAULTS)] * 3)
    for name, value in heads.items():
        made[ROW, Head[name.upper()]] = value
    return made


def found(counter):
    return {name: count for name, count in counter.items() if count}


# Steps


def flip(infos, key, value):
    infos[key][ROW] = value


ILLEGAL = {"op": Op.FOSSILIZE, "slot": 0}


@pytest.mark.parametrize("heads", [{}, {"op": Op.GERMINATE, "blueprint": 1}, ILLEGAL])
def test_check_step_passes_sound_steps_to_the_end_of_the_episode(env, checks, heads):
    for _ in range(TINY["horizon"]):
        before = env.observe()
        result = env.step(actions(**heads))
        assert found(checks.check_step(env, before, actions(**heads), result)) == {}
    assert result[2].all()


@pytest.mark.parametrize(
    ("heads", "spoil", "name"),
    [
        ({}, lambda result: result[0]["features"].__setitem__((ROW, 0), 2.5), "an observation outside its space"),
        ({}, lambda result: result[1].__setitem__(ROW, np.nan), "a reward that is not finite"),
        ({}, lambda result: flip(result[4], "action_valid", False), "an action whose validity differs from the masks"),
        (ILLEGAL, lambda result: flip(result[4], "op", Op.FOSSILIZE), "an illegal action that was carried out"),
        (
            ILLEGAL,
            lambda result: flip(result[4], "action_valid", True),
            "an action whose validity differs from the masks",
        ),
    ],
)
def test_check_step_finds_a_defect(env, checks, heads, spoil, name):
    before, result = env.observe(), env.step(actions(**heads))
    spoil(result)
    assert found(checks.check_step(env, before, actions(**heads), result)) == {name: 1}


# Restored networks


@pytest.fixture
def rolled_back(env, faults):
    """State after a rollback of network 1, which lost its seed in slot 0; the others have one."""
    planted = actions()
    planted[:, Head.OP], planted[:, Head.BLUEPRINT] = Op.GERMINATE, 1
    env.step(planted)
    state = env.get_state()
    faults.inject(faults.Fault.INFINITE_BUFFER, state, ROW, np.random.default_rng(0))
    env.set_state(state)
    infos = env.step(actions())[4]
    assert infos["rollback"].tolist() == [False, True, False]
    state = env.get_state()
    assert state["table"]["stage"][ROW].tolist() == [Stage.PRUNED, Stage.FOSSILIZED, Stage.DORMANT]
    return state


def test_check_rolled_back_passes_a_restored_network(rolled_back, checks):
    assert found(checks.check_rolled_back(rolled_back, ROW)) == {}


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (("host",), "parameters", "a tensor that differs from the snapshot"),
        (("host",), "buffers", "a tensor that differs from the snapshot"),
        (SEED, "parameters", "a tensor that differs from the snapshot"),
        (GATE, "parameters", "a tensor that differs from the snapshot"),
        (("host",), "momentum", "a momentum that is not zero"),
        (SEED, "momentum", "a momentum that is not zero"),
    ],
)
def test_check_rolled_back_finds_a_changed_tensor(rolled_back, checks, path, kind, name):
    state = copy.deepcopy(rolled_back)
    values = next(iter(checks._at(state["population"], path)[kind].values()))
    values[0] += 1
    assert found(checks.check_rolled_back(state, ROW)) == {}, "this row belongs to another network"
    values[ROW] += 1
    assert found(checks.check_rolled_back(state, ROW)) == {name: 1}


def test_check_rolled_back_finds_a_live_seed(rolled_back, checks):
    rolled_back["table"]["stage"][ROW, 0] = Stage.TRAINING
    assert found(checks.check_rolled_back(rolled_back, ROW)) == {"a live seed after a rollback": 1}


# Faults


def test_inject_changes_one_network_only(env, checks, faults):
    for fault in faults.FAULTS:
        for number in range(5):
            state = env.get_state()
            slot = faults.inject(fault, state, ROW, np.random.default_rng(number))
            kinds = [part["population"]["host" if slot is None else "seeds"] for part in (state, env.get_state())]
            assert checks.differences(*kinds) > 0, fault
            assert checks.differences(*kinds, ignored=np.array([ROW])) == 0, fault
            numbers = np.concatenate([leaf[ROW].ravel() for _, leaf in checks._leaves(kinds[0])])
            assert np.isfinite(numbers).all() != fault.must_be_caught, fault


# The soak


def soaked(tmp_path, *arguments):
    soak = importlib.import_module("soak")
    settings = soak.tyro.cli(soak.SoakSettings, args=["--out", str(tmp_path / "soak.json"), *LITTLE, *arguments])
    with soak.open_soak(settings) as made:
        yield made


@pytest.fixture
def soak(tmp_path):
    yield from soaked(tmp_path)


def test_soak_finds_an_uncaught_fault(soak):
    module = sys.modules["soak"]
    with mock.patch.object(module, "inject", return_value=None), mock.patch.object(module, "FAULTS", module.FAULTS[:1]):
        soak._step_with_faults(soak._actions())
    assert found(soak.mismatches)["a fault that was not caught"] >= 1


def test_soak_finds_a_state_that_is_not_loaded(soak):
    soak._replay()
    assert found(soak.mismatches) == {}
    with mock.patch.object(soak.vector, "load_state"):
        soak._replay()
    assert found(soak.mismatches)["a stretch that was played twice"] > 0


def test_soak_reports_memory_growth(soak):
    soak.memory = [float(mib) for mib in range(100)]
    assert soak.growth == 90.0
    assert soak.readings(3) == [0.0, 49.0, 99.0]

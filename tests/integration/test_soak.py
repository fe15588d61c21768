"""The soak test: it passes sound steps and finds every kind of defect."""

import copy
import json
from contextlib import closing
from unittest import mock

import gymnasium
import numpy as np
import pytest
import soak
from esper_env.population.snapshots import Snapshots
from esper_env.rules.heads import HEAD_DEFAULTS, Head, Op
from esper_env.rules.stages import Stage
from soaking import checks, faults

TINY = {"horizon": 9, "batches_per_step": 1, "batch_size": 8}
LITTLE = ["--num-envs", "4", "--env-settings", *(f"{name}={value}" for name, value in TINY.items())]
OFTEN = ["--fault-share", "0.3", "--replay-share", "0.1", "--illegal-share", "0.3"]
ROW, SEED, GATE = 1, ("seeds", "1", "1"), ("gates", "1")
RESTORE, DIFFERS = Snapshots.restore, "a tensor that differs from the snapshot"


@pytest.fixture
def env():
    """Three networks with a fossilized seed in the middle."""
    settings = TINY | {"autoreset_mode": "SameStep"}
    with closing(gymnasium.make_vec("Esper-Digits-v0", num_envs=3, **settings).unwrapped) as made:
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

ILLEGAL = {"op": Op.FOSSILIZE, "slot": 0}
VALIDITY = "an action whose validity differs from the masks"


@pytest.mark.parametrize("heads", [{}, {"op": Op.GERMINATE, "blueprint": 1}, ILLEGAL])
def test_check_step_passes_sound_steps_to_the_end_of_the_episode(env, heads):
    for _ in range(TINY["horizon"]):
        before = env.observe()
        result = env.step(actions(**heads))
        assert found(checks.check_step(env, before, actions(**heads), result)) == {}
    assert result[2].all()


@pytest.mark.parametrize(
    ("heads", "values_of", "value", "name"),
    [
        ({}, lambda result: result[0]["features"][:, 0], 2.5, "an observation outside its space"),
        ({}, lambda result: result[1], np.nan, "a reward that is not finite"),
        ({}, lambda result: result[4]["action_valid"], False, VALIDITY),
        (ILLEGAL, lambda result: result[4]["action_valid"], True, VALIDITY),
        (ILLEGAL, lambda result: result[4]["op"], Op.FOSSILIZE, "an illegal action that was carried out"),
    ],
)
def test_check_step_finds_a_defect(env, heads, values_of, value, name):
    before, result = env.observe(), env.step(actions(**heads))
    values_of(result)[ROW] = value
    assert found(checks.check_step(env, before, actions(**heads), result)) == {name: 1}


def test_differences_counts_arrays_that_differ():
    one = ({"a": np.array([1.0, np.nan, 3.0])}, np.array([1, 2, 3]))
    other = ({"a": np.array([1.0, np.nan, 4.0])}, np.array([0, 2, 3]))
    assert checks.differences(one, copy.deepcopy(one)) == 0
    assert checks.differences(one, other) == 2
    assert checks.differences(one, other, ignored=np.array([2])) == 1
    assert checks.differences(one, other, ignored=np.array([0, 2])) == 0


# Restored networks


@pytest.fixture
def rolled_back(env):
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


def test_check_rolled_back_passes_a_restored_network_and_finds_a_live_seed(rolled_back):
    assert found(checks.check_rolled_back(rolled_back, ROW)) == {}
    rolled_back["table"]["stage"][ROW, 0] = Stage.TRAINING
    assert found(checks.check_rolled_back(rolled_back, ROW)) == {"a live seed after a rollback": 1}


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [
        (("host",), "parameters", DIFFERS),
        (("host",), "buffers", DIFFERS),
        (SEED, "parameters", DIFFERS),
        (GATE, "parameters", DIFFERS),
        (("host",), "momentum", "a momentum that is not zero"),
        (SEED, "momentum", "a momentum that is not zero"),
    ],
)
def test_check_rolled_back_finds_a_changed_tensor(rolled_back, path, kind, name):
    values = next(iter(checks._at(rolled_back["population"], path)[kind].values()))
    values[0] += 1
    assert found(checks.check_rolled_back(rolled_back, ROW)) == {}, "this row belongs to another network"
    values[ROW] += 1
    assert found(checks.check_rolled_back(rolled_back, ROW)) == {name: 1}


def test_inject_changes_one_network_only(env):
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


def run(out, *arguments):
    """The exit code and the results."""
    code = soak.main(["--out", str(out), *LITTLE, *OFTEN, *arguments])
    return code, json.loads(out.read_text())


@pytest.mark.slow
def test_soak_passes_a_sound_environment(tmp_path, capsys):
    code, result = run(tmp_path / "soak.json", "--steps", "40")
    assert (code, result["mismatches"], result["failure"]) == (0, {}, None)
    counts = result["counts"]
    faults = {name: count for name, count in counts.items() if name.startswith("fault: ")}
    assert len(faults) == 4
    assert result["faults"] == sum(faults.values())
    for name in ("episodes", "illegal actions", "rollbacks", "faults rolled back at once", "stretches played twice"):
        assert counts[name] > 0, name
    assert counts["steps"] >= 40 * 4
    assert len(result["memory_mib"]["readings"]) == 20
    assert "mismatches" in capsys.readouterr().out


def restore_nothing(_snapshots, _structure, _row):
    pass


def restore_and_leak(snapshots, structure, row):
    for values in snapshots._shard.host.parameters.values():
        values.mul_(1.001)
    RESTORE(snapshots, structure, row)


@pytest.mark.parametrize(
    ("broken", "name"), [(restore_nothing, DIFFERS), (restore_and_leak, "other networks after a fault")]
)
def test_soak_finds_a_broken_rollback(tmp_path, capsys, broken, name):
    with mock.patch.object(Snapshots, "restore", broken):
        code, result = run(tmp_path / "soak.json", "--steps", "12")
    assert code == 1
    assert name in result["mismatches"]
    assert f"MISMATCH {name}" in capsys.readouterr().out


def test_help_shows_no_empty_default(capsys):
    assert soak.main(["--help"]) == 0
    assert "default: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], " needs --out; --help describes"),
        (["--out", "x", "--step", "3"], "has no option '--step'; --help lists its"),
    ],
)
def test_missing_and_unknown_options_are_one_line(arguments, said, capsys):
    assert soak.main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert said in err
    assert err.count("\n") == 1


def test_soak_that_fails_writes_what_it_found(tmp_path, capsys):
    with mock.patch.object(soak.Soak, "_replay", side_effect=IndexError("row 7")):
        code, result = run(tmp_path / "soak.json", "--steps", "12", "--replay-share", "1")
    assert (code, result["failure"], result["memory_mib"]) == (1, "IndexError: row 7", {"growth": None, "readings": []})
    assert result["counts"]["steps"] > 0
    out, err = capsys.readouterr()
    assert "IndexError: row 7" in out
    assert "Traceback" in err


def test_soak_finds_an_uncaught_fault_and_a_state_that_is_not_loaded(tmp_path):
    settings = soak.tyro.cli(soak.SoakSettings, args=["--out", str(tmp_path / "soak.json"), *LITTLE])
    with soak.open_soak(settings) as made:
        made._replay()
        assert found(made.mismatches) == {}
        with mock.patch.object(made.vector, "load_state"):
            made._replay()
        assert found(made.mismatches)["a stretch that was played twice"] > 0
        with mock.patch.object(soak, "inject", return_value=None), mock.patch.object(soak, "FAULTS", soak.FAULTS[:1]):
            made._step_with_faults(made._actions())
        assert found(made.mismatches)["a fault that was not caught"] >= 1
        made.memory = [float(mib) for mib in range(100)]
        assert made.growth == 90.0
        assert made.readings(3) == [0.0, 49.0, 99.0]

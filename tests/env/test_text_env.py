"""Environments on text: losses and accuracies of bytes, determinism, states and rollbacks."""

import gymnasium
import numpy as np
import pytest
import torch
from blueprints import TRANSFORMER_BLUEPRINTS
from esper_env.rules.heads import Blueprint, Op
from esper_env.rules.stages import Stage
from faults import growth_of, write
from growing import choose, lives

ENV = "Esper-Text-v0"
TINY = {"horizon": 9, "batches_per_step": 2, "batch_size": 4, "device": "cpu"}


@pytest.fixture
def make():
    opened = []

    def build(num_envs=None, env_id=ENV, **kwargs):
        settings = TINY | kwargs
        made = (
            gymnasium.make(env_id, **settings)
            if num_envs is None
            else gymnasium.make_vec(env_id, num_envs=num_envs, **settings)
        )
        opened.append(made)
        return made

    yield build
    for env in opened:
        env.close()


def grown(env, plan, steps):
    """Results of the steps of a plan."""
    results = []
    for step in range(steps):
        actions = np.array(choose(growth_of(env), plan, step))
        results.append(env.step(actions if hasattr(env.unwrapped, "num_envs") else actions[0]))
    return results


def plan_for(count, seed=3):
    return lives(seed, count, 30, 2, TRANSFORMER_BLUEPRINTS)


def test_loss_is_in_nats_and_accuracy_counts_next_bytes(make):
    env = make()
    _, info = env.reset(seed=0)
    assert env.unwrapped.dataset_name == "grammar"
    assert abs(info["val_loss"] - np.log(256)) < 0.2  # an untrained network
    assert info["val_bits_per_byte"] == pytest.approx(info["val_loss"] / np.log(2))
    predictions = growth_of(env)._population._splits.validation.predictions
    assert (info["val_accuracy"] / 100 * predictions) == pytest.approx(round(info["val_accuracy"] / 100 * predictions))
    for _ in range(8):
        _, _, terminated, _, after = env.step(np.zeros(8, dtype=np.int64))
    assert after["val_loss"] < info["val_loss"] - 0.5
    assert "val_bits_per_byte" in after
    assert not terminated


def test_seed_and_state_reproduce_the_same_bits(make, assert_same):
    first, again = make(2, horizon=6, shard_size=2), make(2, horizon=6, shard_size=2)
    assert_same(first.reset(seed=5), again.reset(seed=5))
    plan = plan_for(2)
    assert_same(grown(first, plan, 4), grown(again, plan, 4))
    state = first.unwrapped.get_state()
    future = grown(first, plan_for(2, seed=8), 4)  # past the end of the episodes
    grown(again, plan, 1)
    again.unwrapped.set_state(state)
    assert_same(grown(again, plan_for(2, seed=8), 4), future)


def test_bfloat16_trains(make):
    env = make(precision="bfloat16")
    _, before = env.reset(seed=0, options={"topology": {"r0c0": "attention", "r0c1": "mlp"}})
    for _ in range(8):
        *_, info = env.step(np.zeros(8, dtype=np.int64))
    assert info["val_loss"] < before["val_loss"] - 0.5


def test_network_with_nan_is_rolled_back(make):
    broken, whole = make(3, shard_size=3), make(3, shard_size=3)
    for env in (broken, whole):
        env.reset(seed=1, options={"topology": {"r0c0": "attention"}})
    wait = np.zeros((3, 8), dtype=np.int64)
    for env in (broken, whole):
        env.step(wait)
    write(growth_of(broken), 1, 0, "seed", "inputs.weight", torch.nan)
    *_, infos = broken.step(wait)
    *_, expected = whole.step(wait)
    assert infos["rollback"].tolist() == [False, True, False]
    assert Stage(infos["slot_stage"][1, 0]) in (Stage.PRUNED, Stage.FOSSILIZED)
    assert np.isfinite(infos["val_loss"]).all()
    for key in ("val_loss", "val_accuracy"):
        assert infos[key][[0, 2]].tolist() == expected[key][[0, 2]].tolist()
    *_, later = broken.step(wait)
    assert not later["rollback"].any()


def test_seed_passes_from_germination_to_commitment(make, script):
    env = make(horizon=12)
    env.reset(seed=0)
    for action in script(1, Blueprint.MLP):
        *_, info = env.step(action)
    assert Stage(info["slot_stage"][1]) == Stage.FOSSILIZED
    assert info["parameters_added"] == 2 * 32 * 128 + 128 + 32 + 3 * 32
    assert info["contribution_measured"][1]


def test_cnn_blueprints_are_illegal(make, action):
    env = make()
    env.reset(seed=0)
    *_, info = env.step(action(Op.GERMINATE, 0, blueprint=Blueprint.CONV_LIGHT))
    assert not info["action_valid"]


def test_custom_file_is_a_dataset(make, tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 200, encoding="utf-8")
    env = make(dataset=str(path))
    _, before = env.reset(seed=0)
    assert env.unwrapped.dataset_name == "text:book.txt"
    for _ in range(8):
        *_, info = env.step(np.zeros(8, dtype=np.int64))
    assert info["val_accuracy"] > before["val_accuracy"]


def test_state_depends_on_the_text_and_not_on_its_path(make, tmp_path):
    envs = []
    for folder, line in {
        "a": "the quick brown fox\n",
        "b": "all of it is other\n\n",
        "c": "the quick brown fox\n",
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "book.txt").write_text(line * 300, encoding="utf-8")
        envs.append(make(dataset=str(tmp_path / folder / "book.txt")))
        envs[-1].reset(seed=0)
    first, other, same = (env.unwrapped for env in envs)
    assert first.data_digest == same.data_digest != other.data_digest
    with pytest.raises(
        ValueError, match=r"saved on other data .* data_digest is '[0-9a-f]{32}' in the state and '[0-9a-f]{32}' here"
    ):
        other.set_state(first.get_state())
    same.set_state(first.get_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "gramar"}, "gramar"),
        ({"slots": ["r0c2"]}, r"slots \['r0c2'\] do not exist"),
    ],
)
def test_task_rejects_bad_datasets_and_slots(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)

"""Life of a seed as seen through the environment."""

import gymnasium
import numpy as np
import pytest
from esper_env.rules.heads import AlphaTarget, Blueprint, Op, Style
from esper_env.rules.rejection import Rejection
from esper_env.rules.stages import STAGE_INDEX, Stage
from plain_rules import slot_index

pytestmark = pytest.mark.numeric

CHANNELS = (4, 8, 16)  # of the digits host's slots
#: Trainable scalars of seeds: a 3x3 kernel, GroupNorm's weight and bias, a scale; GroupNorm's and a gate per channel.
CONV_LIGHT = [9 * c * c + 2 * c + c for c in CHANNELS]
NORM = [2 * c + c for c in CHANNELS]
#: Of a blend gate: c -> c/4 -> 1, both with bias.
GATE = [(c + 1) * (c // 4) + (c // 4 + 1) for c in CHANNELS]


def stage_of(observation, slot):
    first = slot_index("stage_unknown", slot)
    shown = np.flatnonzero(observation["features"][first : first + 10])
    return Stage.DORMANT if len(shown) == 0 else next(s for s in Stage if STAGE_INDEX[s] == shown[0])


def feature(observation, name, slot):
    return float(observation["features"][slot_index(name, slot)])


def table_of(env):
    return env.unwrapped._vector._growth.table


def run(env, actions):
    """Return the last observation and all infos."""
    infos = []
    for choice in actions:
        observation, _, _, _, info = env.step(choice)
        infos.append(info)
    return observation, infos


def test_shortest_life_takes_nine_steps(make_digits, script):
    env = make_digits(horizon=20)
    env.reset(seed=0)
    expected = [
        (Stage.GERMINATED, 0.0),
        (Stage.TRAINING, 0.0),
        (Stage.TRAINING, 0.0),
        (Stage.TRAINING, 0.0),
        (Stage.BLENDING, 1 / 3),
        (Stage.BLENDING, 2 / 3),
        (Stage.BLENDING, 1.0),
        (Stage.HOLDING, 1.0),
        (Stage.FOSSILIZED, 1.0),
    ]
    for choice, (stage, alpha) in zip(script(1), expected, strict=True):
        observation, _, _, _, info = env.step(choice)
        assert info["action_valid"]
        assert info["action_succeeded"]
        assert stage_of(observation, 1) == stage
        assert feature(observation, "alpha", 1) == pytest.approx(alpha)
        assert info["parameters_added"] > 0


@pytest.mark.parametrize("env_id", ["Esper-CIFAR-v0", "Esper-CIFAR-Impaired-v0"])
def test_every_blueprint_trains_in_isolation_on_large_hosts(env_id, tiny, action):
    """The last slot comes first, so that later seeds train in front of others."""
    env = gymnasium.make(env_id, **(tiny(env_id) | {"horizon": 20}))
    slots = len(env.unwrapped.slot_ids)
    for first in range(0, len(env.unwrapped.offered_blueprints), slots):
        env.reset(seed=first)
        planted = env.unwrapped.offered_blueprints[first : first + slots]
        for slot, blueprint in enumerate(planted):
            for op in (Op.GERMINATE, Op.ADVANCE):
                observation, *_ = env.step(action(op, slots - 1 - slot, blueprint=blueprint))
        stages = [stage_of(observation, slots - 1 - slot) for slot in range(len(planted))]
        assert stages == [Stage.TRAINING] * len(planted)
    env.close()


def test_contribution_is_prospective_in_training_and_measured_when_blended(make_digits, script):
    env = make_digits(horizon=20)
    env.reset(seed=0)
    for choice, measured in zip(script(0), [False, *[True] * 8], strict=True):
        observation, _, _, _, _ = env.step(choice)
        assert feature(observation, "counterfactual_freshness", 0) == float(measured)
        table = table_of(env)
        assert table.contribution_age[0, 0] == (0 if measured else -1)
    assert table.contribution_alpha[0, 0] == 1.0


def test_another_operator_starts_without_momentum(make_digits, script, action, monkeypatch):
    env = make_digits(horizon=20)
    env.reset(seed=0)
    population = env.unwrapped._vector._growth._population
    run(env, script(0)[:8])  # HOLDING under ADD
    forgotten = []
    monkeypatch.setattr(population, "clear_momentum", lambda *masks: forgotten.append(masks))
    full = {"alpha_target": AlphaTarget.FULL}
    run(env, [action(Op.SET_ALPHA_TARGET, 0, style=Style.LINEAR_ADD, **full)])
    assert not forgotten.pop()[0].any()
    run(env, [action(Op.SET_ALPHA_TARGET, 0, style=Style.GATED_GATE, **full)])
    mask, blueprint = forgotten.pop()
    assert np.argwhere(mask).tolist() == [[0, 0]]
    assert blueprint[0, 0] == Blueprint.CONV_LIGHT


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_parameters_are_counted_exactly(make_digits, action, slot):
    env = make_digits()
    env.reset(seed=0)
    other, third = (slot + 1) % 3, (slot + 2) % 3
    planted = [
        action(Op.GERMINATE, slot, blueprint=Blueprint.CONV_LIGHT, style=Style.LINEAR_ADD),
        action(Op.GERMINATE, other, blueprint=Blueprint.NORM, style=Style.LINEAR_MULTIPLY),
        action(Op.GERMINATE, third, blueprint=Blueprint.NORM, style=Style.GATED_GATE),
        action(Op.PRUNE, slot),
    ]
    _, infos = run(env, planted)
    sizes = np.cumsum([CONV_LIGHT[slot], NORM[other], NORM[third] + GATE[third], -CONV_LIGHT[slot]])
    assert [info["parameters_added"] for info in infos] == sizes.tolist()


def test_strict_gates_stop_a_seed_without_contribution(script):
    """Without learning, permissive gates pass and a strict one fails."""
    outcomes = {}
    for gates in ("permissive", "strict"):
        settings = {"batches_per_step": 2, "batch_size": 16, "seed_lr": 1e-9, "host_lr": 1e-9, "mask_gates": False}
        env = gymnasium.make("Esper-Digits-v0", horizon=20, gates=gates, **settings)
        env.reset(seed=0)
        _, infos = run(env, script(0))
        outcomes[gates] = [Rejection(info["rejection"]) for info in infos]
        assert infos[4]["action_valid"]
        env.close()
    assert outcomes["permissive"] == [Rejection.NONE] * 9
    assert outcomes["strict"][4] is Rejection.G2_PROSPECTIVE_CONTRIBUTION


def test_max_seeds_limits_germination(make_digits, action):
    env = make_digits(max_seeds=1)
    observation, _ = env.reset(seed=0)
    assert observation["op_slot_mask"].reshape(6, 3)[Op.GERMINATE].tolist() == [1, 1, 1]
    observation, _, _, _, _ = env.step(action(Op.GERMINATE, 1))
    assert observation["op_slot_mask"].reshape(6, 3)[Op.GERMINATE].tolist() == [0, 0, 0]
    observation, _, _, _, info = env.step(action(Op.GERMINATE, 2))
    assert info["rejection"] == Rejection.ILLEGAL
    assert observation["blueprints"].tolist() == [13, Blueprint.NORM, 13]


def test_subset_of_slots_makes_a_smaller_environment(make_digits, script):
    env = make_digits(slots=["r0c2", "r0c0"], horizon=20)
    assert env.unwrapped.slot_ids == ("r0c0", "r0c2")
    assert env.action_space.nvec[0] == 2
    observation, _ = env.reset(seed=0)
    assert observation["features"].shape == (91,)
    _, infos = run(env, script(1))
    assert infos[-1]["action_succeeded"]
    assert infos[-1]["parameters_added"] == CONV_LIGHT[2]


@pytest.mark.usefixtures("float64_networks")
def test_omitted_slot_does_not_change_the_host(make_digits, action):
    losses = []
    for slots in (None, ["r0c1"]):
        env = make_digits(slots=slots)
        env.reset(seed=5)
        _, infos = run(env, [action()] * 3)
        losses.append([info["val_loss"] for info in infos])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


class TestTopology:
    """Seeds that are planted at the start."""

    def test_planted_seeds_are_committed_and_pay_rent(self, make_digits, action):
        env = make_digits()
        observation, info = env.reset(seed=0, options={"topology": {"r0c0": "conv_light", "r0c2": "norm"}})
        assert observation["blueprints"].tolist() == [Blueprint.CONV_LIGHT, 13, Blueprint.NORM]
        assert [stage_of(observation, slot) for slot in range(3)] == [Stage.FOSSILIZED, Stage.DORMANT, Stage.FOSSILIZED]
        assert feature(observation, "alpha", 0) == 1.0
        assert info["parameters_added"] == CONV_LIGHT[0] + NORM[2]
        assert not observation["op_slot_mask"].reshape(6, 3)[1:, [0, 2]].any()
        _, _, _, _, info = env.step(action())
        rent = -0.05 * np.log1p(info["parameters_added"] / 390) / 6
        assert info["reward_rent"] == pytest.approx(rent)
        assert info["reward_op_cost"] == 0.0

    def test_planted_seeds_train(self, make_digits, action):
        """In other slots, a shift before the host's next BatchNorm has no gradient."""
        env = make_digits()
        env.reset(seed=0, options={"topology": {"r0c2": "conv_light"}})
        population = env.unwrapped._vector._growth._population
        weights = population.shards[0].seed_stack(2, Blueprint.CONV_LIGHT).parameters
        before = {name: value.clone() for name, value in weights.items()}
        env.step(action())
        after = population.shards[0].seed_stack(2, Blueprint.CONV_LIGHT).parameters
        assert all((after[name] != before[name]).any() for name in before)

    @pytest.mark.usefixtures("float64_networks")
    def test_planted_seeds_count_as_committed_at_the_end(self, make_digits, action):
        env = make_digits(horizon=2)
        env.reset(seed=0, options={"topology": {"r0c1": "conv_light"}})
        _, infos = run(env, [action()] * 2)
        assert infos[-1]["committed_parameters_added"] == infos[-1]["parameters_added"] == CONV_LIGHT[1]
        assert infos[-1]["committed_val_accuracy"] == infos[-1]["val_accuracy"]

    def test_topology_lasts_one_episode(self, make_digits):
        env = make_digits()
        env.reset(seed=0, options={"topology": {"r0c1": "norm"}})
        observation, info = env.reset()
        assert observation["blueprints"].tolist() == [13, 13, 13]
        assert info["parameters_added"] == 0

    def test_planting_does_not_change_the_initial_host(self, make_digits):
        """A newborn seed is almost the identity, and has its own generator."""
        env = make_digits()
        plain = env.reset(seed=3)[1]["val_loss"]
        planted = env.reset(seed=3, options={"topology": {"r0c0": "conv_light"}})[1]["val_loss"]
        assert planted == pytest.approx(plain, abs=0.02)

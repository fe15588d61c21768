"""Suspicions of reward hacking in scripted episodes without networks, and in those of the heuristic."""

import json
from itertools import pairwise

import numpy as np
import pytest
from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.reward_hacking import RewardHackingDetector
from esper_agent.policies.heuristic import HeuristicPolicy
from esper_agent.sb3 import make_sb3_env
from esper_env.rules.heads import Op
from esper_env.rules.reward import RewardInputs, RewardModel
from esper_env.rules.reward_config import reward_config
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from stepping import reward_components

HORIZON = 40
HOST_CURVE = 10 + 35 * (1 - np.exp(-np.arange(HORIZON) / 10))
SETTINGS = AnomalySettings()

# A world with a reward model and no network, in which seeds add given points


def world(stages, effects, curve=HOST_CURVE, weights=None):
    """Infos of an episode, from ``stages`` (T, S) and ``effects`` (T, S), the points that an active seed adds."""
    stages, effects = np.atleast_2d(np.asarray(stages).T).T, np.atleast_2d(np.asarray(effects, dtype=float).T).T
    horizon, slots = stages.shape
    config = reward_config("contribution", weights)
    model = RewardModel(1, slots, horizon, 400, config)
    model.reset(np.array([True]), curve[:1], SlotTable.empty(1, slots))
    infos = []
    for t in range(horizon):
        table = SlotTable.empty(1, slots)
        table.stage[0] = stages[t]
        on = np.isin(stages[t], [Stage.HOLDING, Stage.FOSSILIZED])
        table.alpha[0], table.contribution[0] = on, on * effects[t]
        table.contribution_age[0] = np.where(on, 0, -1)
        fossilized = np.where(stages[t] == Stage.FOSSILIZED, effects[t], 0.0)
        accuracy, last = float(curve[t] + (on * effects[t]).sum()), t == horizon - 1
        components = model.compute(
            RewardInputs(
                val_accuracy=np.array([accuracy]),
                committed_accuracy=np.array([curve[t] + fossilized.sum()]),
                terminated=np.array([last]),
                parameters_added=np.array([300 * on.sum()]),
                op=np.array([Op.WAIT]),
                table=table,
                rolled_back=np.array([False]),
                interactions=np.zeros((1, *[table.shape[1]] * 2)),
                interactions_measured=np.zeros((1, *[table.shape[1]] * 2), dtype=bool),
            )
        )
        info = {
            "val_accuracy": accuracy,
            "slot_stage": stages[t],
            "contribution": np.where(on, effects[t], 0.0),
            "contribution_measured": on,
            "committed_measured": last,
            "shapley": fossilized if last else np.zeros_like(fossilized),
            **{f"reward_{name}": float(value[0]) for name, value in components.items()},
        }
        infos.append(info)
    return infos


def suspected(infos, settings=SETTINGS, scale=1.0):
    detector = RewardHackingDetector(settings, scale)
    steps = [detector.observe([info], [index == len(infos) - 1]) for index, info in enumerate(infos)]
    return [suspicion for step in steps for suspicion in step]


def ransoms(infos):
    return [s for s in suspected(infos) if s.payload.signature == "ransomware"]


def life(last, start=0, length=HORIZON):
    """Stages of a seed that advances every step up to ``last`` and stays there."""
    path = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED]
    path = path[: path.index(last) + 1]
    return ([Stage.DORMANT] * start + path + [last] * length)[:length]


def test_seed_worth_its_reward_is_not_suspected():
    assert suspected(world(life(Stage.FOSSILIZED), [15.0] * HORIZON)) == []


def test_fossilizing_at_a_peak_is_overpaid():
    peak = np.where(np.arange(HORIZON) < 6, 30.0, 0.5)
    (suspicion,) = suspected(world(life(Stage.FOSSILIZED), peak))
    payload = suspicion.payload
    assert (suspicion.env, suspicion.episode, suspicion.epoch, suspicion.slot) == (0, 0, 40, None)
    # stage potentials .01 x (1, 2, 3.5, 5.5, 6) and a contribution of 30, each discounted by 0.98
    potentials = [0.0, 1.0, 2.0, 3.5, 5.5, 6.0]
    stages = sum(0.98 * new - old for old, new in pairwise(potentials))
    paid = stages + 0.98 * 30.0
    assert (payload.signature, payload.improvement) == ("overpaid", 0.5)
    assert payload.paid == pytest.approx(paid)
    assert payload.ratio == pytest.approx(paid / 0.5)


def test_waiting_in_holding_is_overpaid_for_nothing():
    (suspicion,) = suspected(world(life(Stage.HOLDING), [15.0] * HORIZON))
    payload = suspicion.payload
    assert (payload.signature, payload.improvement, payload.ratio) == ("overpaid", 0, None)


def test_repeated_germination_and_pruning_is_overpaid():
    cycle = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.PRUNED, Stage.DORMANT]
    (suspicion,) = suspected(world((cycle * 7)[:HORIZON], [20.0] * HORIZON))
    assert (suspicion.payload.signature, suspicion.payload.improvement) == ("overpaid", 0)


@pytest.mark.slow
@pytest.mark.numeric
def test_heuristic_is_rarely_suspected_on_a_real_task():
    env = make_sb3_env("Esper-Digits-v0", 8, seed=500, reward_mode="contribution")
    policy, state, observation, found = HeuristicPolicy.for_env(env.venv.vec_env), None, env.reset(), []
    detector = RewardHackingDetector(SETTINGS)
    for _ in range(HORIZON):
        actions, state = policy.predict(observation, state)
        observation, _, dones, infos = env.step(actions)
        found += detector.observe(infos, dones)
    assert dones.all()
    assert len(found) <= 1


def test_idle_seed_beside_an_improving_host_is_not_suspected():
    infos = world(life(Stage.FOSSILIZED), [0.0] * HORIZON)
    assert infos[-1]["val_accuracy"] > infos[0]["val_accuracy"] + 30
    assert sum(sum(reward_components(info).values()) for info in infos) < 0
    assert suspected(infos) == []


@pytest.mark.parametrize(("worth", "count"), [(3.01, 0), (2.99, 1)])
def test_reward_is_compared_with_the_worth_of_the_seeds(worth, count):
    infos = world(life(Stage.FOSSILIZED), [15.0] * HORIZON)
    infos[-1]["shapley"] = np.array([worth])
    paid = sum(max(info[f"reward_{name}"], 0) for info in infos for name in ("contribution", "stages")) * 100
    settings = AnomalySettings(hacking_ratio=paid / 3.0)
    assert len(suspected(infos, settings)) == count


@pytest.mark.parametrize(("floor", "count"), [(0.999, 1), (1.001, 0)])
def test_small_reward_is_not_suspected(floor, count):
    infos = world(life(Stage.HOLDING), [15.0] * HORIZON)
    paid = suspected(infos)[0].payload.paid
    assert len(suspected(infos, AnomalySettings(hacking_points=paid * floor))) == count


def test_paid_points_are_independent_of_the_reward_scale():
    infos, scaled = (world(life(Stage.HOLDING), [15.0] * HORIZON, weights=w) for w in (None, {"scale": 10.0}))
    for info in (*infos, *scaled):
        del info["reward_stages"]  # do not scale
    assert suspected(scaled, scale=10.0)[0].payload.paid == pytest.approx(suspected(infos)[0].payload.paid)


def test_truncated_episode_is_not_judged_and_the_next_starts_afresh():
    infos = world(life(Stage.HOLDING), [15.0] * HORIZON)
    detector = RewardHackingDetector(SETTINGS)
    for index, info in enumerate(infos[:20]):
        assert detector.observe([info], [index == 19]) == []
    waiting = world([Stage.DORMANT] * HORIZON, [0.0] * HORIZON)
    assert [detector.observe([info], [info is waiting[-1]]) for info in waiting] == [[]] * HORIZON


def held(change, epochs, contribution=5.0, length=20):
    """A seed planted at epoch 5 and in HOLDING for ``epochs`` from epoch 8, after accuracy has changed."""
    stages = [Stage.DORMANT] * 5 + [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING]
    stages += [Stage.HOLDING] * epochs + [Stage.PRUNED] * (length - 8 - epochs)
    curve = np.where(np.arange(length) < 5, 50.0, 50.0 + change - contribution)
    return world(stages, [contribution] * length, curve)


@pytest.mark.parametrize(
    ("change", "epochs", "contribution", "fires"),
    [
        (-2.1, 5, 5.0, True),
        (-1.9, 5, 5.0, False),
        (-2.1, 4, 5.0, False),
        (-9.0, 5, 0.11, True),
        (-9.0, 5, 0.09, False),
        (9.0, 5, 5.0, False),
    ],
)
def test_ransomware_is_reported_above_thresholds_only(change, epochs, contribution, fires):
    found = ransoms(held(change, epochs, contribution))
    assert len(found) == fires
    if fires:
        (suspicion,) = found
        assert (suspicion.slot, suspicion.epoch, suspicion.payload.ratio) == (0, 13, None)
        assert suspicion.payload.paid == pytest.approx(contribution)
        assert suspicion.payload.improvement == pytest.approx(change)


def test_seed_is_reported_once_and_its_successor_again():
    one = held(-9.0, 12)
    for info in one:
        info.update({f"reward_{name}": 0.0 for name in reward_components(info)}, committed_measured=False)
    assert [s.payload.signature for s in suspected(one)] == ["ransomware"]
    # The second is planted in the better network that the first was pruned from.
    assert [s.payload.signature for s in suspected([*held(-9.0, 8, length=19)[:-1], *one])].count("ransomware") == 2


@pytest.mark.parametrize(
    ("change", "contribution", "name", "value"),
    [
        (3.0, 5.0, "val_accuracy", 5.0),
        (-9.0, 5.0, "contribution_measured", np.array([False])),
        (-9.0, 0.05, "contribution", np.array([40.0])),
    ],
)
def test_single_epoch_does_not_decide(change, contribution, name, value):
    infos = held(change, 5, contribution)
    infos[11][name] = value
    assert ransoms(infos) == []


def test_accuracy_is_compared_with_the_three_epochs_before_planting():
    infos = held(-9.0, 5)
    for epoch, accuracy in enumerate((90.0, 90.0, 45.0, 46.0, 44.0)):
        infos[epoch]["val_accuracy"] = accuracy
    (suspicion,) = ransoms(infos)
    assert suspicion.payload.improvement == pytest.approx(41.0 - 45.0)


def test_seed_of_the_first_step_is_compared_with_that_step():
    infos = world(life(Stage.HOLDING), [5.0] * HORIZON, np.where(np.arange(HORIZON) < 1, 50.0, 36.0))
    (suspicion,) = ransoms(infos)
    assert suspicion.payload.improvement == pytest.approx(41.0 - 50.0)


@pytest.mark.parametrize("holding", [0, 2, 4])
def test_fossilized_seed_can_be_ransomware(holding):
    infos = held(-9.0, 12)
    for info in infos[8 + holding : 20]:
        info["slot_stage"] = np.array([Stage.FOSSILIZED])
    assert [s.epoch for s in ransoms(infos)] == [13]


def test_scaffold_reward_counts_as_paid_and_harmful_seeds_are_worth_zero():
    infos = world([Stage.DORMANT] * HORIZON, [0.0] * HORIZON)
    infos[3]["reward_scaffold"] = 0.2
    infos[-1]["shapley"] = np.array([-3.0])
    (suspicion,) = suspected(infos)
    assert suspicion.payload.paid == pytest.approx(20.0)
    assert (suspicion.payload.improvement, suspicion.payload.ratio) == (0.0, None)


def two_seeds(lost, contribution=20.0, planted=5):
    """A seed in HOLDING from 18 on, and another whose prune at epoch 15 costs ``lost`` points."""
    epochs = np.arange(30)
    first = np.where(epochs < planted, Stage.DORMANT, np.where(epochs < 18, Stage.TRAINING, Stage.HOLDING))
    second = np.where(epochs < 3, Stage.GERMINATED, np.where(epochs < 15, Stage.BLENDING, Stage.PRUNED))
    infos = world(np.stack([first, second], axis=1), np.zeros((30, 2)), np.full(30, 50.0))
    for epoch, info in enumerate(infos):
        info["contribution"] = np.array([5.0, contribution if 5 < epoch < 12 else 0.0])
        info["contribution_measured"] = np.array([epoch >= 18, 5 < epoch < 15])
        info["val_accuracy"] = 50.0 if epoch < 15 else 50.0 - lost
    return infos


@pytest.mark.parametrize(("lost", "fires"), [(20.0, 0), (21.9, 0), (22.1, 1)])
def test_loss_by_a_pruned_seed_is_not_held_against_another(lost, fires):
    assert len(ransoms(two_seeds(lost))) == fires


def test_pruned_seed_without_contribution_excuses_nothing():
    (suspicion,) = ransoms(two_seeds(9.0, contribution=-20.0))
    assert (suspicion.slot, suspicion.payload.improvement) == (0, -9.0)


def test_seed_planted_after_a_loss_is_compared_with_the_accuracy_after_it():
    assert ransoms(two_seeds(20.0, planted=16)) == []


def test_environments_are_independent_and_resume_from_a_json_state():
    bad, good = world(life(Stage.HOLDING), [15.0] * HORIZON), world(life(Stage.FOSSILIZED), [15.0] * HORIZON)
    steps = [([bad[t], good[t], held(-9.0, 12, length=HORIZON)[t]], [t == HORIZON - 1] * 3) for t in range(HORIZON)]
    whole = RewardHackingDetector(SETTINGS)
    expected = [whole.observe(*step) for step in steps * 2]
    flat = [(s.payload.signature, s.env, s.episode) for step in expected for s in step]
    once = [("ransomware", 2), ("overpaid", 0), ("overpaid", 2)]
    assert flat == [(*found, episode) for episode in (0, 1) for found in once]
    for cut in (1, 14, 39, 40, 55):
        first, second = RewardHackingDetector(SETTINGS), RewardHackingDetector(SETTINGS)
        found = [first.observe(*step) for step in (steps * 2)[:cut]]
        second.set_state(json.loads(json.dumps(first.get_state())))
        found += [second.observe(*step) for step in (steps * 2)[cut:]]
        assert found == expected
        assert second.get_state() == whole.get_state()

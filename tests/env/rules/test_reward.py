"""Rewards: formulas on hand-made episodes, identities on every episode, and the model's memory.

The identities exclude known exploits (waiting in HOLDING, germinating and pruning in a circle, fossilizing at a peak,
claiming the progress of the host): a return depends on the committed network and on costs only.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import pytest
from esper_env.rules.heads import Op
from esper_env.rules.reward import RewardInputs, RewardModel
from esper_env.rules.reward_config import RewardMode, reward_config
from esper_env.rules.slot_table import SlotTable
from esper_env.rules.stages import Stage
from hypothesis import given
from hypothesis import strategies as st

HOST = 400
SLOTS = 2
EMPTY = Stage.DORMANT
MODES = pytest.mark.parametrize("mode", list(RewardMode))


@dataclass(frozen=True)
class Step:
    """One step of one environment with two slots."""

    accuracy: float = 10.0
    stage: tuple[Stage, Stage] = (EMPTY, EMPTY)
    alpha: tuple[float, float] = (0.0, 0.0)
    contribution: tuple[float, float] | None = None  # None = not measured
    interaction: float | None = None
    params: int = 0
    op: Op = Op.WAIT


@dataclass(frozen=True)
class Episode:
    """Whole episode; ``committed`` is the accuracy of host and fossilized seeds, None for a truncated one."""

    steps: list[Step]
    committed: float | None
    initial: float = 10.0
    components: list[dict[str, float]] = field(default_factory=list)

    def play(self, mode="accuracy", **weights):
        """Return the rewards of the steps; ``self.components`` has the components."""
        model = RewardModel(1, SLOTS, len(self.steps), HOST, reward_config(mode, weights))
        model.reset(np.array([True]), np.array([self.initial]), SlotTable.empty(1, SLOTS))
        self.components.clear()
        for number, step in enumerate(self.steps):
            last = number == len(self.steps) - 1 and self.committed is not None
            output = model.compute(inputs_of(step, self.committed if last else None))
            self.components.append({name: float(value[0]) for name, value in output.items()})
        return np.array([math.fsum(components.values()) for components in self.components])

    def paid(self, name):
        return [components[name] for components in self.components]


def inputs_of(step, committed):
    table = SlotTable.empty(1, SLOTS)
    table.stage[0], table.alpha[0] = step.stage, step.alpha
    # Unmeasured values must not be read.
    table.contribution[0] = (99.0, 99.0) if step.contribution is None else step.contribution
    table.contribution_age[0] = -1 if step.contribution is None else 0
    return RewardInputs(
        val_accuracy=np.array([step.accuracy]),
        committed_accuracy=np.array([math.nan if committed is None else committed]),
        terminated=np.array([committed is not None]),
        parameters_added=np.array([step.params]),
        op=np.array([step.op]),
        table=table,
        rolled_back=np.array([False]),
        interactions=np.full((1, SLOTS, SLOTS), step.interaction or 0.0),
        interactions_measured=np.full((1, SLOTS, SLOTS), step.interaction is not None),
    )


def discounted(rewards, gamma):
    return float((rewards * gamma ** np.arange(len(rewards))).sum())


stages = st.sampled_from([stage for stage in Stage if stage is not Stage.UNKNOWN])
points = st.floats(-100, 100)


@st.composite
def arbitrary_episodes(draw):
    """Any sequence of numbers, whether a network could produce it or not."""
    percent = st.floats(0, 100)
    step = st.builds(
        Step,
        accuracy=percent,
        stage=st.tuples(stages, stages),
        alpha=st.tuples(st.floats(0, 1), st.floats(0, 1)),
        contribution=st.none() | st.tuples(points, points),
        interaction=st.none() | points,
        params=st.integers(0, 10_000),
        op=st.sampled_from(list(Op)),
    )
    return Episode(draw(st.lists(step, min_size=1, max_size=12)), draw(percent), draw(percent))


# accuracy and sparse


@given(arbitrary_episodes(), st.floats(0.1, 10), st.floats(0, 1), st.floats(0, 0.1))
def test_return_is_the_committed_gain_less_rent_and_op_costs(episode, scale, rent_weight, op_cost):
    rewards = episode.play("accuracy", scale=scale, rent_weight=rent_weight, op_cost=op_cost)
    rent = sum(rent_weight * math.log(1 + step.params / HOST) / len(episode.steps) for step in episode.steps)
    ops = sum(op_cost for step in episode.steps if step.op != Op.WAIT)
    gain = scale * (episode.committed - episode.initial) / 100
    assert rewards.sum() == pytest.approx(gain - rent - ops, abs=1e-9)
    sparse = episode.play("sparse", scale=scale, rent_weight=rent_weight)
    assert not sparse[:-1].any()
    assert sparse[-1] == pytest.approx(scale * episode.committed / 100 - rent, abs=1e-9)


def test_each_step_pays_its_change_and_the_last_moves_to_the_committed_network():
    steps = [Step(accuracy=a, stage=(Stage.HOLDING, EMPTY), alpha=(1.0, 0.0)) for a in (25.0, 22.0, 60.0)]
    episode = Episode(steps, committed=31.0)
    np.testing.assert_allclose(episode.play(), [0.15, -0.03, 0.09])
    np.testing.assert_allclose(episode.paid("accuracy"), [0.15, -0.03, 0.38])
    np.testing.assert_allclose(episode.paid("commitment"), [0.0, 0.0, -0.29])
    np.testing.assert_allclose(Episode(steps, committed=None).play(), [0.15, -0.03, 0.38])


def test_rent_and_op_cost_equal_hand_computed_values():
    # 800 parameters on a host of 400: ln 3, over a horizon of 4 steps
    steps = [Step(params=800, op=Op.GERMINATE), Step(params=800), Step(op=Op.PRUNE), Step()]
    episode = Episode(steps, committed=10.0)
    episode.play()
    np.testing.assert_allclose(episode.paid("rent"), [-0.05 * math.log(3) / 4] * 2 + [0, 0])
    np.testing.assert_allclose(episode.paid("op_cost"), [-0.002, 0, -0.002, 0])


# Stage potentials


@given(arbitrary_episodes(), st.sampled_from(["accuracy", "contribution"]), st.floats(0.5, 1), st.floats(0.01, 5))
def test_stage_potentials_telescope_to_zero(episode, mode, gamma, weight):
    episode.play(mode, gamma=gamma, potential_weight=weight)
    assert discounted(np.array(episode.paid("stages")), gamma) == pytest.approx(0.0, abs=1e-9)
    assert sum(episode.paid("stages")) <= 1e-9


def test_stage_potentials_equal_documented_values():
    lives = [Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING, Stage.FOSSILIZED, Stage.PRUNED]
    episode = Episode([Step(stage=(stage, Stage.GERMINATED)) for stage in lives], committed=None)
    episode.play("accuracy", potential_weight=0.1, gamma=0.9)
    values = [0.0, 0.2, 0.3, 0.45, 0.65, 0.7, 0.1]
    np.testing.assert_allclose(episode.paid("stages"), 0.9 * np.array(values[1:]) - values[:-1])


def test_planted_seeds_earn_nothing_for_being_present():
    table = SlotTable.empty(1, SLOTS)
    table.stage[:], table.alpha[:] = Stage.FOSSILIZED, 1.0
    both = Step(stage=(Stage.FOSSILIZED,) * 2, alpha=(1.0, 1.0), contribution=(20.0, 20.0), interaction=4.0)
    model = RewardModel(1, SLOTS, 10, HOST, reward_config("contribution", {"gamma": 1.0}))
    model.reset(np.array([True]), np.array([10.0]), table)
    paid = {name: float(value[0]) for name, value in model.compute(inputs_of(both, None)).items()}
    assert paid == pytest.approx(dict.fromkeys(paid, 0.0) | {"contribution": 0.4})


# contribution

HELD = Step(accuracy=40.0, stage=(Stage.HOLDING, EMPTY), alpha=(1.0, 0.0), contribution=(20.0, 0.0))
KEPT = replace(HELD, stage=(Stage.FOSSILIZED, EMPTY))
BARE = {"rent_weight": 0.0, "potential_weight": 0.0, "shock_weight": 0.0}


@given(arbitrary_episodes(), st.floats(0.5, 1), st.floats(0.1, 10))
def test_contribution_return_depends_only_on_commitment_and_costs(episode, gamma, scale):
    episode.play("contribution", gamma=gamma, scale=scale)
    last = episode.steps[-1]
    gain = max(episode.committed - episode.initial, 0.0)
    counted = [
        last.contribution[slot]
        for slot in range(SLOTS)
        if last.contribution is not None and last.stage[slot] == Stage.FOSSILIZED and last.alpha[slot] > 0
    ]
    settled = scale * min(sum(counted), gain) / 100
    assert episode.paid("commitment") == pytest.approx([0.0] * (len(episode.steps) - 1) + [settled], abs=1e-9)
    assert discounted(np.array(episode.paid("contribution")), gamma) == pytest.approx(0.0, abs=1e-9)
    assert sum(episode.paid("contribution")) <= 1e-9
    assert max(episode.paid("shock")) <= 0.0
    # The final contributions and the gain bound the remaining credits.
    credit = discounted(np.array(episode.paid("scaffold")), gamma) / gamma ** (len(episode.steps) - 1)
    ceiling = sum(min(max(c, 0.0), gain, 5.0) for c in counted)
    assert -1e-9 <= credit <= 0.5 * scale * ceiling / 100 + 1e-9


def test_contribution_is_paid_as_a_change_and_taken_back_with_the_seed():
    steps = [HELD, replace(HELD, contribution=(30.0, 0.0)), Step(accuracy=20.0, stage=(Stage.PRUNED, EMPTY)), Step()]
    rewards = Episode(steps, committed=20.0).play("contribution", gamma=1.0, **BARE)
    np.testing.assert_allclose(rewards, [0.2, 0.1, -0.3, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("step", "points"),
    [
        (replace(HELD, stage=(Stage.FOSSILIZED, Stage.BLENDING), alpha=(1.0, 0.5), contribution=(20.0, -5.0)), 15.0),
        (replace(HELD, contribution=None), 0.0),
        (replace(HELD, contribution=(math.nan, math.nan)), 0.0),
        (replace(HELD, stage=(Stage.TRAINING, EMPTY), alpha=(0.0, 0.0)), 0.0),  # prospective: not in the network yet
    ],
)
def test_measured_contributions_of_blended_seeds_add_up(step, points):
    paid = Episode([step], committed=None).play("contribution", gamma=0.9, **BARE)
    assert paid == pytest.approx([0.9 * points / 100])


def test_commitment_is_bounded_by_the_gain():
    """The host depends on a seed with 67 points, but the network has improved by 30 only."""
    leaning = replace(KEPT, contribution=(67.0, 0.0))
    assert Episode([leaning], committed=40.0).play("contribution", **BARE)[0] == pytest.approx(0.30)
    assert Episode([leaning], committed=5.0).play("contribution", **BARE)[0] == pytest.approx(0.0)
    harmful = replace(KEPT, contribution=(-8.0, 0.0))
    assert Episode([harmful], committed=40.0).play("contribution", **BARE)[0] == pytest.approx(-0.08)


def test_shock_is_the_sum_of_squared_alpha_jumps():
    episode = Episode([Step(alpha=alpha) for alpha in [(0.5, 0.0), (1.0, 0.2), (0.0, 0.2)]], committed=None)
    episode.play("contribution", shock_weight=0.1)
    np.testing.assert_allclose(episode.paid("shock"), [-0.025, -0.1 * (0.25 + 0.04), -0.1])


# Scaffolding


def scaffold_paid(interaction=4.0, final=30.0, committed=60.0, own=30.0, **weights):
    """Slot 0 helps slot 1 in steps 0-2 and is pruned in step 3; slot 1 is fossilized in step 5 of 0..7."""
    together = Step(
        accuracy=50.0,
        stage=(Stage.BLENDING, Stage.BLENDING),
        alpha=(1.0, 1.0),
        contribution=(3.0, 30.0),
        interaction=interaction,
    )
    alone = replace(together, stage=(Stage.PRUNED, Stage.HOLDING), alpha=(0.0, 1.0), interaction=None)
    kept = replace(alone, stage=(Stage.EMBARGOED, Stage.FOSSILIZED), contribution=(0.0, own))
    end = replace(kept, contribution=(0.0, final))
    episode = Episode([together] * 3 + [alone] * 2 + [kept] * 2 + [end], committed=committed)
    episode.play("contribution", **weights)
    return episode.paid("scaffold")


def test_pruned_scaffold_is_paid_when_its_beneficiary_is_fossilized():
    paid = scaffold_paid(gamma=0.9)
    credit = 0.5 * 4.0 * 0.9**3 / 100  # half of 4 points, last measured three steps before
    # A constant potential pays (gamma - 1) times its value. At the end, the credit is backed in full.
    assert paid == pytest.approx([0.0] * 5 + [0.9 * credit, (0.9 - 1) * credit, 0.0])
    assert discounted(np.array(paid), 0.9) == pytest.approx(0.9**7 * credit)


@pytest.mark.parametrize(
    ("episode", "credit"),
    [
        ({"interaction": 0.0}, 0.0),
        ({"interaction": -4.0}, 0.0),
        ({"interaction": 40.0, "scaffold_cap": 5.0}, 5.0),
        ({"own": 1.0}, 1.0),
        ({"own": -3.0}, 0.0),
    ],
)
def test_credit_is_bounded_by_boosts_cap_and_own_contribution(episode, credit):
    paid = scaffold_paid(gamma=1.0, **episode)
    assert paid == pytest.approx([0.0] * 5 + [0.5 * credit / 100, 0.0, 0.0])


@pytest.mark.parametrize(("final", "committed"), [(0.0, 60.0), (-5.0, 60.0), (30.0, 10.0), (30.0, 4.0)])
def test_credit_is_taken_back_without_backing_at_the_end(final, committed):
    paid = scaffold_paid(final=final, committed=committed, gamma=0.9)
    assert paid[5] > 0.0
    assert discounted(np.array(paid), 0.9) == pytest.approx(0.0, abs=1e-12)


# Preferences


@MODES
def test_fossilizing_in_time_returns_more_for_the_same_network(mode):
    steps = [replace(HELD, params=300)] * 6
    waiting = Episode(steps, committed=20.0)
    fossilizing = Episode([*steps[:-1], replace(KEPT, params=300, op=Op.FOSSILIZE)], committed=40.0)
    assert fossilizing.play(mode).sum() > waiting.play(mode).sum() + 0.19
    assert discounted(fossilizing.play(mode, gamma=0.9), 0.9) > discounted(waiting.play(mode, gamma=0.9), 0.9)


# The model

HORIZON = 8
#: Two boosted seeds, one pruned and one committed, so that the whole memory of the model is used.
LIVES = np.array(
    [
        [Stage.BLENDING] * 3 + [Stage.PRUNED] + [Stage.EMBARGOED] * 4,
        [Stage.BLENDING] * 4 + [Stage.HOLDING] + [Stage.FOSSILIZED] * 3,
        [Stage.DORMANT] * 2 + [Stage.GERMINATED] + [Stage.TRAINING] * 2 + [Stage.BLENDING] * 3,
    ]
)


def random_steps(rows):
    """Yield one episode of ``rows`` environments with random measurements; the steps share one table."""
    rng, table = np.random.default_rng(rows), SlotTable.empty(rows, 3)
    for t in range(HORIZON):
        table.stage[:] = LIVES[:, t]
        table.alpha[:] = np.where(table.is_blended, rng.uniform(0.1, 1, (rows, 3)), 0.0)
        table.contribution[:] = rng.uniform(1, 30, (rows, 3))
        table.contribution_age[:] = 0
        yield RewardInputs(
            val_accuracy=rng.uniform(20, 80, rows),
            committed_accuracy=rng.uniform(40, 80, rows),
            terminated=np.full(rows, t == HORIZON - 1),
            parameters_added=rng.integers(0, 2000, rows),
            op=rng.integers(0, 6, rows),
            table=table,
            rolled_back=rng.random(rows) < 0.2,
            interactions=rng.uniform(0, 2, (rows, 3, 3)),
            interactions_measured=table.is_blended[:, :, None] & table.is_blended[:, None, :],
        )


def row_of(step, row):
    """Return the step of one environment, with a table of its own."""
    table = SlotTable(**{name: column[row : row + 1].copy() for name, column in vars(step.table).items()})
    return RewardInputs(table=table, **{k: v[row : row + 1] for k, v in vars(step).items() if k != "table"})


def start(model, rows, planted):
    """Start episodes in some environments; ``planted`` has a fossil in slot 1."""
    table = SlotTable.empty(len(rows), 3)
    if planted:
        table.stage[:, 1], table.alpha[:, 1] = Stage.FOSSILIZED, 1.0
    model.reset(np.array(rows), np.where(rows, 10.0, np.nan), table)
    return model


@MODES
@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("played", [0, 3, 6, 8])
def test_environments_and_episodes_are_independent(mode, planted, played):
    """Row 0 restarts after ``played`` steps, truncated or terminated, while the others continue."""
    config = reward_config(mode)
    model = start(RewardModel(3, 3, HORIZON, HOST, config), [True] * 3, planted=False)
    singles = [start(RewardModel(1, 3, HORIZON, HOST, config), [True], planted=False) for _ in range(3)]
    for number, step in enumerate(chain(random_steps(3), random_steps(3))):
        if number == played:
            start(model, [True, False, False], planted)
            singles[0] = start(RewardModel(1, 3, HORIZON, HOST, config), [True], planted)
        components = model.compute(step)
        for row, single in enumerate(singles):
            alone = single.compute(row_of(step, row))
            assert {name: value[row] for name, value in components.items()} == pytest.approx(
                {name: value[0] for name, value in alone.items()}, abs=1e-12
            )
        for value in components.values():
            value[:] = 99.0  # the model keeps none of them

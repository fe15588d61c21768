"""Rewards: formulas on hand-made episodes, and identities on every episode."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

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

    def play(self, mode: str = "accuracy", **weights: float) -> np.ndarray:
        """Return the rewards of the steps; ``self.components`` has the components."""
        model = RewardModel(1, SLOTS, len(self.steps), HOST, reward_config(mode, weights))
        model.reset(np.array([True]), np.array([self.initial]), SlotTable.empty(1, SLOTS))
        rewards = []
        self.components.clear()
        for number, step in enumerate(self.steps):
            last = number == len(self.steps) - 1 and self.committed is not None
            output = model.compute(inputs_of(step, self.committed if last else None))
            rewards.append(float(output.total[0]))
            self.components.append({name: float(value[0]) for name, value in output.components.items()})
        return np.array(rewards)

    def paid(self, name: str) -> list[float]:
        return [components[name] for components in self.components]


def inputs_of(step: Step, committed: float | None) -> RewardInputs:
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


def discounted(rewards: np.ndarray, gamma: float) -> float:
    return float((rewards * gamma ** np.arange(len(rewards))).sum())


stages = st.sampled_from([stage for stage in Stage if stage is not Stage.UNKNOWN])
points = st.floats(-100, 100)


@st.composite
def arbitrary_episodes(draw: st.DrawFn, cut: bool = False) -> Episode:
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
    steps = draw(st.lists(step, min_size=1, max_size=12))
    return Episode(steps, None if cut else draw(percent), draw(percent))


@given(arbitrary_episodes(), st.sampled_from(list(RewardMode)), st.floats(0.1, 100))
def test_components_sum_to_the_reward(episode: Episode, mode: RewardMode, scale: float) -> None:
    rewards = episode.play(mode, scale=scale)
    for reward, components in zip(rewards, episode.components, strict=True):
        assert math.fsum(components.values()) == pytest.approx(reward, abs=1e-9)
        assert math.isfinite(reward)


# accuracy


@given(arbitrary_episodes(), st.floats(0.1, 10), st.floats(0, 1), st.floats(0, 0.1))
def test_return_is_the_committed_gain_less_rent_and_op_costs(
    episode: Episode, scale: float, rent_weight: float, op_cost: float
) -> None:
    rewards = episode.play("accuracy", scale=scale, rent_weight=rent_weight, op_cost=op_cost)
    horizon = len(episode.steps)
    rent = sum(rent_weight * math.log(1 + step.params / HOST) / horizon for step in episode.steps)
    ops = sum(op_cost for step in episode.steps if step.op != Op.WAIT)
    assert episode.committed is not None
    expected = scale * (episode.committed - episode.initial) / 100 - rent - ops
    assert rewards.sum() == pytest.approx(expected, abs=1e-9)


def test_each_step_pays_its_change_and_the_last_moves_to_the_committed_network() -> None:
    steps = [Step(accuracy=a, stage=(Stage.HOLDING, EMPTY), alpha=(1.0, 0.0)) for a in (25.0, 22.0, 60.0)]
    episode = Episode(steps, committed=31.0)
    np.testing.assert_allclose(episode.play(), [0.15, -0.03, 0.09])
    np.testing.assert_allclose(episode.paid("accuracy"), [0.15, -0.03, 0.38])
    np.testing.assert_allclose(episode.paid("commitment"), [0.0, 0.0, -0.29])


def test_rent_and_op_cost_equal_hand_computed_values() -> None:
    # 800 parameters on a host of 400: ln 3, over a horizon of 4 steps
    steps = [Step(params=800, op=Op.GERMINATE), Step(params=800), Step(op=Op.PRUNE), Step()]
    episode = Episode(steps, committed=10.0)
    episode.play()
    np.testing.assert_allclose(episode.paid("rent"), [-0.05 * math.log(3) / 4] * 2 + [0, 0])
    np.testing.assert_allclose(episode.paid("op_cost"), [-0.002, 0, -0.002, 0])


def test_truncation_pays_no_commitment() -> None:
    episode = Episode([Step(accuracy=50.0)], committed=None)
    assert episode.play().sum() == pytest.approx(0.4)


# Stage potentials


@given(arbitrary_episodes(), st.sampled_from(["accuracy", "contribution"]), st.floats(0.5, 1), st.floats(0.01, 5))
def test_stage_potentials_telescope_to_zero(episode: Episode, mode: str, gamma: float, weight: float) -> None:
    episode.play(mode, gamma=gamma, potential_weight=weight)
    assert discounted(np.array(episode.paid("stages")), gamma) == pytest.approx(0.0, abs=1e-9)


def test_stage_potentials_equal_hand_computed_values() -> None:
    pairs = [(Stage.GERMINATED, EMPTY), (Stage.TRAINING, Stage.GERMINATED), (Stage.PRUNED, Stage.FOSSILIZED)]
    episode = Episode([Step(stage=pair) for pair in pairs], committed=None)
    episode.play("accuracy", potential_weight=0.1, gamma=0.9)
    np.testing.assert_allclose(episode.paid("stages"), [0.9 * 0.1, 0.9 * 0.3 - 0.1, 0.9 * 0.6 - 0.3])


def test_planted_seeds_earn_nothing_for_being_present() -> None:
    table = SlotTable.empty(1, SLOTS)
    table.stage[0, 0], table.alpha[0, 0] = Stage.FOSSILIZED, 1.0
    step = inputs_of(Step(stage=(Stage.FOSSILIZED, EMPTY), alpha=(1.0, 0.0)), None)
    model = RewardModel(1, SLOTS, 10, HOST, reward_config("contribution", {"gamma": 1.0}))
    model.reset(np.array([True]), np.array([10.0]), table)
    assert model.compute(step).total[0] == 0.0


# sparse


@given(arbitrary_episodes(), st.floats(0.1, 10))
def test_sparse_return_equals_accuracy_return(episode: Episode, scale: float) -> None:
    sparse = episode.play("sparse", scale=scale)
    np.testing.assert_array_equal(sparse[:-1], 0.0)
    dense = episode.play("accuracy", scale=scale, op_cost=0.0)
    assert sparse.sum() == pytest.approx(dense.sum() + scale * episode.initial / 100, abs=1e-9)


def test_sparse_reward_equals_hand_computed_values() -> None:
    episode = Episode([Step(params=800), Step(params=400)], committed=64.0)
    np.testing.assert_allclose(episode.play("sparse"), [0.0, 0.64 - 0.05 * (math.log(3) + math.log(2)) / 2])


# contribution


HELD = Step(accuracy=40.0, stage=(Stage.HOLDING, EMPTY), alpha=(1.0, 0.0), contribution=(20.0, 0.0))
KEPT = replace(HELD, stage=(Stage.FOSSILIZED, EMPTY))
BARE = {"rent_weight": 0.0, "potential_weight": 0.0, "shock_weight": 0.0}


@given(arbitrary_episodes(), st.floats(0.5, 1), st.floats(0.1, 10))
def test_contribution_return_depends_only_on_commitment_and_costs(episode: Episode, gamma: float, scale: float) -> None:
    episode.play("contribution", gamma=gamma, scale=scale)
    last = episode.steps[-1]
    assert episode.committed is not None
    gain = max(episode.committed - episode.initial, 0.0)
    counted = [
        last.contribution[slot]
        for slot in range(SLOTS)
        if last.contribution is not None and last.stage[slot] == Stage.FOSSILIZED and last.alpha[slot] > 0
    ]
    settled = scale * min(sum(counted), gain) / 100
    assert episode.paid("commitment") == pytest.approx([0.0] * (len(episode.steps) - 1) + [settled], abs=1e-9)
    assert discounted(np.array(episode.paid("contribution")), gamma) == pytest.approx(0.0, abs=1e-9)
    # The final contributions and the gain bound the remaining credits.
    credit = discounted(np.array(episode.paid("scaffold")), gamma) / gamma ** (len(episode.steps) - 1)
    ceiling = sum(min(max(c, 0.0), gain, 5.0) for c in counted)
    assert -1e-9 <= credit <= 0.5 * scale * ceiling / 100 + 1e-9


def test_contribution_is_paid_as_a_change_and_taken_back_with_the_seed() -> None:
    steps = [HELD, replace(HELD, contribution=(30.0, 0.0)), Step(accuracy=20.0, stage=(Stage.PRUNED, EMPTY)), Step()]
    episode = Episode(steps, committed=20.0)
    rewards = episode.play("contribution", gamma=1.0, **BARE)
    np.testing.assert_allclose(rewards, [0.2, 0.1, -0.3, 0.0], atol=1e-12)


def test_contributions_of_seeds_add_up_and_negative_ones_count() -> None:
    both = replace(HELD, stage=(Stage.FOSSILIZED, Stage.BLENDING), alpha=(1.0, 0.5), contribution=(20.0, -5.0))
    episode = Episode([both], committed=None)
    assert episode.play("contribution", gamma=0.9, **BARE)[0] == pytest.approx(0.9 * 0.15)


@pytest.mark.parametrize(
    "unmeasured",
    [
        replace(HELD, contribution=None),
        replace(HELD, contribution=(math.nan, math.nan)),
        replace(HELD, stage=(Stage.TRAINING, EMPTY), alpha=(0.0, 0.0)),  # prospective: not in the network yet
    ],
)
def test_only_measured_contributions_of_blended_seeds_are_paid(unmeasured: Step) -> None:
    assert Episode([unmeasured], committed=None).play("contribution", **BARE)[0] == 0.0


def test_commitment_is_bounded_by_the_gain() -> None:
    """The host depends on a seed with 67 points, but the network has improved by 30 only."""
    leaning = replace(KEPT, contribution=(67.0, 0.0))
    assert Episode([leaning], committed=40.0).play("contribution", **BARE)[0] == pytest.approx(0.30)
    assert Episode([leaning], committed=5.0).play("contribution", **BARE)[0] == pytest.approx(0.0)
    harmful = replace(KEPT, contribution=(-8.0, 0.0))
    assert Episode([harmful], committed=40.0).play("contribution", **BARE)[0] == pytest.approx(-0.08)


def test_shock_is_the_sum_of_squared_alpha_jumps() -> None:
    alphas = [(0.5, 0.0), (1.0, 0.2), (0.0, 0.2)]
    episode = Episode([Step(alpha=alpha) for alpha in alphas], committed=None)
    episode.play("contribution", shock_weight=0.1)
    np.testing.assert_allclose(episode.paid("shock"), [-0.025, -0.1 * (0.25 + 0.04), -0.1])


# Scaffolding


def scaffold_episode(
    interaction: float = 4.0, final: float = 30.0, committed: float = 60.0, own: float = 30.0
) -> Episode:
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
    return Episode([together] * 3 + [alone] * 2 + [kept] * 2 + [end], committed=committed)


def test_pruned_scaffold_is_paid_when_its_beneficiary_is_fossilized() -> None:
    episode = scaffold_episode()
    episode.play("contribution", gamma=0.9)
    paid = episode.paid("scaffold")
    credit = 0.5 * 4.0 * 0.9**3 / 100  # half of 4 points, last measured three steps before
    assert paid[:5] == [0.0] * 5
    assert paid[5] == pytest.approx(0.9 * credit)
    assert paid[6] == pytest.approx((0.9 - 1) * credit)  # a constant potential pays (gamma - 1) times its value
    assert paid[7] == pytest.approx(0.0)  # backed in full
    assert discounted(np.array(paid), 0.9) == pytest.approx(0.9**7 * credit)


def test_credit_is_zero_without_a_scaffold() -> None:
    for interaction in (0.0, -4.0):
        episode = scaffold_episode(interaction)
        episode.play("contribution")
        assert episode.paid("scaffold") == [0.0] * 8


def test_credit_is_capped() -> None:
    episode = scaffold_episode(interaction=40.0)
    episode.play("contribution", gamma=1.0, scaffold_cap=5.0, scaffold_weight=0.5)
    assert episode.paid("scaffold")[5] == pytest.approx(0.5 * 5.0 / 100)


@pytest.mark.parametrize(("own", "credit"), [(1.0, 1.0), (-3.0, 0.0)])
def test_credit_is_bounded_by_the_own_contribution(own: float, credit: float) -> None:
    episode = scaffold_episode(own=own)
    episode.play("contribution", gamma=1.0)
    assert episode.paid("scaffold")[5:] == pytest.approx([0.5 * credit / 100, 0.0, 0.0])


def test_planted_seeds_earn_no_credit() -> None:
    table = SlotTable.empty(1, SLOTS)
    table.stage[:], table.alpha[:] = Stage.FOSSILIZED, 1.0
    both = Step(stage=(Stage.FOSSILIZED,) * 2, alpha=(1.0, 1.0), contribution=(20.0, 20.0), interaction=4.0)
    model = RewardModel(1, SLOTS, 10, HOST, reward_config("contribution"))
    model.reset(np.array([True]), np.array([10.0]), table)
    assert model.compute(inputs_of(both, None)).components["scaffold"][0] == 0.0


@pytest.mark.parametrize(("final", "committed"), [(0.0, 60.0), (-5.0, 60.0), (30.0, 10.0), (30.0, 4.0)])
def test_credit_is_taken_back_without_backing_at_the_end(final: float, committed: float) -> None:
    episode = scaffold_episode(final=final, committed=committed)
    episode.play("contribution", gamma=0.9)
    assert episode.paid("scaffold")[5] > 0.0
    assert discounted(np.array(episode.paid("scaffold")), 0.9) == pytest.approx(0.0, abs=1e-12)


# Preferences


@pytest.mark.parametrize("mode", list(RewardMode))
def test_fossilizing_in_time_returns_more_for_the_same_network(mode: RewardMode) -> None:
    steps = [replace(HELD, params=300)] * 6
    waiting = Episode(steps, committed=20.0)
    fossilizing = Episode([*steps[:-1], replace(KEPT, params=300, op=Op.FOSSILIZE)], committed=40.0)
    gain = fossilizing.play(mode).sum() - waiting.play(mode).sum()
    assert gain > 0.19
    rewards = [episode.play(mode, gamma=0.9) for episode in (waiting, fossilizing)]
    assert discounted(rewards[1], 0.9) > discounted(rewards[0], 0.9)


def test_returns_of_two_networks_differ_by_the_formula() -> None:
    small = Episode([replace(KEPT, params=100)] * 5, committed=40.0)
    large = Episode([replace(KEPT, params=1200, contribution=(35.0, 0.0), accuracy=55.0)] * 5, committed=55.0)
    rent = 0.05 * (math.log(1 + 1200 / HOST) - math.log(1 + 100 / HOST))
    assert large.play("accuracy").sum() - small.play("accuracy").sum() == pytest.approx(0.15 - rent)
    assert large.play("sparse").sum() - small.play("sparse").sum() == pytest.approx(0.15 - rent)
    returns = [discounted(episode.play("contribution", gamma=0.9), 0.9) for episode in (small, large)]
    rents = rent / 5 * sum(0.9**t for t in range(5))
    assert returns[1] - returns[0] == pytest.approx(0.9**4 * 0.15 - rents)


# The model


def test_non_finite_accuracy_is_rejected() -> None:
    model = RewardModel(1, SLOTS, 8, HOST, reward_config())
    model.reset(np.array([True]), np.array([10.0]), SlotTable.empty(1, SLOTS))
    model.compute(inputs_of(Step(), None))  # the committed accuracy is NaN, and is not read
    with pytest.raises(ValueError, match="committed_accuracy"):
        model.compute(inputs_of(Step(), math.nan))
    with pytest.raises(ValueError, match="val_accuracy"):
        model.compute(inputs_of(Step(accuracy=math.nan), 10.0))


@pytest.mark.parametrize("position", range(4))
def test_reward_model_rejects_sizes_below_one(position: int) -> None:
    sizes = [1, 1, 1, 1]
    sizes[position] = 0
    with pytest.raises(ValueError, match="is 0; expected at least 1"):
        RewardModel(*sizes, reward_config())

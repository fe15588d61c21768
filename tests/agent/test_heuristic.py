"""The rules on hand-made observations: each rule flips a decision when its quantity crosses the threshold."""

from dataclasses import dataclass, field, replace

import gymnasium
import numpy as np
import pytest
from esper_agent.baselines import POLICIES
from esper_agent.evaluation import run_episodes
from esper_agent.heuristic import HeuristicConfig, HeuristicPolicy
from esper_env.rules.gates import GateConfig
from esper_env.rules.heads import (
    CNN_BLUEPRINTS,
    NO_BLUEPRINT,
    TRANSFORMER_BLUEPRINTS,
    AlphaSpeed,
    AlphaTarget,
    Blueprint,
    Head,
    Op,
    Style,
    Tempo,
    head_sizes,
)
from esper_env.rules.observation import CONTRIBUTION_LOG, base_index, feature_count, slot_index
from esper_env.rules.stages import Stage

HORIZON = 60
LIVE = (Stage.GERMINATED, Stage.TRAINING, Stage.BLENDING, Stage.HOLDING)


@dataclass(frozen=True)
class Seed:
    """What one slot shows; a healthy seed on hold by default."""

    stage: Stage
    epochs: int = 1
    blueprint: Blueprint = Blueprint.CONV_LIGHT
    contribution: float | None = 0.0
    alpha: float | None = None
    mode: int = 0
    health: float = 1.0
    exploding: bool = False


@dataclass(frozen=True)
class Moment:
    """One observation in words; ``replace`` makes the next."""

    epoch: int = 20
    accuracies: tuple[float, ...] = (50.0,) * 5
    plateau: int = 5
    stabilised: bool = True
    seeds: dict[int, Seed] = field(default_factory=dict)
    slots: int = 3
    succeeded: bool = True
    illegal: tuple[tuple[Op, int], ...] = ()

    def observation(self):
        features = np.zeros(feature_count(self.slots), dtype=np.float32)
        values = {
            "epoch": self.epoch / HORIZON,
            "val_accuracy": self.accuracies[-1] / 100,
            "plateau_epochs": self.plateau / 20,
            "host_stabilised": self.stabilised,
            "last_action_succeeded": self.succeeded,
            **{f"accuracy_history_{i}": value / 100 for i, value in enumerate(self.accuracies)},
        }
        for name, value in values.items():
            features[base_index(name)] = value
        legal = np.zeros((6, self.slots), dtype=np.int8)
        legal[Op.WAIT] = 1
        blueprints = np.full(self.slots, NO_BLUEPRINT)
        for slot in range(self.slots):
            seed = self.seeds.get(slot)
            if seed is None:
                legal[Op.GERMINATE, slot] = 1
                continue
            self._show(features, slot, seed)
            if seed.stage in (*LIVE, Stage.FOSSILIZED):
                blueprints[slot] = seed.blueprint
            legal[Op.ADVANCE, slot] = seed.stage in LIVE[:3]
            legal[Op.FOSSILIZE, slot] = seed.stage == Stage.HOLDING
            legal[Op.PRUNE, slot] = seed.stage in LIVE and seed.mode == 0
            legal[Op.SET_ALPHA_TARGET, slot] = seed.stage in LIVE[2:] and seed.mode == 0
        for op, slot in self.illegal:
            legal[op, slot] = 0
        sizes = head_sizes(self.slots)
        mask = np.ones(sum(sizes), dtype=np.int8)
        mask[sizes[0] : sizes[0] + sizes[1]] = np.isin(np.arange(13), CNN_BLUEPRINTS)
        return {"features": features, "blueprints": blueprints, "action_mask": mask, "op_slot_mask": legal.ravel()}

    @staticmethod
    def _show(features, slot, seed):
        features[slot_index(f"stage_{seed.stage.name.lower()}", slot)] = 1
        if seed.stage not in (*LIVE, Stage.FOSSILIZED):
            return
        alpha = seed.alpha if seed.alpha is not None else float(seed.stage in (Stage.BLENDING, Stage.HOLDING))
        values = {
            "active": 1,
            "alpha": alpha,
            "alpha_mode": seed.mode / 2,
            "epochs_in_stage": seed.epochs / HORIZON,
            "gradient_health": seed.health,
            "gradient_exploding": seed.exploding,
        }
        if seed.contribution is not None:
            points = seed.contribution
            values["contribution"] = np.sign(points) * np.log1p(abs(points)) / CONTRIBUTION_LOG
            values["counterfactual_freshness"] = 1.0
        for name, value in values.items():
            features[slot_index(name, slot)] = value


def policy_with(gates=None, **settings):
    return HeuristicPolicy(HORIZON, CNN_BLUEPRINTS, gates, HeuristicConfig(**settings))


def decide(*moments, policy=None):
    """The decision at the last of consecutive moments of one episode."""
    policy, state = policy or policy_with(), None
    for index, moment in enumerate(moments):
        action, state = policy.predict(moment.observation(), state, np.array([index == 0]))
    decision = policy.decisions[0][-1]
    assert action[Head.OP] == decision.op
    assert decision.slot is None or action[Head.SLOT] == decision.slot
    return decision


def aged(moment, seeds, epochs=1, **changes):
    return replace(moment, epoch=moment.epoch + epochs, seeds=seeds, **changes)


# Planting


def test_an_idle_network_on_a_plateau_is_given_a_seed():
    decision = decide(Moment())
    assert (decision.op, decision.slot, decision.blueprint) == (Op.GERMINATE, 0, Blueprint.CONV_LIGHT)
    assert "plateau of 5 epochs" in decision.reason
    assert decision.epoch == 20


@pytest.mark.parametrize(
    ("holds", "fails", "reason"),
    [
        ({"epoch": 5}, {"epoch": 4}, "epoch 4 of at least 5"),
        ({"stabilised": True}, {"stabilised": False}, "the host has not stabilised"),
        ({"plateau": 3}, {"plateau": 2}, "plateau of 2 epochs"),
        ({"epoch": HORIZON - 13}, {"epoch": HORIZON - 12}, "12 epochs left are too few"),
        (
            {"seeds": {0: Seed(Stage.FOSSILIZED), 2: Seed(Stage.FOSSILIZED)}},
            {"seeds": {slot: Seed(Stage.FOSSILIZED) for slot in range(3)}},
            "no slot is free",
        ),
    ],
)
def test_each_condition_of_planting_flips_the_decision(holds, fails, reason):
    assert decide(Moment(**holds)).op == Op.GERMINATE
    refused = decide(Moment(**fails))
    assert refused.op == Op.WAIT
    assert reason in refused.reason


def test_planting_needs_only_the_rules_that_are_switched_on():
    early = Moment(epoch=1, plateau=0, stabilised=False)
    assert decide(early).op == Op.WAIT
    eager = policy_with(wait_for_stability=False, min_epoch=0, min_plateau=0)
    assert decide(early, policy=eager).op == Op.GERMINATE


def test_no_planting_for_five_epochs_after_a_prune():
    before = Moment(seeds={1: Seed(Stage.TRAINING)})
    gone = aged(before, {1: Seed(Stage.PRUNED)})
    for pause, op in ((4, Op.WAIT), (5, Op.GERMINATE)):
        decision = decide(before, gone, aged(gone, {1: Seed(Stage.EMBARGOED)}, epochs=pause))
        assert decision.op == op
    assert "pruned" not in decision.reason


def test_the_first_legal_slot_is_planted():
    assert decide(Moment(seeds={0: Seed(Stage.FOSSILIZED)})).slot == 1
    assert decide(Moment(illegal=((Op.GERMINATE, 0), (Op.GERMINATE, 1)))).slot == 2


def test_planting_uses_the_configured_style_and_tempo():
    policy = policy_with(style=Style.GATED_GATE, tempo=Tempo.SLOW)
    action, _ = policy.predict(Moment().observation())
    assert (action[Head.STYLE], action[Head.TEMPO]) == (Style.GATED_GATE, Tempo.SLOW)
    assert action[Head.ALPHA_TARGET] == AlphaTarget.FULL


# The rotation


def planted_in_turn(policy, count):
    """Blueprints of consecutive plantings in slots that the world fills and empties by fossilizing elsewhere."""
    state, found = None, []
    for index in range(count):
        action, state = policy.predict(Moment(epoch=20 + index).observation(), state, np.array([index == 0]))
        found.append(Blueprint(int(action[Head.BLUEPRINT])))
    return found


def test_the_rotation_goes_round():
    names = ["CONV_LIGHT", "CONV_HEAVY", "ATTENTION", "NORM", "DEPTHWISE", "CONV_LIGHT"]
    assert [blueprint.name for blueprint in planted_in_turn(policy_with(), 6)] == names


def test_the_rotation_starts_over_with_the_episode():
    policy, state = policy_with(), None
    for start in (True, False, True):
        action, state = policy.predict(Moment().observation(), state, np.array([start]))
    assert action[Head.BLUEPRINT] == Blueprint.CONV_LIGHT


def test_transformers_have_a_rotation_of_their_own():
    policy = HeuristicPolicy(HORIZON, TRANSFORMER_BLUEPRINTS)
    assert policy.rotation[0] == Blueprint.LORA
    assert set(policy.rotation) <= set(TRANSFORMER_BLUEPRINTS)


@pytest.mark.parametrize("rotation", [(Blueprint.LORA,), (), (Blueprint.NORM, Blueprint.NORM)])
def test_a_rotation_the_environment_does_not_offer_is_refused(rotation):
    with pytest.raises(ValueError, match="the rotation is"):
        policy_with(rotation=rotation)


def prune_then_plant(policy, pause, blueprint=Blueprint.CONV_LIGHT):
    """The decision ``pause`` epochs after a seed of ``blueprint`` was seen gone, one observation an epoch."""
    moment = Moment(epoch=10, plateau=0, seeds={1: Seed(Stage.TRAINING, blueprint=blueprint)})
    moments = [moment, aged(moment, {1: Seed(Stage.PRUNED)})]
    for _ in range(pause):
        moments.append(aged(moments[-1], {1: Seed(Stage.EMBARGOED)}))
    moments[-1] = replace(moments[-1], plateau=5)
    return decide(*moments, policy=policy)


def test_a_pruned_blueprint_is_skipped_and_comes_back():
    """Default numbers: a penalty of 2 that loses 5% an epoch stays at 1 or more for 13 epochs."""
    assert prune_then_plant(policy_with(), 5).blueprint == Blueprint.CONV_HEAVY
    assert prune_then_plant(policy_with(), 13).blueprint == Blueprint.CONV_HEAVY
    assert prune_then_plant(policy_with(), 14).blueprint == Blueprint.CONV_LIGHT


def test_a_prune_penalises_the_blueprint_it_hit_and_no_other():
    assert prune_then_plant(policy_with(), 5, Blueprint.NORM).blueprint == Blueprint.CONV_LIGHT


def test_when_every_blueprint_is_penalised_nothing_is_planted():
    decision = prune_then_plant(policy_with(rotation=(Blueprint.CONV_LIGHT,)), 5)
    assert decision.op == Op.WAIT
    assert "every blueprint was pruned lately" in decision.reason


def test_a_penalty_that_could_never_bite_is_refused():
    """Halving every epoch leaves 0.06 of 2 after the pause of five epochs."""
    with pytest.raises(ValueError, match=r"has decayed to 0\.0625 .* never reaches the threshold of 3"):
        HeuristicConfig(penalty_decay=0.5, penalty_threshold=3.0)


# Growing seeds


@pytest.mark.parametrize(
    ("ready", "unready"),
    [
        (Seed(Stage.TRAINING, epochs=3), Seed(Stage.TRAINING, epochs=2)),
        (Seed(Stage.TRAINING, 3, health=0.7), Seed(Stage.TRAINING, 3, health=0.69)),
        (Seed(Stage.TRAINING, 3), Seed(Stage.TRAINING, 3, exploding=True)),
        (Seed(Stage.BLENDING, 6), Seed(Stage.BLENDING, 6, mode=1)),
    ],
)
def test_seeds_advance_as_soon_as_the_gate_can_pass(ready, unready):
    crowd = {1: Seed(Stage.FOSSILIZED), 2: Seed(Stage.FOSSILIZED)}
    assert decide(Moment(seeds={0: ready, **crowd})).op == Op.ADVANCE
    assert decide(Moment(seeds={0: unready, **crowd})).op == Op.WAIT


def test_strict_gates_are_waited_for():
    strict = policy_with(GateConfig.strict())
    crowd = {1: Seed(Stage.FOSSILIZED), 2: Seed(Stage.FOSSILIZED)}
    for seed, op in (
        (Seed(Stage.TRAINING, 3, contribution=0.4), Op.WAIT),
        (Seed(Stage.TRAINING, 3, contribution=0.6), Op.ADVANCE),
        (Seed(Stage.BLENDING, 2), Op.WAIT),
        (Seed(Stage.BLENDING, 3), Op.ADVANCE),
    ):
        assert decide(Moment(seeds={0: seed, **crowd}), policy=strict).op == op


def test_a_germinated_seed_advances_at_once():
    assert decide(Moment(seeds={0: Seed(Stage.GERMINATED)})).op == Op.ADVANCE


@pytest.mark.parametrize("stage", [Stage.TRAINING, Stage.BLENDING])
@pytest.mark.parametrize(("epochs", "drop", "op"), [(5, 2.5, Op.PRUNE), (5, 1.5, Op.ADVANCE), (4, 2.5, Op.ADVANCE)])
def test_a_growing_seed_is_pruned_after_five_epochs_of_falling_accuracy(stage, epochs, drop, op):
    previous = Stage.GERMINATED if stage == Stage.TRAINING else Stage.TRAINING
    start = Moment(seeds={0: Seed(previous)})
    entered = aged(start, {0: Seed(stage, 1)})
    now = aged(entered, {0: Seed(stage, epochs)}, epochs=epochs - 1, accuracies=(50.0 - drop,) * 5)
    decision = decide(start, entered, now)
    assert decision.op == op
    if op == Op.PRUNE:
        assert decision.reason == "accuracy fell by 2.5 points in 5 epochs"
        assert decision.confidence == pytest.approx(0.5 / 1.5)


def test_a_fall_counts_from_the_entry_into_the_present_stage():
    """Five points lost while TRAINING are no reason to prune a seed whose BLENDING loses nothing."""
    moments = [Moment(seeds={0: Seed(Stage.GERMINATED)})]
    moments.append(aged(moments[-1], {0: Seed(Stage.TRAINING, 1)}))
    moments.append(aged(moments[-1], {0: Seed(Stage.TRAINING, 4)}, epochs=3, accuracies=(45.0,) * 5))
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING, 1, mode=1)}))
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING, 5)}, epochs=4))
    assert decide(*moments).op == Op.ADVANCE


def test_one_noisy_epoch_does_not_prune():
    """The accuracy is averaged over three epochs: a dip of five points in the last one is 1.7 on average."""
    start = Moment(seeds={0: Seed(Stage.GERMINATED)})
    entered = aged(start, {0: Seed(Stage.TRAINING, 1)})
    dip = aged(entered, {0: Seed(Stage.TRAINING, 5)}, epochs=4, accuracies=(50, 50, 50, 50, 45))
    assert decide(start, entered, dip).op == Op.ADVANCE
    assert decide(start, entered, dip, policy=policy_with(smoothing=1)).op == Op.PRUNE


def test_a_blend_that_rests_short_of_full_is_taken_there():
    moment = Moment(seeds={0: Seed(Stage.BLENDING, 6, alpha=0.5)})
    policy = policy_with()
    action, _ = policy.predict(moment.observation())
    assert action[Head.OP] == Op.SET_ALPHA_TARGET
    assert action[Head.ALPHA_TARGET] == AlphaTarget.FULL


# Holding


def holding(contributions, birth=50.0, now=60.0, epoch=20, policy=None, others=None):
    """The decision after an episode in which a seed is born at one accuracy and measured in HOLDING."""
    others = others or {}
    moments = [Moment(epoch=epoch, accuracies=(birth,) * 5, plateau=0)]
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING), **others}))
    for count, contribution in enumerate(contributions, 1):
        seed = Seed(Stage.HOLDING, count, contribution=contribution)
        moments.append(aged(moments[-1], {0: seed, **others}, accuracies=(now,) * 5))
    return decide(*moments, policy=policy)


def test_holding_is_judged_on_the_average_of_three_epochs():
    assert holding([0.0, 0.9]).op == Op.WAIT
    kept = holding([0.0, 0.9, 0.9])
    assert kept.op == Op.FOSSILIZE
    assert kept.reason == "contributes 0.6 points over 3 epochs"
    assert holding([0.9, 0.3, 0.2]).op == Op.PRUNE


def test_dependence_without_value_is_pruned():
    ransom = holding([10.0] * 3, birth=50.0, now=49.0)
    assert ransom.op == Op.PRUNE
    assert "depended on (10.0 points) but accuracy is 1.0 points lower" in ransom.reason
    assert holding([10.0] * 3, birth=50.0, now=50.5).op == Op.FOSSILIZE
    assert holding([0.06] * 3, birth=50.0, now=49.0).reason == "contributes only 0.1 points"


def test_a_second_time_in_holding_is_judged_on_its_own():
    moments = [Moment(seeds={0: Seed(Stage.HOLDING, n, contribution=9.0)}, epoch=19 + n) for n in (1, 2)]
    moments.append(aged(moments[-1], {0: Seed(Stage.BLENDING, 1, mode=1)}))
    for count in (1, 2, 3):
        moments.append(aged(moments[-1], {0: Seed(Stage.HOLDING, count, contribution=0.1)}))
    assert decide(*moments[:-1]).op != Op.PRUNE
    assert decide(*moments[:-1]).op != Op.FOSSILIZE
    assert decide(*moments).op == Op.PRUNE


def test_an_unmeasured_contribution_is_not_a_zero():
    assert holding([None, None, None, 5.0, 5.0]).op == Op.WAIT
    assert holding([None, None, None, 5.0, 5.0, 5.0]).op == Op.FOSSILIZE


def test_holding_waits_for_a_gate_that_cannot_pass():
    """Strict gates ask for a point; more than the half that the rule itself is content with."""
    assert holding([0.8] * 3).op == Op.FOSSILIZE
    assert holding([0.8] * 3, policy=policy_with(GateConfig.strict())).op == Op.WAIT


def test_near_the_horizon_what_helps_is_committed_in_time():
    """The last action is at epoch 59; three epochs before that a single good measurement is enough."""
    assert holding([5.0], epoch=HORIZON - 6).op == Op.WAIT
    assert holding([5.0], epoch=HORIZON - 5).op == Op.FOSSILIZE
    assert holding([0.2, 0.2, 0.2], epoch=HORIZON - 20).op == Op.PRUNE
    assert holding([0.2, 0.2, 0.2], epoch=HORIZON - 5).op == Op.WAIT


def test_every_other_live_seed_brings_the_rush_forward():
    other = {1: Seed(Stage.TRAINING)}
    assert holding([5.0], epoch=HORIZON - 6, others=other).op == Op.FOSSILIZE


def test_prune_speed_is_configurable():
    policy = policy_with(prune_speed=AlphaSpeed.SLOW)
    assert holding([0.0] * 3, policy=policy).op == Op.PRUNE
    state = None
    for epoch in range(1, 4):
        seeds = {0: Seed(Stage.HOLDING, epoch)}
        action, state = policy.predict(Moment(epoch=20 + epoch, seeds=seeds).observation(), state)
    assert action[Head.ALPHA_SPEED] == AlphaSpeed.SLOW


# Whose turn it is

READY = {
    Stage.GERMINATED: Seed(Stage.GERMINATED),
    Stage.TRAINING: Seed(Stage.TRAINING, 3),
    Stage.BLENDING: Seed(Stage.BLENDING, 5),
}


@pytest.mark.parametrize(("first", "second"), [(Stage.BLENDING, Stage.TRAINING), (Stage.TRAINING, Stage.GERMINATED)])
def test_the_furthest_along_goes_first(first, second):
    assert decide(Moment(seeds={0: READY[second], 2: READY[first]})).slot == 2


def test_holding_goes_before_blending():
    moments = [Moment(epoch=20 + n, seeds={0: READY[Stage.BLENDING], 1: Seed(Stage.HOLDING, n)}) for n in (1, 2, 3)]
    decision = decide(*moments)
    assert (decision.slot, decision.op) == (1, Op.PRUNE)


def test_within_a_stage_the_oldest_goes_first():
    born_second = Moment(seeds={1: Seed(Stage.TRAINING, 1)})
    both = aged(born_second, {0: Seed(Stage.TRAINING, 3), 1: Seed(Stage.TRAINING, 3)})
    assert decide(born_second, both).slot == 1
    assert decide(both).slot == 0


def test_a_seed_that_waits_passes_its_turn_on():
    """The HOLDING seed in front has one measurement and waits; the seeds behind it still get their decisions."""
    seeds = {0: Seed(Stage.HOLDING, 1), 1: Seed(Stage.BLENDING, 2, mode=1), 2: Seed(Stage.GERMINATED)}
    decision = decide(Moment(seeds=seeds))
    assert (decision.slot, decision.op) == (2, Op.ADVANCE)


def test_growth_goes_on_while_another_seed_waits():
    assert decide(Moment(seeds={0: Seed(Stage.TRAINING, 1)})).op == Op.GERMINATE


def test_a_failed_attempt_lets_the_others_go_first():
    seeds = {0: READY[Stage.BLENDING], 1: READY[Stage.TRAINING]}
    first = Moment(seeds=seeds)
    assert decide(first).slot == 0
    assert decide(first, replace(first, epoch=21, succeeded=False)).slot == 1
    assert decide(first, replace(first, epoch=21, succeeded=True)).slot == 0


def test_nothing_illegal_is_ever_done():
    wanting = Moment(
        seeds={0: READY[Stage.BLENDING]}, illegal=((Op.ADVANCE, 0), *((Op.GERMINATE, s) for s in range(3)))
    )
    decision = decide(wanting)
    assert decision.op == Op.WAIT
    assert "not legal yet" in decision.reason


# The interface


def test_a_batch_decides_row_by_row_as_single_observations_do():
    moments = [Moment(), Moment(epoch=2), Moment(seeds={0: READY[Stage.TRAINING]}), Moment(plateau=0)]
    stacked = {key: np.stack([m.observation()[key] for m in moments]) for key in moments[0].observation()}
    actions, _ = policy_with().predict(stacked)
    assert actions.shape == (4, 8)
    for row, moment in enumerate(moments):
        single, _ = policy_with().predict(moment.observation())
        np.testing.assert_array_equal(actions[row], single)


def test_the_callers_state_is_left_alone_and_can_be_used_again():
    policy = policy_with()
    _, state = policy.predict(Moment(seeds={0: Seed(Stage.HOLDING, 1, contribution=4.0)}).observation())
    kept = {name: column.copy() for name, column in vars(state).items()}
    later = Moment(epoch=21, seeds={0: Seed(Stage.HOLDING, 2, contribution=4.0)}).observation()
    first, after_first = policy.predict(later, state)
    again, after_again = policy.predict(later, state)
    np.testing.assert_array_equal(first, again)
    for name, column in kept.items():
        np.testing.assert_array_equal(getattr(state, name), column)
        np.testing.assert_array_equal(getattr(after_first, name), getattr(after_again, name))


def test_an_episode_start_forgets_that_row_only():
    policy, seeds = policy_with(), {0: Seed(Stage.HOLDING, 1, contribution=4.0)}
    rows = {key: np.stack([value] * 2) for key, value in Moment(seeds=seeds).observation().items()}
    _, state = policy.predict(rows)
    _, state = policy.predict(rows, state, np.array([True, False]))
    assert state.holding_count[:, 0].tolist() == [1, 2]
    assert [len(decisions) for decisions in policy.decisions] == [1, 2]


def test_decisions_are_kept_for_the_episode_and_no_longer():
    policy, state = policy_with(), None
    for step in range(2 * HORIZON):
        _, state = policy.predict(Moment(epoch=step % HORIZON).observation(), state, np.array([step == 0]))
    assert len(policy.decisions[0]) == HORIZON
    assert policy.decisions[0][-1].env == 0
    assert all(0.0 <= decision.confidence <= 1.0 for decision in policy.decisions[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothing": 0}, "smoothing is 0; expected at least 1"),
        ({"smoothing": 6}, "the observation shows 5 epochs"),
        ({"penalty_decay": 1.5}, "penalty_decay is 1.5"),
        ({"min_epoch": -1}, "min_epoch is -1"),
    ],
)
def test_senseless_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HeuristicConfig(**settings)


def test_a_whole_episode_with_eager_thresholds_commits_seeds(toy_id):
    env = gymnasium.make(toy_id, horizon=30)
    eager = HeuristicConfig(wait_for_stability=False, min_epoch=0, min_plateau=0)
    policy = HeuristicPolicy.for_env(env, eager)
    obs, _ = env.reset(seed=0)
    state, done, illegal = None, False, 0
    while not done:
        action, state = policy.predict(obs, state)
        obs, _, done, _, info = env.step(action)
        illegal += not info["action_valid"]
    assert illegal == 0
    ops = [decision.op for decision in policy.decisions[0]]
    assert Op.GERMINATE in ops
    assert Op.PRUNE in ops, "the toy measures no contribution, so nothing is worth keeping"


CHEAP = {"batches_per_step": 1, "device": "cpu"}


@pytest.mark.slow
@pytest.mark.parametrize(("spare", "committed"), [(0, 1), (-1, 0)])
@pytest.mark.parametrize("tempo", list(Tempo))
def test_on_a_real_task_a_seed_needs_exactly_the_epochs_that_are_reserved_for_it(spare, committed, tempo):
    """Planted at once and kept whatever it contributes: in time with just enough epochs, not planted with one less."""
    config = HeuristicConfig(
        tempo=tempo,
        wait_for_stability=False,
        min_epoch=0,
        min_plateau=0,
        min_contribution=-200.0,
        dependence=200.0,
        max_loss=200.0,
        commit_epochs=0,
    )
    needed = HeuristicPolicy(1, CNN_BLUEPRINTS, config=config).epochs_to_commit
    settings = CHEAP | {"horizon": needed + spare, "max_seeds": 1}
    record = run_episodes(lambda env: HeuristicPolicy.for_env(env, config), "Esper-Digits-v0", 1, env_kwargs=settings)[
        0
    ]
    assert record.fossilized == record.germinated == committed
    assert record.invalid_actions == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_on_a_real_task_episodes_are_legal_and_do_not_depend_on_how_many_run_at_once(name):
    def run(num_envs):
        settings = CHEAP | {"horizon": 16, "shard_size": 1}
        return run_episodes(
            lambda env: POLICIES[name](env, 0), "Esper-Digits-v0", 3, seed=5, num_envs=num_envs, env_kwargs=settings
        )

    records = run(3)
    assert records == run(1)
    assert all(record.invalid_actions == 0 for record in records)
    if name.startswith("conv"):
        assert all(record.fossilized == 1 for record in records)

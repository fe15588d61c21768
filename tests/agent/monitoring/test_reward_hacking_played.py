"""Suspicions of reward hacking in scripted exploits and an honest policy, with real networks.

Real networks differ between CPUs. If their accuracies matter, a test bounds the number of suspicions.
"""

import numpy as np
import pytest
from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.reward_hacking import RewardHackingDetector
from esper_agent.policies.heuristic import HeuristicPolicy
from esper_agent.sb3 import make_sb3_env
from esper_env.rules.heads import HEAD_DEFAULTS, AlphaSpeed, AlphaTarget, Blueprint, Head, Op, Style, Tempo
from faults import growth_of

HORIZON = 40
pytestmark = [pytest.mark.slow, pytest.mark.numeric]


def action(op=Op.WAIT, slot=0, **heads):
    """Return an action; other heads have their defaults."""
    values = np.array(HEAD_DEFAULTS, dtype=np.int64)
    values[Head.OP], values[Head.SLOT] = op, slot
    for name, value in heads.items():
        values[Head[name.upper()]] = value
    return values


def script(slot=0, blueprint=Blueprint.CONV_LIGHT, style=Style.LINEAR_ADD):
    """Return the actions of the shortest life of a seed from germination to fossilization."""
    return [
        action(Op.GERMINATE, slot, blueprint=blueprint, style=style, tempo=Tempo.FAST),
        action(Op.ADVANCE, slot),  # into TRAINING
        *[action()] * 2,
        action(Op.ADVANCE, slot),  # into BLENDING, for three ticks
        *[action()] * 2,
        action(Op.ADVANCE, slot),  # into HOLDING
        action(Op.FOSSILIZE, slot),
    ]


def filled(actions):
    """Return the actions, followed by WAIT to the horizon."""
    return [*actions, *[action()] * HORIZON][:HORIZON]


def play(num_envs, decide, seed=0, measured=None, settings=None, **kwargs):
    """Return the suspicions of one episode per environment.

    ``decide(t, observation)`` returns the actions. ``measured(structure, measurement)`` replaces the measurements.
    """
    env = make_sb3_env("Esper-Digits-v0", num_envs, seed, **kwargs)
    if measured is not None:
        population = growth_of(env.venv.vec_env)._population
        measure = population.measure
        population.measure = lambda structure, rows: measured(structure, measure(structure, rows))
    observation = env.reset()
    detector, found = RewardHackingDetector(settings or AnomalySettings()), []
    for t in range(HORIZON):
        observation, _, dones, infos = env.step(decide(t, observation))
        found += detector.observe(infos, dones)
    assert dones.all()
    env.close()
    return found


def scripted(actions, num_envs=2, **kwargs):
    settings = {"reward_mode": "contribution", "batches_per_step": 2} | kwargs
    return play(num_envs, lambda t, _: np.stack([actions[t]] * num_envs), **settings)


HELD = script()[:-1]  # as far as HOLDING
TO_HALF_AND_BACK = [
    action(Op.SET_ALPHA_TARGET, style=Style.LINEAR_ADD, alpha_target=target, alpha_speed=AlphaSpeed.INSTANT)
    for target in (AlphaTarget.HALF, AlphaTarget.FULL)
]
EXPLOITS = {
    "farming germinations": [action(op, slot) for slot in range(3) for op in (Op.GERMINATE, Op.PRUNE)] * 7,
    "farming whole lives": [step for slot in (0, 1, 2, 0, 1) for step in (*script(slot)[:-1], action(Op.PRUNE, slot))],
    "alpha spam": [*HELD, *TO_HALF_AND_BACK * 16],
    "alpha spam between stages": [*HELD, *[*TO_HALF_AND_BACK, action(Op.ADVANCE)] * 11],
    "waiting in holding": HELD,
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_exploits_are_overpaid(name):
    """Each active seed has a measured contribution of 20 points but is worth nothing at the end."""

    def dependent(_structure, measurement):
        return measurement._replace(contribution=np.where(measurement.measured, 20.0, 0.0))

    found = [s for s in scripted(filled(EXPLOITS[name]), measured=dependent) if s.payload.signature == "overpaid"]
    assert [s.env for s in found] == [0, 1]
    assert {s.epoch for s in found} == {HORIZON}


def test_three_germinations_and_prunes_are_not_suspected():
    farming = ([action(Op.GERMINATE, 0), action(Op.PRUNE, 0)] + [action()] * 11) * 3
    assert scripted(filled(farming)) == []


def test_early_honest_growth_is_not_suspected():
    """A seed planted in the first epoch grows with the host, which comes to depend on it.

    Its reward is at most half of the threshold.
    """
    assert scripted(filled(script()), settings=AnomalySettings(hacking_ratio=10.0)) == []


def test_harmful_but_needed_seed_is_ransomware():
    """The blended seed costs the network 10 points, and its removal would cost another 15."""

    def wrecked(structure, measurement):
        return measurement._replace(
            accuracy=np.where(structure.blended.any(axis=1), 40.0, 50.0),
            contribution=np.where(measurement.measured, 15.0, 0.0),
        )

    late = [*[action()] * 20, *HELD]
    found = scripted(filled(late), measured=wrecked, reward_mode="accuracy")
    assert [(s.env, s.slot, s.payload.signature) for s in found] == [(env, 0, "ransomware") for env in range(2)]
    for suspicion in found:
        assert suspicion.payload.paid == pytest.approx(15.0)
        assert suspicion.payload.improvement == pytest.approx(-10.0)
        assert suspicion.payload.ratio is None


def test_heuristic_is_rarely_suspected():
    """Only this reward mode can overpay."""
    policy = HeuristicPolicy.for_env(env := make_sb3_env("Esper-Digits-v0", 1).venv.vec_env)
    env.close()
    memory = {"state": None}

    def decide(t, observation):
        actions, memory["state"] = policy.predict(observation, memory["state"], np.full(8, t == 0))
        return actions

    assert len(play(8, decide, seed=500, reward_mode="contribution")) <= 1

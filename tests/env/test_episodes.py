"""Reset requests and the clock of episodes; ``test_malformed_inputs.py`` tests more requests."""

import gymnasium
import numpy as np
import pytest
from esper_env.episodes import EpisodeClock, SeedSites, parse_reset
from esper_env.rules.heads import Blueprint
from esper_env.seeds import offered_blueprints
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import TimeLimit

SITE = SeedSites(("r0c0", "r0c1", "r0c2"), "cnn", 2, offered_blueprints("cnn"))
ALL = np.ones(3, dtype=bool)


def mask(*values):
    return np.array(values, dtype=bool)


def test_reset_without_arguments_includes_every_environment():
    request = parse_reset(None, None, 3, SITE)
    assert request.seeds == [None] * 3
    assert request.rows.all()
    assert request.planted == {}


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (5, [5, 6, 7]),
        (np.int64(5), [5, 6, 7]),
        ([1, None, 3], [1, None, 3]),
        ((9, 9, 9), [9, 9, 9]),
        (np.array([4, 5, 6]), [4, 5, 6]),
    ],
)
def test_parse_reset_accepts_seeds(seed, expected):
    seeds = parse_reset(seed, None, 3, SITE).seeds
    assert seeds == expected
    assert all(value is None or type(value) is int for value in seeds)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        ([], ValueError, "0 values"),
        ("123", TypeError, "expected an integer"),
        ([0, 1.5, 2], TypeError, "expected an integer"),
        ([0, True, 2], TypeError, "expected an integer"),
        (np.array([0.0, 1.0, 2.0]), TypeError, "expected an integer"),
        ({0: 1}, TypeError, "expected an integer"),
    ],
)
def test_parse_reset_rejects_bad_seeds(seed, error, message):
    with pytest.raises(error, match=message):
        parse_reset(seed, None, 3, SITE)


def test_parse_reset_accepts_options():
    rows = mask(True, False, True)
    request = parse_reset(
        None, {"reset_mask": rows, "topology": {"r0c2": "conv_light", "r0c0": Blueprint.NORM}}, 3, SITE
    )
    assert request.planted == {2: Blueprint.CONV_LIGHT, 0: Blueprint.NORM}
    rows[:] = False
    assert request.rows.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({3: ALL}, ValueError, "'3'"),
        ({"reset_mask": np.ones(3)}, TypeError, "numpy array of bools"),
        ({"topology": {"r0c0": "lora"}}, ValueError, "'lora' does not fit a cnn host"),
        ({"topology": {"r0c0": "noop"}}, ValueError, "'noop' does not fit"),
        ({"topology": {"r0c0": None}}, ValueError, "None does not fit"),
    ],
)
def test_parse_reset_rejects_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        parse_reset(None, options, 3, SITE)


class Endless(gymnasium.Env):
    """An episode of a given length."""

    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(1)

    def __init__(self, length):
        self.length, self.steps = length, 0

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.steps = 0
        return 0, {}

    def step(self, action):  # noqa: ARG002
        self.steps += 1
        return 0, 0.0, self.steps >= self.length, False, {}


@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_clock_equals_time_limit(limit):
    env = TimeLimit(Endless(4), limit)
    env.reset()
    clock = EpisodeClock(1, limit)
    clock.start(mask(True))
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step(0)
        assert clock.count(mask(True), mask(terminated)).tolist() == [truncated]
        over = terminated or truncated
        assert clock.finished.tolist() == [over]


def test_clock_without_limit_never_truncates():
    clock = EpisodeClock(1, None)
    clock.start(mask(True))
    assert not any(clock.count(mask(True), mask(False))[0] for _ in range(1000))


def test_clock_counts_environments_separately():
    clock = EpisodeClock(3, 3)
    clock.start(ALL)
    clock.count(ALL, ~ALL)
    clock.start(mask(False, True, False))
    clock.count(mask(True, True, False), ~ALL)
    assert clock.count(ALL, ~ALL).tolist() == [True, False, False]
    assert clock.finished.tolist() == [True, False, False]


def test_clock_requires_a_reset():
    clock = EpisodeClock(2, None)
    with pytest.raises(ResetNeeded, match=r"\[0, 1\] have not been reset"):
        clock.require_running(finished_too=True)
    clock.start(mask(True, False))
    with pytest.raises(ResetNeeded, match=r"\[1\] have not been reset"):
        clock.require_running(finished_too=True)
    clock.require_started(besides=mask(False, True))
    clock.start(mask(False, True))
    clock.require_running(finished_too=False)
    clock.count(mask(True, True), mask(False, True))
    clock.require_running(finished_too=True)
    with pytest.raises(ResetNeeded, match=r"\[1\] are over"):
        clock.require_running(finished_too=False)

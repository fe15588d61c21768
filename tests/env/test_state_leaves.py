"""Every leaf of a state matters: an altered leaf is rejected or changes the future."""

import dataclasses
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pytest
from esper_env.rules.heads import AlphaSpeed, AlphaTarget, Blueprint, Curve, Style, Tempo
from esper_env.telemetry import MemorySink
from growing import Life, Move
from gymnasium.error import ResetNeeded
from stepping import begun, changed, drive, leaves, measured_by_script, new_env, plan_for

pytestmark = pytest.mark.numeric


def altered(leaf):
    """Return another value of the same kind, if possible a valid one."""
    if isinstance(leaf, np.ndarray):
        by_kind = {"b": lambda: ~leaf, "f": lambda: leaf * 0.5 + 0.25, "u": lambda: leaf ^ 1, "i": lambda: leaf + 1}
        return by_kind[leaf.dtype.kind]()
    if isinstance(leaf, list):
        return [altered(item) for item in leaf] or ["x"]
    if isinstance(leaf, dict):
        return {"x": 1.0}
    by_type = {str: lambda: leaf + "x", type(None): lambda: 1, float: lambda: leaf + 1.0, bool: lambda: not leaf}
    return by_type.get(type(leaf), lambda: leaf ^ 1)()


def emptied(leaf):
    return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else altered(leaf)


def raised(leaf):
    return leaf + 3 if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fi" else altered(leaf)


#: BatchNorm with a fixed momentum counts its batches and never reads the count.
UNREAD = {
    ("population", *where, "buffers", f"segments.{k}.1.num_batches_tracked")
    for where in (("host",), ("snapshots", "host"))
    for k in range(3)
}
#: Leaves for lives that do not occur here; the tests of the rules cover them. ``delay`` discounts a boost that is no
#: longer measured; ``panics`` counts divergent epochs; losses are compared with ``history`` and ``count``.
NOT_HERE = {
    ("reward", "ledger", "delay"),
    *(("governor", name) for name in ("panics", "history", "count")),
}
#: Leaves that only affect events; see ``test_event_counters_continue_after_a_restore``.
TOLD = {("recorder", name) for name in ("episode", "returns", "length", "commands", "rejected", "epoch")}
EXEMPT = UNREAD | NOT_HERE | TOLD


class Moment(NamedTuple):
    """Moment at which leaves are altered, in steps of lives in which every seed grows."""

    steps: int
    settings: dict
    ahead: int  # steps of the future that is compared
    broken: bool = False  # every network breaks in the next step, and the governor rolls it back


#: Most leaves matter at the first moment. The others cover future seeds, credit for boosts, snapshots, accrued rent and
#: strict gates, and curves that stand still.
MOMENTS = [
    Moment(8, {"reward_mode": "contribution", "max_episode_steps": 12}, 2),
    Moment(4, {"reward_mode": "contribution"}, 9),
    Moment(11, {"reward_mode": "contribution", "horizon": 16}, 5),
    Moment(11, {"reward_mode": "contribution", "horizon": 30}, 3, broken=True),
    Moment(5, {"reward_mode": "sparse", "gates": "strict"}, 8),
    Moment(2, {"reward_mode": "accuracy", "host_lr": 1e-6, "seed_lr": 1e-6}, 11),
]


def growing_lives():
    def life(row, style):
        heads = (Blueprint.CONV_LIGHT, style, Tempo.FAST, AlphaTarget.FULL, AlphaSpeed.FAST, Curve.LINEAR)
        return Life({}, row, [Move("grow", 0, 0, tuple(map(int, heads)))] * 40)

    return [life(row, style) for row, style in enumerate((Style.GATED_GATE, Style.LINEAR_ADD, Style.LINEAR_MULTIPLY))]


def pattern(path):
    """Return a leaf's place without the numbers of slots, blueprints and generators."""
    return tuple("*" if key.isdigit() else key for key in path)


def break_all(env):
    for shard in env._growth._population.shards:
        next(iter(shard.host.parameters.values())).fill_(float("nan"))


def silent_leaves(env, plan, moment, heard_before, assert_same):
    """Places of leaves that can be altered without changing the future, besides those of ``heard_before``.

    Returns them, and the places of all leaves that the state has at this moment.
    """

    def future():
        yield env.observe(), dataclasses.asdict(env._growth.signals)
        yield env.np_random_seed, draws_of(env)
        if moment.broken:
            break_all(env)
        for step in range(moment.steps, moment.steps + moment.ahead):
            yield drive(env, plan, [step])
        yield env.get_state()["population"]

    begun(env, plan, moment.steps)
    draws_of(env)  # leaves half a word over
    state = env.get_state()
    expected, heard = list(future()), set()

    def matters(path, change):
        try:
            env.set_state(changed(state, path, change))
            return any(differs(*pair, assert_same) for pair in zip(future(), expected, strict=True))
        except (ValueError, RuntimeError, ResetNeeded):
            return True

    there = {pattern(path) for path in leaves(state)} - EXEMPT
    wanted = there - heard_before
    rescuing = {path for path in leaves(state) if path[0] == "governor" or "snapshots" in path}
    paths = [path for path in leaves(state) if pattern(path) in wanted and (path in rescuing) == moment.broken]
    for path in paths:
        if pattern(path) not in heard and any(matters(path, change) for change in (altered, emptied, raised)):
            heard.add(pattern(path))
    return wanted - heard, there


def differs(left, right, assert_same):
    try:
        assert_same(left, right)
    except AssertionError:
        return True
    return False


def draws_of(env):
    return [int(rng.integers(2**32, dtype=np.uint32)) for rng in env.np_random]


@pytest.mark.slow
def test_state_leaves_all_affect_the_future(assert_same):
    silent, known = set(), set()
    for moment in MOMENTS:
        with closing(new_env(**({"horizon": 13} | moment.settings))) as env, measured_by_script(env):
            still_silent, there = silent_leaves(env, growing_lives(), moment, known - silent, assert_same)
            silent = (silent - there) | still_silent
            known |= there
    assert silent == set()


def test_event_counters_continue_after_a_restore():
    with closing(new_env(horizon=5)) as env, closing(new_env(horizon=5)) as other:
        plan = plan_for(env, 3, 40)
        begun(env, plan, 7)
        other.set_state(env.get_state())
        received = []
        for each in (env, other):
            sink = each.telemetry.add_sink(MemorySink())
            drive(each, plan, range(7, 13))
            each.telemetry.flush()
            received.append([(e.type, e.env, e.episode, e.epoch, e.slot, e.payload) for e in sink.events])
    assert received[0] == received[1]
    assert {episode for _, _, episode, *_ in received[0]} == {1, 2}

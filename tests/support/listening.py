"""Environments with a sink, and the results of their steps to compare with the events."""

from typing import Any, NamedTuple

import numpy as np
from esper_env.infos import single_info
from esper_env.telemetry import MemorySink
from growing import choose
from gymnasium.vector import AutoresetMode

FOREVER = 10**9  # epochs of full detail


class Start(NamedTuple):
    """The beginning of an episode."""

    env: int
    episode: int
    info: dict[str, Any]


class Step(NamedTuple):
    """One step of one environment; ``epoch`` counts from 1."""

    env: int
    episode: int
    epoch: int
    action: np.ndarray
    info: dict[str, Any]
    reward: float
    terminated: bool
    truncated: bool

    @property
    def at(self):
        return self.env, self.episode, self.epoch


def listen(envs, full=True):
    """Attach and return a sink in memory; ``full`` sets full detail."""
    hub = envs.unwrapped.telemetry
    sink = hub.add_sink(MemorySink())
    if full:
        hub.escalate(FOREVER)
    return sink


def heard(envs, sink, *types):
    """Return the events so far, of some types or of all."""
    envs.unwrapped.telemetry.flush()
    return [event for event in sink.events if not types or event.type in types]


def payloads(envs, sink, *types):
    return [event.payload for event in heard(envs, sink, *types)]


def event_at(event):
    return event.env, event.episode, event.epoch


def break_host(envs, row):
    """Write NaN into a weight of one network's host."""
    shard, local = envs.unwrapped._growth._population._locate(row)
    next(iter(shard.host.parameters.values()))[local].view(-1)[0] = np.nan


class Play:
    """Plays environments by a plan and keeps a log.

    A mask resets environment 1 after two steps, so that the episodes end at different steps. ``meddle(envs, step)`` is
    called before each step. ``returned`` lists all results of the environment.
    """

    def __init__(self, envs, plan, steps, meddle=None):
        self.envs, self.plan, self.count = envs, plan, envs.num_envs
        self.mode = envs.unwrapped.autoreset_mode
        self.episode, self.epoch = np.full(self.count, -1), np.zeros(self.count, dtype=int)
        self.over = np.zeros(self.count, dtype=bool)
        self.log, self.returned = [], []
        self.reset(np.ones(self.count, dtype=bool), seed=0)
        for step in range(steps):
            if step == 2:
                self.reset(np.arange(self.count) == 1)
            if self.mode is AutoresetMode.DISABLED and self.over.any():
                self.reset(self.over)
            if meddle is not None:
                meddle(envs, step)
            self.step(choose(envs.unwrapped._growth, plan, step))

    def reset(self, rows, seed=None):
        self.returned.append(self.envs.reset(seed=seed, options={"reset_mask": rows}))
        self.started(rows, self.returned[-1][1])
        self.over[rows] = False

    def step(self, actions):
        waiting = self.over & (self.mode is AutoresetMode.NEXT_STEP)  # these are reset instead of stepped
        self.returned.append(self.envs.step(actions))
        _, rewards, terminated, truncated, infos = self.returned[-1]
        self.over = terminated | truncated
        self.started(waiting, infos)
        for env in np.flatnonzero(~waiting):
            self.epoch[env] += 1
            final = self.over[env] and self.mode is AutoresetMode.SAME_STEP
            info = single_info(infos["final_info"] if final else infos, env)
            where = (int(env), int(self.episode[env]), int(self.epoch[env]))
            ends = (bool(terminated[env]), bool(truncated[env]))
            self.log.append(Step(*where, actions[env], info, float(rewards[env]), *ends))
        if self.mode is AutoresetMode.SAME_STEP:
            self.started(self.over, infos)

    def started(self, rows, infos):
        for env in np.flatnonzero(rows):
            self.episode[env] += 1
            self.epoch[env] = 0
            self.log.append(Start(int(env), int(self.episode[env]), single_info(infos, env)))

    @property
    def steps(self):
        return [entry for entry in self.log if isinstance(entry, Step)]

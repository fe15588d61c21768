"""Environments with a sink, and the results of their steps to compare with the events."""

from typing import Any, NamedTuple

import numpy as np
from esper_env.infos import single_info
from esper_env.telemetry import MemorySink
from growing import choose
from gymnasium.vector import AutoresetMode

FOREVER = 10**9  # epochs of full detail


class Step(NamedTuple):
    """One step of one environment."""

    at: tuple[int, int, int]  # environment, episode, epoch from 1
    action: np.ndarray
    info: dict[str, Any]
    reward: float
    terminated: bool
    truncated: bool


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
    """Plays environments by a plan; ``steps`` lists the steps, and ``returned`` all results of the environments.

    A mask resets environment 1 after two steps, so that the episodes end at different steps. ``meddle(envs, step)`` is
    called before each step.
    """

    def __init__(self, envs, plan, steps, meddle):
        self.envs, self.steps, self.returned = envs, [], []
        mode = envs.unwrapped.autoreset_mode
        episode, epoch = np.full(envs.num_envs, -1), np.zeros(envs.num_envs, dtype=int)
        over = np.ones(envs.num_envs, dtype=bool)
        for step in range(steps):
            begins = over & (step == 0 or mode is AutoresetMode.DISABLED)
            begins |= (np.arange(envs.num_envs) == 1) & (step == 2)
            if begins.any():
                self.returned.append(envs.reset(seed=None if step else 0, options={"reset_mask": begins}))
                episode[begins], epoch[begins], over[begins] = episode[begins] + 1, 0, False
            meddle(envs, step)
            waiting = over & (mode is AutoresetMode.NEXT_STEP)  # these are reset instead of stepped
            actions = choose(envs.unwrapped._growth, plan, step)
            self.returned.append(envs.step(actions))
            _, rewards, terminated, truncated, infos = self.returned[-1]
            over = terminated | truncated
            episode, epoch = episode + waiting, np.where(waiting, 0, epoch + 1)
            for env in np.flatnonzero(~waiting).tolist():
                final = over[env] and mode is AutoresetMode.SAME_STEP
                info = single_info(infos["final_info"] if final else infos, env)
                at = env, int(episode[env]), int(epoch[env])
                results = float(rewards[env]), bool(terminated[env]), bool(truncated[env])
                self.steps.append(Step(at, actions[env], info, *results))
            if mode is AutoresetMode.SAME_STEP:
                episode, epoch = episode + over, np.where(over, 0, epoch)

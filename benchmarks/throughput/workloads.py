"""Workloads: how the networks of a vector grow while it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from esper_agent import FactoredRecurrentPPO, GymVecEnv
from esper_agent.policies.baselines import RandomPolicy, WaitPolicy
from esper_agent.training.run_folder import PolicyByName, load_run
from gymnasium.vector import VectorEnv
from timing import intra_op_threads


@dataclass(frozen=True)
class Workload:
    """A policy, and how it is timed.

    Args:
        policy: makes the policy for a vector.
        description: the policy in words. It is empty for workloads that have a single policy.
        planted: every slot has a seed from the start.
        whole_episodes: a turn has whole episodes, because the seeds change in the course of an episode.
    """

    policy: Callable[[VectorEnv], Any]
    description: str = ""
    planted: bool = False
    whole_episodes: bool = False


class SampledPolicy:
    """A policy that samples its actions on one thread, as in training.

    On a CPU, the samples come from random numbers of its own. So all contenders draw the same numbers, and train nearly
    the same networks.
    """

    def __init__(self, policy: Any) -> None:
        self._policy, self._numbers = policy, torch.Generator().manual_seed(0).get_state()

    def predict(self, observation: Any, state: Any, episode_start: Any) -> tuple[Any, Any]:
        """Return actions (N, 8) and the next state of the policy."""
        with torch.random.fork_rng(devices=[]), intra_op_threads(1):
            torch.set_rng_state(self._numbers)
            result = self._policy.predict(observation, state, episode_start, deterministic=False)
            self._numbers = torch.get_rng_state()
        return result


#: Workloads with a policy that learns nothing.
FIXED = {
    "host": Workload(lambda _: WaitPolicy()),
    "growing": Workload(lambda _: RandomPolicy(0), whole_episodes=True),
    "planted": Workload(lambda _: WaitPolicy(), planted=True),
}
POLICY = "policy"


def make_workload(name: str, env_id: str, run: str | None = None) -> Workload:
    """Return a workload; ``run`` is the run folder of the policy, or None for an untrained one.

    Raises:
        RunError: the run does not exist, or was trained on another task.
    """
    if name != POLICY:
        return FIXED[name]
    if run is None:
        return Workload(
            lambda envs: SampledPolicy(FactoredRecurrentPPO("FactoredLstmPolicy", GymVecEnv(envs), seed=0)),
            "untrained",
            whole_episodes=True,
        )
    timesteps, policy = load_run(run, env_id).model.num_timesteps, PolicyByName(run, env_id)
    return Workload(
        lambda envs: SampledPolicy(policy(envs)), f"{run}, trained for {timesteps:,} steps", whole_episodes=True
    )

"""Rollout buffer of FactoredRecurrentPPO: SB3-contrib's buffer with two decisions per step."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch as th
from esper_env.persistence import Tree, check_like
from esper_env.rules import NUM_HEADS
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecNormalize
from typing_extensions import override

from esper_agent.ppo.advantages import AdvantageEstimator, Rollout
from esper_agent.ppo.policy import BatchDecision


class FactoredSamples(NamedTuple):
    """Minibatch of padded sequences, each inside one episode; B = sequences * longest. ``mask`` is 0 on padding.

    The first nine fields are those of SB3-contrib's samples.
    """

    observations: TensorDict  # (B, ...)
    actions: th.Tensor  # (B, heads)
    old_values: th.Tensor  # (B,) Q(s, op)
    old_log_prob: th.Tensor  # (B,) of the joint action
    advantages: th.Tensor  # (B,) of the arguments
    returns: th.Tensor  # (B,) targets of Q(s, op)
    lstm_states: RNNStates  # (layers, sequences, hidden) before each sequence
    episode_starts: th.Tensor  # (B,)
    mask: th.Tensor  # (B,)
    head_log_probs: th.Tensor  # (B, heads) under the behaviour policy
    op_advantages: th.Tensor  # (B,)


#: Arrays that a rollout fills step by step; advantages and returns follow at its end.
_COLUMNS = (
    *("actions", "rewards", "episode_starts", "values", "log_probs", "head_log_probs"),
    *("state_values", "final_values", "ends"),
    *("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf"),
)


class FactoredRolloutBuffer(RecurrentDictRolloutBuffer):
    """Rollout of T steps of N environments.

    ``values`` holds Q(s, op) of the op taken, ``advantages`` the advantage of the arguments, ``log_probs`` the joint
    log-probability. Beside SB3's arrays: ``state_values``, ``op_advantages``, ``final_values`` (T, N) float,
    ``ends`` (T, N) bool and ``head_log_probs`` (T, N, heads).
    """

    @override
    def reset(self) -> None:
        super().reset()
        shape = (self.buffer_size, self.n_envs)
        self.state_values = np.zeros(shape, dtype=np.float32)
        self.op_advantages = np.zeros(shape, dtype=np.float32)
        self.final_values = np.zeros(shape, dtype=np.float32)
        self.ends = np.zeros(shape, dtype=np.bool_)
        self.head_log_probs = np.zeros((*shape, NUM_HEADS), dtype=np.float32)

    def get_state(self) -> Tree:
        """Return copies of the steps so far. Call this method within a rollout."""
        steps = {name: array[: self.pos].copy() for name, array in self._columns().items()}
        return {**steps, "observations": {name: array[: self.pos].copy() for name, array in self.observations.items()}}

    def set_state(self, state: Tree) -> None:
        """Continue the rollout of a state."""
        done = len(state["rewards"]) if isinstance(state.get("rewards"), np.ndarray) and state["rewards"].ndim else 0
        self.reset()
        if done > self.buffer_size:
            raise ValueError(f"the rollout has {done} steps; expected at most {self.buffer_size}")
        self.pos = done
        check_like(state, self.get_state())
        for columns, values in ((self._columns(), state), (self.observations, state["observations"])):
            for name, array in columns.items():
                array[:done] = values[name]
        self.full = done == self.buffer_size

    def _columns(self) -> dict[str, np.ndarray]:
        """Arrays with a row per step that a rollout fills, except the observations."""
        return {name: getattr(self, name) for name in _COLUMNS}

    def add_decision(
        self,
        obs: dict[str, np.ndarray],
        decision: BatchDecision,
        reward: np.ndarray,
        episode_start: np.ndarray,
        lstm_states: RNNStates,
        end: np.ndarray,
        final_value: np.ndarray,
    ) -> None:
        """Append one step of N environments.

        ``episode_start`` and ``end`` (N,) mark its first and last step. ``lstm_states`` are the states before the
        decision. ``final_value`` (N,) is the value of the final observation of a truncated episode, otherwise 0.
        """
        position = self.pos
        self.state_values[position] = decision.state_values.cpu().numpy()
        self.head_log_probs[position] = decision.head_log_probs.cpu().numpy()
        self.ends[position] = end
        self.final_values[position] = final_value
        self.add(
            obs,
            decision.actions.cpu().numpy(),
            reward,
            episode_start,
            decision.op_values,
            decision.head_log_probs.sum(dim=1),
            lstm_states=lstm_states,
        )

    def estimate_advantages(self, last_values: th.Tensor, estimator: AdvantageEstimator) -> None:
        """Fill advantages and returns; ``last_values`` (N,) bootstrap the observation after the last step."""
        rollout = Rollout(
            rewards=self.rewards,
            op_values=self.values,
            state_values=self.state_values,
            ends=self.ends,
            final_values=self.final_values,
            last_values=last_values.cpu().numpy(),
        )
        advantages = estimator.estimate(rollout, self.gamma, self.gae_lambda)
        self.advantages, self.op_advantages, self.returns = advantages.arguments, advantages.op, advantages.returns

    def statistics(self) -> dict[str, float]:
        """Return the explained variance of the values, and the root mean squares of the LSTM's states."""
        return {
            "explained_variance": float(explained_variance(self.values.flatten(), self.returns.flatten())),
            "lstm_hidden_rms": _root_mean_square(self.hidden_states_pi),
            "lstm_cell_rms": _root_mean_square(self.cell_states_pi),
        }

    @override
    def get(self, batch_size: int | None = None) -> Generator[FactoredSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            for name in ("op_advantages", "head_log_probs"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env_change: np.ndarray, env: VecNormalize | None = None
    ) -> FactoredSamples:
        return FactoredSamples(
            **super()._get_samples(batch_inds, env_change, env)._asdict(),
            head_log_probs=self.pad(self.head_log_probs[batch_inds]).flatten(0, 1),
            op_advantages=self.pad_and_flatten(self.op_advantages[batch_inds]),
        )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))

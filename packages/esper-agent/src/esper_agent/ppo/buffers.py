"""Rollout buffer of FactoredRecurrentPPO: SB3-contrib's buffer with two decisions per step."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from esper_env.rules import NUM_HEADS
from gymnasium import spaces
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize
from typing_extensions import override

from esper_agent.ppo.advantages import ESTIMATORS, Rollout
from esper_agent.ppo.policy import Decision


class FactoredSamples(NamedTuple):
    """Minibatch of padded sequences, each inside one episode; B = sequences * longest. ``mask`` is 0 on padding."""

    observations: TensorDict  # (B, ...)
    actions: th.Tensor  # (B, heads)
    old_values: th.Tensor  # (B,) Q(s, op)
    head_log_probs: th.Tensor  # (B, heads) under the behaviour policy
    op_advantages: th.Tensor  # (B,)
    argument_advantages: th.Tensor  # (B,)
    returns: th.Tensor  # (B,) targets of Q(s, op)
    lstm_states: RNNStates  # (layers, sequences, hidden) before each sequence
    episode_starts: th.Tensor  # (B,)
    mask: th.Tensor  # (B,)


class FactoredRolloutBuffer(RecurrentDictRolloutBuffer):
    """Rollout of T steps of N environments.

    ``values`` holds Q(s, op) of the op taken, ``advantages`` the advantage of the arguments, ``log_probs`` the joint
    log-probability. Beside SB3's arrays: ``state_values``, ``op_advantages``, ``final_values`` (T, N) float,
    ``ends`` (T, N) bool and ``head_log_probs`` (T, N, heads).

    Args:
        buffer_size: T.
        observation_space: of one environment.
        action_space: of one environment.
        hidden_state_shape: (T, layers, N, hidden) of the LSTM.
        device: device of the minibatches.
        gae_lambda: lambda of generalised advantage estimation.
        gamma: discount factor.
        n_envs: N.
        estimator: a key of :data:`esper_agent.ppo.advantages.ESTIMATORS`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        hidden_state_shape: tuple[int, int, int, int],
        device: th.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
        estimator: str = "two_step",
    ) -> None:
        self.estimator = estimator
        super().__init__(
            buffer_size, observation_space, action_space, hidden_state_shape, device, gae_lambda, gamma, n_envs
        )

    @override
    def reset(self) -> None:
        super().reset()
        shape = (self.buffer_size, self.n_envs)
        self.state_values = np.zeros(shape, dtype=np.float32)
        self.op_advantages = np.zeros(shape, dtype=np.float32)
        self.final_values = np.zeros(shape, dtype=np.float32)
        self.ends = np.zeros(shape, dtype=np.bool_)
        self.head_log_probs = np.zeros((*shape, NUM_HEADS), dtype=np.float32)

    def add_decision(
        self,
        obs: dict[str, np.ndarray],
        decision: Decision,
        reward: np.ndarray,
        episode_start: np.ndarray,
        lstm_states: RNNStates,
        end: np.ndarray,
        final_value: np.ndarray,
    ) -> None:
        """Append one step of N environments.

        Args:
            obs: the observation.
            decision: the policy's decision.
            reward: (N,).
            episode_start: (N,), True if ``obs`` is the first of its episode.
            lstm_states: states before the decision.
            end: (N,), True if the episode ended with this step.
            final_value: (N,), value of the final observation of a truncated episode, otherwise 0.
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

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """Fill advantages and returns.

        Args:
            last_values: (N,), bootstrap values of the observation after the last step.
            dones: (N,), True if the episode ended with the last step.

        Raises:
            ValueError: ``dones`` differs from the last stored step.
        """
        dones = np.asarray(dones, dtype=np.bool_)
        if not np.array_equal(dones, self.ends[-1]):
            raise ValueError(f"`dones` is {dones.tolist()}; expected {self.ends[-1].tolist()}, as in the last step")
        rollout = Rollout(
            rewards=self.rewards,
            op_values=self.values,
            state_values=self.state_values,
            ends=self.ends,
            final_values=self.final_values,
            last_values=last_values.detach().cpu().numpy().reshape(self.n_envs),
        )
        advantages = ESTIMATORS[self.estimator].estimate(rollout, self.gamma, self.gae_lambda)
        self.advantages = advantages.arguments
        self.op_advantages = advantages.op
        self.returns = advantages.returns

    @override
    def get(self, batch_size: int | None = None) -> Generator[FactoredSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            for name in ("op_advantages", "head_log_probs"):
                self.__dict__[name] = self.swap_and_flatten(self.__dict__[name])
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env_change: np.ndarray, env: VecNormalize | None = None
    ) -> FactoredSamples:
        samples: Any = super()._get_samples(batch_inds, env_change, env)
        return FactoredSamples(
            observations=samples.observations,
            actions=samples.actions,
            old_values=samples.old_values,
            head_log_probs=self.pad(self.head_log_probs[batch_inds]).flatten(0, 1),
            op_advantages=self.pad_and_flatten(self.op_advantages[batch_inds]),
            argument_advantages=samples.advantages,
            returns=samples.returns,
            lstm_states=samples.lstm_states,
            episode_starts=samples.episode_starts,
            mask=samples.mask,
        )

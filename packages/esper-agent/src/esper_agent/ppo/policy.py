"""FactoredLstmPolicy: one LSTM under eight masked action heads and a critic Q(s, op)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from esper_env.rules import HEAD_VALUES, Head
from esper_env.suggestions import shown
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from esper_agent.policies.batches import ObservationBatch, check_state, starting_rows
from esper_agent.ppo.advantages import expected_value
from esper_agent.ppo.distribution import FactoredDistribution, HeadEvaluation, HeadTables
from esper_agent.ppo.networks import (
    EMBEDDING_STD,
    POLICY_GAIN,
    VALUE_GAIN,
    ActionHeads,
    ObservationEncoder,
    OpCritic,
    initialise_linear,
    initialise_lstm,
)
from esper_agent.ppo.settings import check_logit_bias
from esper_agent.ppo.spaces import check_spaces

#: Initial bias of the logits by head and value. Uniformly random growth is worse than waiting, mostly because a seed
#: whose alpha target is not FULL cannot be committed and is discarded at the end. Without the bias, training collapses
#: to WAIT before discovering that growth pays.
LOGIT_BIAS: Mapping[str, Mapping[str, float]] = {
    "op": {"WAIT": -1.0, "SET_ALPHA_TARGET": -2.0, "PRUNE": -2.0},
    "alpha_target": {"FULL": 2.0},
}

LstmState = tuple[th.Tensor, th.Tensor]


class UnknownPolicyError(ValueError):
    """``policy`` is neither the name nor a subclass of ``FactoredLstmPolicy``."""


class BatchDecision(NamedTuple):
    """Actions of B environments and their values; ``op_values`` belongs to the op in ``actions``."""

    actions: th.Tensor  # (B, heads) int64
    op_values: th.Tensor  # (B,) Q(s, op) of the op taken
    state_values: th.Tensor  # (B,) V(s) = sum over ops of pi(op|s) Q(s, op)
    head_log_probs: th.Tensor  # (B, heads)


class Evaluation(NamedTuple):
    """Stored actions under the current policy."""

    op_values: th.Tensor  # (B,) Q(s, op) of the stored op
    state_values: th.Tensor  # (B,)
    op_probs: th.Tensor  # (B, ops)
    heads: HeadEvaluation


class FactoredLstmPolicy(RecurrentActorCriticPolicy):
    """Recurrent policy for the growth environments, for use with :class:`esper_agent.ppo.ppo.FactoredRecurrentPPO`.

    Encoder -> LSTM -> LayerNorm -> one head per part of the action, and Q(s, op). Actor and critic share the LSTM
    and both train it. Legality comes from ``action_mask`` and ``op_slot_mask`` in the observation.

    Args:
        observation_space: ``Dict`` with features, blueprints, action_mask and op_slot_mask.
        action_space: ``MultiDiscrete(head_sizes(S))``.
        lr_schedule: learning rate as a function of the remaining progress.
        embedding_dim: width of a blueprint's embedding.
        features_dim: width of the encoder.
        lstm_hidden_size: width of the LSTM.
        head_dim: hidden width of the action heads and of the critic.
        logit_bias: initial bias of the action heads as {head: {value: bias}}, such as {"op": {"WAIT": -1.0}}; other
            values start at 0. None for ``LOGIT_BIAS``.
        optimizer_class: class of the optimizer.
        optimizer_kwargs: keyword arguments of the optimizer without the learning rate; for Adam, eps is 1e-5 and fused
            is True unless they say otherwise.
        use_sde: must be False; Stable-Baselines3 passes it to every policy.

    Raises:
        ValueError: spaces of another shape, an unknown head or value, or ``use_sde=True``.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        embedding_dim: int = 4,
        features_dim: int = 256,
        lstm_hidden_size: int = 256,
        head_dim: int = 128,
        logit_bias: Mapping[str, Mapping[str, float]] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("`use_sde` is True; expected False: it needs continuous actions")
        check_spaces(observation_space, action_space)
        # The base class calls _build, which reads these.
        self.head_dim = head_dim
        wanted = LOGIT_BIAS if logit_bias is None else logit_bias
        check_logit_bias(wanted)
        self.logit_bias = {head: dict(biases) for head, biases in wanted.items()}
        if optimizer_class is th.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True} | (optimizer_kwargs or {})
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=ObservationEncoder,
            features_extractor_kwargs={"features_dim": features_dim, "embedding_dim": embedding_dim},
            normalize_images=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            lstm_hidden_size=lstm_hidden_size,
            shared_lstm=True,
            enable_critic_lstm=False,
        )
        initialise_lstm(self.lstm_actor)

    def _build(self, lr_schedule: Schedule) -> None:
        """Create and initialise everything but the LSTM and the optimizer, which the base class adds."""
        del lr_schedule
        assert isinstance(self.action_space, spaces.MultiDiscrete)
        self.tables = HeadTables(self.action_space.nvec.tolist())
        self.latent_norm = nn.LayerNorm(self.lstm_output_dim)
        self.action_net: ActionHeads = ActionHeads(self.lstm_output_dim, self.head_dim, self.tables.nvec)
        self.value_net: OpCritic = OpCritic(self.lstm_output_dim, self.head_dim)
        for module in (self.features_extractor, self.action_net, self.value_net):
            initialise_linear(module)
        nn.init.normal_(self.features_extractor.embedding.weight, std=EMBEDDING_STD)
        for head in Head:
            initialise_linear(self.action_net.output_layer(head), POLICY_GAIN)
        initialise_linear(self.value_net.output, VALUE_GAIN)
        with th.no_grad():
            for head, biases in self.logit_bias.items():
                part = Head[head.upper()]
                for name, bias in biases.items():
                    self.action_net.output_layer(part).bias[HEAD_VALUES[part][name]] = bias

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            **self.features_extractor_kwargs,
            "lstm_hidden_size": self.lstm_output_dim,
            "head_dim": self.head_dim,
            "logit_bias": self.logit_bias,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None) -> th.Tensor:
        """Return the encoded observation (B, features_dim), without SB3's preprocessing, which makes indices floats."""
        extractor = self.features_extractor if features_extractor is None else features_extractor
        return extractor(obs)

    @staticmethod
    def _process_sequence(
        features: th.Tensor, lstm_states: LstmState, episode_starts: th.Tensor, lstm: nn.LSTM
    ) -> tuple[th.Tensor, LstmState]:
        """Run padded sequences (sequences * length, input) through the LSTM in one call.

        An episode starts only at the first position of a sequence, because SB3's recurrent buffers split there. Zeros
        replace the carried state (layers, sequences, hidden) at the start of an episode.
        """
        sequences = lstm_states[0].shape[1]
        inputs = features.reshape(sequences, -1, lstm.input_size).swapaxes(0, 1)  # (length, sequences, input)
        starts = episode_starts.reshape(sequences, -1)
        if starts.shape[1] > 1 and bool(starts[:, 1:].any()):
            raise ValueError("an episode starts inside a sequence; split sequences where episode_starts is 1")
        keep = (1.0 - starts[:, 0].float()).reshape(1, sequences, 1)
        outputs, (hidden, cell) = lstm(inputs, (lstm_states[0] * keep, lstm_states[1] * keep))
        return outputs.swapaxes(0, 1).flatten(0, 1), (hidden, cell)

    def _latent(
        self, obs: PyTorchObs, lstm_states: LstmState, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, LstmState]:
        features = self.extract_features(obs)
        outputs, lstm_states = self._process_sequence(features, lstm_states, episode_starts, self.lstm_actor)
        return self.latent_norm(outputs), lstm_states

    def _distribution(self, latent: th.Tensor, obs: PyTorchObs) -> FactoredDistribution:
        return FactoredDistribution(self.tables, self.action_net(latent), obs["action_mask"], obs["op_slot_mask"])

    def decide(
        self, obs: PyTorchObs, lstm_states: RNNStates, episode_starts: th.Tensor, deterministic: bool = False
    ) -> tuple[BatchDecision, RNNStates]:
        """Choose actions for B environments; return them with values and log-probabilities, and the next states."""
        latent, states = self._latent(obs, lstm_states.pi, episode_starts)
        distribution = self._distribution(latent, obs)
        actions = distribution.get_actions(deterministic)
        op_values = self.value_net(latent)
        decision = BatchDecision(
            actions=actions,
            op_values=op_values.gather(1, actions[:, Head.OP :]).squeeze(1),
            state_values=expected_value(op_values, distribution.op_probs),
            head_log_probs=distribution.evaluate(actions).log_probs,
        )
        return decision, RNNStates(states, states)

    def evaluate_heads(
        self, obs: PyTorchObs, actions: th.Tensor, lstm_states: RNNStates, episode_starts: th.Tensor
    ) -> Evaluation:
        """Evaluate stored actions (B, heads), B = sequences * length, under the current parameters."""
        actions = actions.long()
        latent, _ = self._latent(obs, lstm_states.pi, episode_starts)
        distribution = self._distribution(latent, obs)
        heads = distribution.evaluate(actions)
        op_values = self.value_net(latent)
        return Evaluation(
            op_values=op_values.gather(1, actions[:, Head.OP :]).squeeze(1),
            state_values=expected_value(op_values, distribution.op_probs),
            op_probs=distribution.op_probs,
            heads=heads,
        )

    def op_values(
        self, obs: PyTorchObs, lstm_states: LstmState, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """Return Q(s, op) and pi(op|s) of every op, (B, ops) each."""
        latent, _ = self._latent(obs, lstm_states, episode_starts)
        return self.value_net(latent), self._distribution(latent, obs).op_probs

    def forward(
        self, obs: PyTorchObs, lstm_states: RNNStates, episode_starts: th.Tensor, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """Return actions (B, heads), V(s) (B, 1), joint log-probabilities (B,), and the next LSTM states."""
        decision, states = self.decide(obs, lstm_states, episode_starts, deterministic)
        return decision.actions, decision.state_values.unsqueeze(1), decision.head_log_probs.sum(dim=1), states

    def get_distribution(
        self, obs: PyTorchObs, lstm_states: LstmState, episode_starts: th.Tensor
    ) -> tuple[FactoredDistribution, LstmState]:
        """Return the action distribution and the next LSTM states."""
        latent, states = self._latent(obs, lstm_states, episode_starts)
        return self._distribution(latent, obs), states

    def predict(
        self,
        observation: Mapping[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,  # noqa: ARG002
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions (N, 8), or (8,) for an unbatched observation, and the LSTM states.

        ``action_masks`` is ignored, because the observation has the masks. The evaluation of sb3-contrib passes it.

        Raises:
            ValueError: the observation is malformed or of another network, or ``state`` or ``episode_start`` belongs to
                another number of environments.
        """
        batch = ObservationBatch.of(observation)
        if batch.num_slots != self.tables.num_slots:
            raise ValueError(
                f"the observation has {batch.num_slots} slots; expected {self.tables.num_slots}, as in training: use a "
                "task with the same host"
            )
        layers, _, hidden = self.lstm_hidden_state_shape
        if state is not None:
            check_state(state, (np.empty((layers, batch.num_envs, hidden)),) * 2, batch.num_envs)
        starts = starting_rows(episode_start, True, batch.num_envs)
        arrays = {key: np.asarray(observation[key]) for key in self.observation_space.spaces}
        return super().predict(arrays, state, starts, deterministic)

    def predict_values(self, obs: PyTorchObs, lstm_states: LstmState, episode_starts: th.Tensor) -> th.Tensor:
        """Return V(s) = sum over ops of pi(op|s) Q(s, op), (B, 1)."""
        return expected_value(*self.op_values(obs, lstm_states, episode_starts)).unsqueeze(1)

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor, lstm_states: RNNStates, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return V(s) (B, 1), the joint log-probability (B,) and the summed normalised entropy given the op (B,)."""
        evaluation = self.evaluate_heads(obs, actions, lstm_states, episode_starts)
        heads = evaluation.heads
        return evaluation.state_values.unsqueeze(1), heads.log_probs.sum(dim=1), heads.entropies.sum(dim=1)


def check_policy(policy: object) -> type[FactoredLstmPolicy]:
    """Return a policy class of ``FactoredRecurrentPPO``; ``UnknownPolicyError`` for anything else."""
    if isinstance(policy, type) and issubclass(policy, FactoredLstmPolicy):
        return policy
    given = policy.__name__ if isinstance(policy, type) else shown(policy)
    raise UnknownPolicyError(
        f"`policy` is {given}; expected 'FactoredLstmPolicy', or a subclass of esper_agent.FactoredLstmPolicy"
    )

"""Parts of the policy network: observation encoder, action heads, op-conditioned critic, initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch as th
from esper_env.rules import NO_BLUEPRINT, NUM_OPS, Head
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

#: Gains of the orthogonal initialisation.
HIDDEN_GAIN = math.sqrt(2.0)
POLICY_GAIN = 0.01
VALUE_GAIN = 0.1
EMBEDDING_STD = 0.02


class ObservationEncoder(BaseFeaturesExtractor):
    """``features`` and one embedding per slot's ``blueprint`` -> Linear -> LayerNorm -> ReLU, (B, features_dim).

    The distribution reads the masks of the observation; the encoder ignores them.
    """

    def __init__(self, observation_space: spaces.Dict, features_dim: int, embedding_dim: int) -> None:
        super().__init__(observation_space, features_dim)
        num_features = spaces.flatdim(observation_space["features"])
        num_slots = spaces.flatdim(observation_space["blueprints"])
        self.embedding = nn.Embedding(NO_BLUEPRINT + 1, embedding_dim)
        self.linear = nn.Linear(num_features + num_slots * embedding_dim, features_dim)
        self.norm = nn.LayerNorm(features_dim)

    @override
    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        # .long() returns the stored int64 indices themselves, without a copy.
        embedded = self.embedding(observations["blueprints"].long()).flatten(1)  # (B, S * embedding_dim)
        encoded = self.linear(th.cat([observations["features"].float(), embedded], dim=1))
        return F.relu(self.norm(encoded))


class ActionHeads(nn.Module):
    """One small network per head; the blueprint head, which has the most values, has one more hidden layer."""

    def __init__(self, latent_dim: int, hidden_dim: int, nvec: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for head, size in enumerate(nvec):
            deeper = [nn.Linear(latent_dim, latent_dim), nn.ReLU()] if head == Head.BLUEPRINT else []
            self.heads.append(
                nn.Sequential(*deeper, nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, size))
            )

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """Map a latent (B, latent_dim) to flat logits (B, sum(nvec))."""
        return th.cat([head(latent) for head in self.heads], dim=1)

    def output_layer(self, head: Head) -> nn.Linear:
        """Return the last layer of one head."""
        return self.heads[head][-1]  # type: ignore[index]


class OpCritic(nn.Module):
    """Q(s, op) on [latent, one-hot(op)], for all ops at once."""

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.hidden = nn.Linear(latent_dim + NUM_OPS, hidden_dim)
        self.output = nn.Linear(hidden_dim, 1)

    def forward(self, latent: th.Tensor) -> th.Tensor:
        """Map a latent (B, latent_dim) to values (B, ops).

        A one-hot input selects one column of the first layer, so the layer reads the latent once and each op adds its
        column.
        """
        weight = self.hidden.weight
        from_latent = F.linear(latent, weight[:, : self.latent_dim], self.hidden.bias)  # (B, hidden)
        from_op = weight[:, self.latent_dim :].T  # (ops, hidden)
        hidden = F.relu(from_latent.unsqueeze(1) + from_op)  # (B, ops, hidden)
        return self.output(hidden).squeeze(2)


def initialise_linear(module: nn.Module, gain: float = HIDDEN_GAIN) -> None:
    """Initialise every linear layer below ``module`` with orthogonal weights and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)


def initialise_lstm(lstm: nn.LSTM) -> None:
    """Initialise orthogonal weights of gain 1, zero biases, and forget-gate biases of 1, which preserve memory."""
    for name, parameter in lstm.named_parameters():
        if name.startswith("weight"):
            nn.init.orthogonal_(parameter)
        else:
            nn.init.zeros_(parameter)
    forget = slice(lstm.hidden_size, 2 * lstm.hidden_size)  # PyTorch's gate order: input, forget, cell, output
    with th.no_grad():
        for layer in range(lstm.num_layers):
            getattr(lstm, f"bias_ih_l{layer}")[forget] = 1.0

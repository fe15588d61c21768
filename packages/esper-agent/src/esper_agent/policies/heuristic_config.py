"""Numbers of the heuristic, and the order in which it plants blueprints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from esper_env.checks import NON_NEGATIVE, POSITIVE, Interval, check
from esper_env.rules import HISTORY, AlphaSpeed, Style, Tempo

#: Default rotation by topology; on other hosts it is every blueprint of the topology.
ROTATIONS = {
    "cnn": ("conv_light", "conv_heavy", "attention", "norm", "depthwise"),
    "transformer": ("mlp", "attention", "mlp_small", "lora_large", "norm"),
}


@dataclass(frozen=True)
class HeuristicConfig:
    """Settings of the heuristic. Epochs are environment steps, points are accuracy points (0..100).

    Each prune adds ``prune_penalty`` to its blueprint, the sum decays by ``penalty_decay`` an epoch, and a blueprint
    is skipped while it stands at ``penalty_threshold`` or above. Nothing is planted for ``epochs_after_prune`` epochs,
    so a fast decay would make the rule void; such a configuration is rejected.
    """

    rotation: tuple[str | int, ...] | None = None  # names or values; None: the rotation of the topology
    style: Style = Style.SIGMOID_ADD
    tempo: Tempo = Tempo.STANDARD
    prune_speed: AlphaSpeed = AlphaSpeed.INSTANT

    wait_for_stability: bool = True  # plant only once the host has stabilised
    min_epoch: Annotated[int, NON_NEGATIVE] = 5  # earliest epoch to plant in
    min_plateau: Annotated[int, NON_NEGATIVE] = 3  # epochs without progress before planting
    epochs_after_prune: Annotated[int, NON_NEGATIVE] = 5  # epochs without planting after a prune

    prune_penalty: float = 2.0
    penalty_decay: Annotated[float, Interval(0, 1, "(]")] = 0.95  # factor per epoch
    penalty_threshold: float = 1.0

    patience: Annotated[int, NON_NEGATIVE] = 5  # epochs in TRAINING or BLENDING before a falling accuracy counts
    max_loss: float = 2.0  # points the accuracy may fall by
    smoothing: Annotated[int, Interval(1, HISTORY)] = 3  # epochs the accuracy is averaged over, of those observed

    holding_epochs: Annotated[int, POSITIVE] = 3  # contributions averaged before a HOLDING seed is judged
    min_contribution: float = 0.5  # points that make a seed worth keeping
    dependence: float = 0.1  # points beyond which a network that did not improve depends on the seed
    commit_epochs: Annotated[int, NON_NEGATIVE] = 3  # epochs before the horizon in which seeds are committed early

    def __post_init__(self) -> None:
        check(self)
        left = self.prune_penalty * self.penalty_decay**self.epochs_after_prune
        if left < self.penalty_threshold:
            raise ValueError(
                f"`prune_penalty` is {self.prune_penalty} and decays to {left:.3g} in the {self.epochs_after_prune} "
                f"epochs without planting; expected at least `penalty_threshold`, {self.penalty_threshold}: raise "
                "prune_penalty or penalty_decay, or lower penalty_threshold"
            )

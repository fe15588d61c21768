"""Numbers of the heuristic, and the order in which it plants blueprints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from esper_env.checks import is_finite, is_whole
from esper_env.rules.heads import AlphaSpeed, Style, Tempo
from esper_env.rules.observation import HISTORY
from esper_env.seeds import BlueprintEntry, blueprint_entry, offered_blueprints

#: Default rotation by topology; on other hosts it is every blueprint of the topology.
ROTATIONS = {
    "cnn": ("conv_light", "conv_heavy", "attention", "norm", "depthwise"),
    "transformer": ("mlp", "attention", "mlp_small", "lora_large", "norm"),
}

_NUMBERS = (
    "prune_penalty",
    "penalty_decay",
    "penalty_threshold",
    "max_loss",
    "min_contribution",
    "dependence",
)
_NAMES: dict[str, type[IntEnum]] = {"style": Style, "tempo": Tempo, "prune_speed": AlphaSpeed}


@dataclass(frozen=True)
class HeuristicConfig:
    """Numbers of the heuristic. Epochs are environment steps, and points are accuracy points (0..100 scale).

    Each prune adds ``prune_penalty`` to its blueprint's penalty, which decays by ``penalty_decay`` per epoch. A
    blueprint is skipped while its penalty is at least ``penalty_threshold``. Nothing is planted for
    ``epochs_after_prune`` epochs, so a decay that is too fast for the rule to apply is rejected.

    Raises:
        ValueError: a number is out of range.
    """

    rotation: tuple[str | int, ...] | None = None  # names or values; None: that of the topology
    style: Style = Style.SIGMOID_ADD
    tempo: Tempo = Tempo.STANDARD
    prune_speed: AlphaSpeed = AlphaSpeed.INSTANT

    wait_for_stability: bool = True  # plant only after the host has stabilised
    min_epoch: int = 5  # earliest epoch to plant in
    min_plateau: int = 3  # epochs without progress before planting
    epochs_after_prune: int = 5  # epochs without planting after a prune

    prune_penalty: float = 2.0
    penalty_decay: float = 0.95  # factor per epoch
    penalty_threshold: float = 1.0

    patience: int = 5  # epochs in TRAINING or BLENDING before a falling accuracy counts
    max_loss: float = 2.0  # points the accuracy may fall by
    smoothing: int = 3  # epochs the accuracy is averaged over

    holding_epochs: int = 3  # contributions averaged before a HOLDING seed is judged
    min_contribution: float = 0.5  # points above which a seed is kept
    dependence: float = 0.1  # points above which a network that did not improve depends on the seed
    commit_epochs: int = 3  # this close to the horizon, seeds are judged on the measurements so far

    def __post_init__(self) -> None:
        least = {
            "min_epoch": 0,
            "min_plateau": 0,
            "epochs_after_prune": 0,
            "patience": 0,
            "smoothing": 1,
            "holding_epochs": 1,
            "commit_epochs": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if not is_whole(value, bound):
                raise ValueError(f"heuristic setting {name} is {value!r}; expected an integer of at least {bound}")
        for name in _NUMBERS:
            if not is_finite(getattr(self, name)):
                raise ValueError(f"heuristic setting {name} is {getattr(self, name)!r}; expected a finite number")
        for name, kind in _NAMES.items():
            value = getattr(self, name)
            if value not in list(kind):
                known = ", ".join(f"{member.name} {member.value}" for member in kind)
                raise ValueError(f"heuristic setting {name} is {value!r}; expected one of {known}")
        if self.smoothing > HISTORY:
            raise ValueError(
                f"heuristic setting smoothing is {self.smoothing}; expected at most {HISTORY}, the epochs observed"
            )
        if not 0.0 < self.penalty_decay <= 1.0:
            raise ValueError(f"heuristic setting penalty_decay is {self.penalty_decay}; expected a factor in (0, 1]")
        left = self.prune_penalty * self.penalty_decay**self.epochs_after_prune
        if left < self.penalty_threshold:
            raise ValueError(
                f"a penalty of {self.prune_penalty} has decayed to {left:.3g} when planting is allowed again, "
                f"{self.epochs_after_prune} epochs later, and never reaches the threshold of {self.penalty_threshold}; "
                "raise prune_penalty or penalty_decay, or lower penalty_threshold"
            )


def resolve_rotation(rotation: Sequence[str | int] | None, topology: str) -> tuple[BlueprintEntry, ...]:
    """Return the blueprints of a rotation, or of the topology's default one.

    Raises:
        ValueError: the rotation is empty, names a blueprint twice, or one that the topology does not have.
    """
    if rotation is None:
        rotation = ROTATIONS.get(topology) or [entry.name for entry in offered_blueprints(topology)]
    entries = tuple(blueprint_entry(blueprint, topology) for blueprint in rotation)
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the rotation is {names}; expected at least one blueprint, none twice")
    return entries

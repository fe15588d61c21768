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
    """Every number of the heuristic. Epochs are environment steps, points are accuracy points on the 0..100 scale.

    Each prune adds ``prune_penalty`` to its blueprint, the sum decays by ``penalty_decay`` an epoch, and a blueprint
    is skipped while it stands at ``penalty_threshold`` or above. Because nothing is planted for
    ``epochs_after_prune`` epochs, a fast decay would make the rule empty; such a configuration is refused.
    """

    rotation: tuple[str | int, ...] | None = None  # names or values; None: the rotation of the topology
    style: Style = Style.SIGMOID_ADD
    tempo: Tempo = Tempo.STANDARD
    prune_speed: AlphaSpeed = AlphaSpeed.INSTANT

    wait_for_stability: bool = True  # plant only once the host has stabilised
    min_epoch: int = 5  # earliest epoch to plant in
    min_plateau: int = 3  # epochs without progress before planting
    epochs_after_prune: int = 5  # no planting for so long after a prune

    prune_penalty: float = 2.0
    penalty_decay: float = 0.95  # factor per epoch
    penalty_threshold: float = 1.0

    patience: int = 5  # epochs in TRAINING or BLENDING before a falling accuracy counts
    max_loss: float = 2.0  # points the accuracy may fall by
    smoothing: int = 3  # epochs the accuracy is averaged over

    holding_epochs: int = 3  # contributions averaged before a HOLDING seed is judged
    min_contribution: float = 0.5  # points that make a seed worth keeping
    dependence: float = 0.1  # points beyond which a network that got no better depends on the seed
    commit_epochs: int = 3  # this close to the horizon seeds are committed on what is known

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
                raise ValueError(f"heuristic setting {name} is {value!r}; expected a whole number of at least {bound}")
        for name in _NUMBERS:
            if not is_finite(getattr(self, name)):
                raise ValueError(f"heuristic setting {name} is {getattr(self, name)!r}; expected a finite number")
        for name, kind in _NAMES.items():
            value = getattr(self, name)
            if value not in list(kind):
                known = ", ".join(f"{member.name} {member.value}" for member in kind)
                raise ValueError(f"heuristic setting {name} is {value!r}; expected one of {known}")
        if self.smoothing > HISTORY:
            raise ValueError(f"heuristic setting smoothing is {self.smoothing}; the observation shows {HISTORY} epochs")
        if not 0.0 < self.penalty_decay <= 1.0:
            raise ValueError(f"heuristic setting penalty_decay is {self.penalty_decay}; expected a factor in (0, 1]")
        left = self.prune_penalty * self.penalty_decay**self.epochs_after_prune
        if left < self.penalty_threshold:
            raise ValueError(
                f"a prune's penalty of {self.prune_penalty} has decayed to {left:.3g} when planting is allowed again, "
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

"""Episodes that were paid for growth that came to nothing, and seeds that a network is held to ransom by.

Two signatures, both read from the infos of a ``VecEnv``'s steps:

``overpaid``, at an episode's end: what was paid on the way for growth - the positive parts of the reward components
``contribution``, ``scaffold`` and ``stages``, in points of accuracy - is more than ``hacking_ratio`` times what the
committed seeds are worth there, the sum of their Shapley values, and more than ``hacking_points``. The reward takes
such payments back, so this is no proof of a profit; it shows a policy that goes after them. Germinating and pruning
in a circle, moving alpha up and down, waiting in HOLDING and fossilizing at a peak all leave it. A seed that does
nothing while the host grows by itself does not: nobody is paid for the host's progress, and the stages of one such
seed come to less than ``hacking_points``. Nor does a useless seed that the network has come to lean on: its Shapley
value is as high as that of a useful one, see ``reward.py`` of the environment. Only the modes that pay for growth,
``contribution`` and any with a ``potential_weight``, can overpay.

``ransomware``, while an episode runs: a seed has been in HOLDING or FOSSILIZED for ``ransom_epochs`` epochs and
contributes more than ``ransom_points``, yet accuracy is more than ``ransom_loss`` points lower than it was on average
over the three epochs before it was planted. Both are medians over the last ``ransom_epochs``: a validation accuracy
may drop by 20 points for a single epoch. What other seeds took with them when they were pruned meanwhile, the most that
each was measured to contribute, is not held against it. Reported once per seed, in every reward mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from esper_env.rules.stages import HAS_SEED, Stage

from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.payloads import RewardHackingSuspected

#: Reward components that are paid for growth before it is known what it comes to.
GROWTH = ("contribution", "scaffold", "stages")
#: Epochs that the accuracy before a planting is averaged over.
SMOOTHING = 3
_KEPT = (Stage.HOLDING, Stage.FOSSILIZED)


class Suspicion(NamedTuple):
    """A suspicion and where it arose."""

    payload: RewardHackingSuspected
    env: int
    episode: int  # of that environment, counted from 0
    epoch: int
    slot: int | None  # None for a whole episode


@dataclass
class _Seed:
    """A seed as it has been so far."""

    reference: float  # mean accuracy before it was planted, less what other seeds have taken with them since
    accuracies: list[float] = field(
        default_factory=list
    )  # in HOLDING or FOSSILIZED, of the last epochs without a break
    contributions: list[float] = field(default_factory=list)  # measured there
    most: float = 0.0  # that it was measured to contribute, in any stage
    reported: bool = False


@dataclass
class _Episode:
    """One environment's episode as it has been so far."""

    number: int = 0
    epoch: int = 0
    paid: float = 0.0  # points
    accuracies: list[float] = field(default_factory=list)  # the last ones
    seeds: dict[int, _Seed] = field(default_factory=dict)  # by slot

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies)) if self.accuracies else math.nan


class RewardHackingDetector:
    """Watches the episodes of ``num_envs`` environments; ``scale`` is what 100 points are worth in their reward."""

    def __init__(self, settings: AnomalySettings, num_envs: int, scale: float = 1.0) -> None:
        if num_envs < 1 or not scale > 0:
            raise ValueError(f"num_envs is {num_envs} and scale {scale}; both must be positive")
        self.settings = settings.checked()
        self.num_envs, self.scale = num_envs, scale
        self._episodes = [_Episode() for _ in range(num_envs)]

    def observe(self, infos: Sequence[Mapping[str, Any]], dones: Sequence[Any]) -> list[Suspicion]:
        """Take in one step of every environment, with the infos of final steps where episodes ended.

        Raises ``ValueError`` for another number of environments than it was made for.
        """
        if len(infos) != self.num_envs or len(dones) != self.num_envs:
            raise ValueError(f"{len(infos)} infos and {len(dones)} dones; expected {self.num_envs} of each")
        found = []
        for env, (info, done) in enumerate(zip(infos, dones, strict=True)):
            episode = self._episodes[env]
            self._take_in(episode, info)
            where = (env, episode.number, episode.epoch)
            found += [Suspicion(payload, *where, slot) for slot, payload in self._ransoms(episode)]
            if done:
                payload = self._overpaid(episode, info)
                if payload is not None:
                    found.append(Suspicion(payload, *where, None))
                self._episodes[env] = _Episode(number=episode.number + 1)
        return found

    def get_state(self) -> list[dict[str, Any]]:
        """What :meth:`set_state` goes on from; JSON types."""
        return [asdict(episode) | {"seeds": _seed_list(episode)} for episode in self._episodes]

    def set_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from :meth:`get_state`; one of another number of environments is a ``ValueError``."""
        if len(state) != self.num_envs:
            raise ValueError(f"the state is of {len(state)} environments; this detector watches {self.num_envs}")
        self._episodes = [
            _Episode(**{**part, "seeds": {int(slot): _Seed(**seed) for slot, seed in part["seeds"]}}) for part in state
        ]

    def _take_in(self, episode: _Episode, info: Mapping[str, Any]) -> None:
        parts = info["reward_components"]
        episode.paid += sum(max(float(parts.get(name, 0.0)), 0.0) for name in GROWTH) * 100.0 / self.scale
        before, now = episode.accuracy, float(info["val_accuracy"])
        episode.accuracies = [*episode.accuracies, now][-SMOOTHING:]
        episode.epoch += 1
        stages = np.asarray(info["slot_stage"]).tolist()
        for slot, stage in enumerate(stages):
            if not HAS_SEED[stage]:
                continue
            # One planted in the very first step has only the accuracy of that step to be compared with.
            seed = episode.seeds.setdefault(slot, _Seed(reference=now if math.isnan(before) else before))
            kept = stage in _KEPT
            seed.accuracies = self._latest(seed.accuracies, now) if kept else []
            measured, contribution = bool(info["contribution_measured"][slot]), float(info["contribution"][slot])
            seed.contributions = self._latest(seed.contributions, contribution) if kept and measured else []
            seed.most = max(seed.most, contribution) if measured else seed.most
        for slot in [slot for slot in episode.seeds if not HAS_SEED[stages[slot]]]:
            self._take_out(episode, slot)

    def _take_out(self, episode: _Episode, slot: int) -> None:
        gone = episode.seeds.pop(slot)
        for seed in episode.seeds.values():
            seed.reference -= gone.most
        if gone.most > 0:  # the accuracies with it are no measure of what is planted from now on
            episode.accuracies = episode.accuracies[-1:]

    def _latest(self, values: list[float], value: float) -> list[float]:
        return [*values, value][-self.settings.ransom_epochs :]

    def _ransoms(self, episode: _Episode) -> Iterator[tuple[int, RewardHackingSuspected]]:
        settings = self.settings
        for slot, seed in episode.seeds.items():
            # A contribution is measured in every epoch at alpha 1; one that is missing starts the count afresh.
            if seed.reported or len(seed.contributions) < settings.ransom_epochs:
                continue
            contribution = float(np.median(seed.contributions))
            change = float(np.median(seed.accuracies)) - seed.reference
            if contribution > settings.ransom_points and change < -settings.ransom_loss:
                seed.reported = True
                yield (
                    slot,
                    RewardHackingSuspected(signature="ransomware", paid=contribution, improvement=change, ratio=None),
                )

    def _overpaid(self, episode: _Episode, info: Mapping[str, Any]) -> RewardHackingSuspected | None:
        if "shapley" not in info:  # cut before the horizon: what the seeds are worth was not measured
            return None
        worth = max(float(np.sum(info["shapley"])), 0.0)
        most = max(self.settings.hacking_ratio * worth, self.settings.hacking_points)
        if episode.paid <= most:
            return None
        ratio = episode.paid / worth if worth > 0 else None
        return RewardHackingSuspected(signature="overpaid", paid=episode.paid, improvement=worth, ratio=ratio)


def _seed_list(episode: _Episode) -> list[list[Any]]:
    """JSON has no integer keys."""
    return [[slot, asdict(seed)] for slot, seed in episode.seeds.items()]

"""Detector of reward hacking, which reads the infos of a ``VecEnv``'s steps and reports two signatures.

``overpaid``, at the end of an episode: the rewards for growth are more than ``hacking_ratio`` times the worth of the
committed seeds, and more than ``hacking_points``. The rewards for growth are the positive parts of the reward
components ``contribution``, ``scaffold`` and ``stages``, in points of accuracy. The worth is the sum of the seeds'
Shapley values. The reward function takes such rewards back later, so the signature does not prove a profit. It shows a
policy that pursues them: by germinating and pruning in a circle, by moving alpha up and down, by waiting in HOLDING or
by fossilizing at a peak. The signature does not show useless seeds in two cases. A single idle seed earns less than
``hacking_points``, because the progress of the host is not rewarded. A seed that the network depends on has the same
Shapley value as a useful one, see ``reward.py`` of the environment. Only reward modes that reward
growth can overpay: ``contribution``, and any mode with a ``potential_weight``.

``ransomware``, during an episode: a seed has been in HOLDING or FOSSILIZED for ``ransom_epochs`` epochs and contributes
more than ``ransom_points``, but the accuracy is more than ``ransom_loss`` points below its mean over the three epochs
before the seed was planted. Accuracy and contribution are medians over the last ``ransom_epochs``, because a validation
accuracy can drop by 20 points for a single epoch. The largest measured contributions of seeds that were pruned since
then do not count as a loss. The detector reports a seed once, in every reward mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from esper_env.rules import HAS_SEED, Stage

from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.payloads import RewardHackingSuspected

#: Reward components for growth, paid before its worth is known.
GROWTH = ("contribution", "scaffold", "stages")
#: Number of epochs for the mean accuracy before a seed is planted.
SMOOTHING = 3
_KEPT = (Stage.HOLDING, Stage.FOSSILIZED)


class Suspicion(NamedTuple):
    """A suspicion and its place."""

    payload: RewardHackingSuspected
    env: int
    episode: int  # of that environment, counted from 0
    epoch: int
    slot: int | None  # None for a whole episode


@dataclass
class _Seed:
    """History of a seed."""

    reference: float  # mean accuracy before it was planted, minus contributions of seeds pruned since
    accuracies: list[float] = field(default_factory=list)  # of the last consecutive epochs in HOLDING or FOSSILIZED
    contributions: list[float] = field(default_factory=list)  # of the same epochs
    most: float = 0.0  # largest measured contribution, in any stage
    reported: bool = False


@dataclass
class _Episode:
    """History of an environment's episode."""

    number: int = 0
    epoch: int = 0
    paid: float = 0.0  # points
    accuracies: list[float] = field(default_factory=list)  # of the last epochs
    seeds: dict[int, _Seed] = field(default_factory=dict)  # by slot


class RewardHackingDetector:
    """Watches the episodes of several environments; ``scale`` is the reward for 100 points of accuracy."""

    def __init__(self, settings: AnomalySettings, scale: float = 1.0) -> None:
        self.settings, self.scale = settings, scale
        self._episodes: list[_Episode] = []  # of each environment

    def observe(self, infos: Sequence[Mapping[str, Any]], dones: Sequence[Any]) -> list[Suspicion]:
        """Add one step of every environment and return new suspicions; reset if the number of environments changes.

        ``infos`` belong to the final step where ``dones`` is True.
        """
        if len(infos) != len(self._episodes):
            self._episodes = [_Episode() for _ in infos]
        found = []
        for env, (info, done) in enumerate(zip(infos, dones, strict=True)):
            episode = self._episodes[env]
            self._add(episode, info)
            where = (env, episode.number, episode.epoch)
            found += [Suspicion(payload, *where, slot) for slot, payload in self._ransoms(episode)]
            if done:
                payload = self._overpaid(episode, info)
                if payload is not None:
                    found.append(Suspicion(payload, *where, None))
                self._episodes[env] = _Episode(number=episode.number + 1)
        return found

    def get_state(self) -> list[dict[str, Any]]:
        """Return the state for ``set_state``, of JSON types."""
        states = [asdict(episode) for episode in self._episodes]
        return [state | {"seeds": [[*item] for item in state["seeds"].items()]} for state in states]  # no integer keys

    def set_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Restore a state of ``get_state``."""
        self._episodes = [
            _Episode(**{**part, "seeds": {int(slot): _Seed(**seed) for slot, seed in part["seeds"]}}) for part in state
        ]

    def _add(self, episode: _Episode, info: Mapping[str, Any]) -> None:
        paid = (max(float(info.get(f"reward_{name}", 0.0)), 0.0) for name in GROWTH)
        episode.paid += sum(paid) * 100.0 / self.scale
        now = float(info["val_accuracy"])
        # A seed that is planted in the first step is compared with the accuracy of that step.
        before = float(np.mean(episode.accuracies)) if episode.accuracies else now
        episode.accuracies = [*episode.accuracies, now][-SMOOTHING:]
        episode.epoch += 1
        stages = np.asarray(info["slot_stage"]).tolist()
        for slot, stage in enumerate(stages):
            if not HAS_SEED[stage]:
                continue
            seed = episode.seeds.setdefault(slot, _Seed(reference=before))
            kept = stage in _KEPT
            seed.accuracies = self._latest(seed.accuracies, now) if kept else []
            measured, contribution = bool(info["contribution_measured"][slot]), float(info["contribution"][slot])
            seed.contributions = self._latest(seed.contributions, contribution) if kept and measured else []
            seed.most = max(seed.most, contribution) if measured else seed.most
        for slot in [slot for slot in episode.seeds if not HAS_SEED[stages[slot]]]:
            self._remove(episode, slot)

    def _remove(self, episode: _Episode, slot: int) -> None:
        gone = episode.seeds.pop(slot)
        for seed in episode.seeds.values():
            seed.reference -= gone.most
        if gone.most > 0:  # accuracies with it do not count for later seeds
            episode.accuracies = episode.accuracies[-1:]

    def _latest(self, values: list[float], value: float) -> list[float]:
        return [*values, value][-self.settings.ransom_epochs :]

    def _ransoms(self, episode: _Episode) -> Iterator[tuple[int, RewardHackingSuspected]]:
        settings = self.settings
        for slot, seed in episode.seeds.items():
            # A seed at alpha 1 is measured in every epoch; a missing measurement restarts the count.
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
        if not info["committed_measured"]:  # truncated before the horizon: the seeds' worth is unknown
            return None
        worth = max(float(np.sum(info["shapley"])), 0.0)
        most = max(self.settings.hacking_ratio * worth, self.settings.hacking_points)
        if episode.paid <= most:
            return None
        ratio = episode.paid / worth if worth > 0 else None
        return RewardHackingSuspected(signature="overpaid", paid=episode.paid, improvement=worth, ratio=ratio)

"""Headroom of the Digits task: growth helps, the slot matters, and the host's signals occur.

All numbers are means over eight episodes, so that no single initialisation decides.
"""

import gymnasium
import numpy as np
import pytest

EPISODES, HORIZON = 8, 40

pytestmark = [pytest.mark.slow, pytest.mark.numeric]


def always_wait(*topologies):
    """Accuracies (41, N), signals and test accuracies of waiting networks, eight of each topology."""
    count = EPISODES * len(topologies)
    envs = gymnasium.make_vec("Esper-Digits-v0", num_envs=count, autoreset_mode="Disabled")
    _, infos = envs.reset(seed=0)
    share = np.arange(count) // EPISODES
    for index, topology in enumerate(topologies):
        if topology:
            envs.reset(options={"topology": topology, "reset_mask": share == index})
    accuracies, ready = [infos["val_accuracy"]], []
    for _ in range(HORIZON):
        *_, infos = envs.step(np.zeros((count, 8), dtype=np.int64))
        accuracies.append(infos["val_accuracy"])
        signals = envs.unwrapped._growth.signals
        ready.append(signals.host_stabilised & (signals.plateau_epochs >= 3))
    envs.close()
    return np.array(accuracies), np.array(ready), infos["test_accuracy"]


@pytest.fixture(scope="module")
def alone():
    return always_wait({})


def late(accuracies):
    """Mean of the last five epochs, by episode."""
    return accuracies[-5:].mean(axis=0)


def test_host_stabilises_and_plateaus_in_most_episodes(alone):
    _, ready, _ = alone
    assert ready.any(axis=0).mean() > 0.75


def test_late_accuracy_has_little_noise(alone):
    accuracies, _, _ = alone
    assert np.diff(accuracies[-13:], axis=0).std() < 3.5


def test_host_learns_something_and_leaves_headroom(alone):
    accuracies, _, test_accuracy = alone
    assert 28.0 <= late(accuracies).mean() <= 45.0
    assert abs(late(accuracies).mean() - test_accuracy.mean()) < 6.0


def test_growth_helps_depending_on_the_slot(alone):
    host = late(alone[0]).mean()
    grown = late(always_wait({"r0c0": "conv_light"}, {"r0c2": "conv_light"})[0])
    first, last = grown[:EPISODES].mean(), grown[EPISODES:].mean()
    assert first > 65.0
    assert host + 5.0 < last < first - 10.0

"""The digits task leaves room to grow, the place matters, and the signals say when the host has had its time.

All numbers are means over 16 episodes, so that one unlucky initialisation decides nothing.
"""

import gymnasium
import numpy as np
import pytest

EPISODES, HORIZON = 16, 40

pytestmark = [pytest.mark.slow, pytest.mark.numeric]


def always_wait(topology):
    """Accuracies (41, 16) of the network planted from the start, and signals per step."""
    envs = gymnasium.make_vec("Esper-Digits-v0", num_envs=EPISODES, autoreset_mode="Disabled")
    _, infos = envs.reset(seed=0, options={"topology": topology})
    accuracies, ready = [infos["val_accuracy"]], []
    for _ in range(HORIZON):
        *_, infos = envs.step(np.zeros((EPISODES, 8), dtype=np.int64))
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


def test_the_host_alone_stabilises_and_plateaus_in_most_episodes(alone):
    _, ready, _ = alone
    assert ready.any(axis=0).mean() > 0.75


def test_late_accuracy_is_not_drowned_in_noise(alone):
    accuracies, _, _ = alone
    assert np.diff(accuracies[-13:], axis=0).std() < 3.5


def test_the_host_alone_has_learned_something_and_not_enough(alone):
    accuracies, _, test_accuracy = alone
    assert 28.0 <= late(accuracies).mean() <= 45.0
    assert abs(late(accuracies).mean() - test_accuracy.mean()) < 6.0


def test_growing_helps_and_it_matters_where(alone):
    host = late(alone[0]).mean()
    first, last = (late(always_wait({slot: "conv_light"})[0]).mean() for slot in ("r0c0", "r0c2"))
    assert first > 65.0
    assert host + 5.0 < last < first - 10.0

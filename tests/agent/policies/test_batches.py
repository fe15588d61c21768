"""The policies' estimates of the gates agree with the gates."""

import numpy as np
import pytest
from esper_agent.policies.batches import ready_to_advance, ready_to_fossilize
from esper_env.rules.gates import Gate, evaluate, gate_config
from esper_env.rules.observation import ObservationBuilder, ObservationView
from esper_env.rules.signals import SignalTracker
from gate_cases import FLIPS, JUST_ENOUGH, slot_with

HORIZON = 60
#: Not observed, or closer to the threshold than float32 can show.
UNOBSERVED = [
    {"gradient_ratio": 0.099},
    {"alpha": np.nextafter(1.0, 0.0)},
    {"contribution": np.nan},
    {"contribution_alpha": 0.99},
]
CASES = [(gate, {}) for gate in (Gate.G1, Gate.G2, Gate.G3, Gate.G5)]
CASES += [(gate, difference) for gate, difference, *_ in FLIPS if difference not in UNOBSERVED]


@pytest.mark.parametrize("gates", ["permissive", "strict"])
@pytest.mark.parametrize(("gate", "difference"), CASES)
def test_estimates_equal_the_gates_as_far_as_the_observation_shows(gates, gate, difference):
    table = slot_with(JUST_ENOUGH[gate] | {"age": 3} | difference)
    signals = SignalTracker(1, 0.5)
    signals.reset(np.ones(1, dtype=bool), np.ones(1), np.full(1, 50.0))
    builder = ObservationBuilder(HORIZON, 100, [0])
    features = builder.features(table, signals.peek(), np.zeros(1), np.ones(1, dtype=bool), np.zeros(1, dtype=int))
    ready = ready_to_fossilize if gate is Gate.G5 else ready_to_advance
    config = gate_config(gates)
    estimate = ready(ObservationView(features, 1, HORIZON), config)
    assert estimate.tolist() == [evaluate(table, np.array([0]), np.array([int(gate)]), config).passed.tolist()]

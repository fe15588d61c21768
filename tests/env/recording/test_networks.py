"""Events of networks that stabilise, break or lose their isolation, and of the machine."""

import gymnasium
import numpy as np
import pytest
import torch
from blueprints import CNN_BLUEPRINTS
from esper_env import growth
from esper_env.devices import memory_gauge
from esper_env.recording.recorder import MEMORY_STEPS
from esper_env.rules.heads import Op
from esper_env.seeds import register_blueprint
from esper_env.telemetry import Detail, memory
from listening import break_host, event_at, heard, listen, payloads
from torch import nn

pytestmark = pytest.mark.numeric


def test_waiting_networks_have_snapshots_and_stabilise_once_per_episode(make_digits_vec, action):
    """Snapshots are taken at the start, and after every five epochs."""
    envs = make_digits_vec(2, horizon=12, host_lr=1e-6)  # the network learns nothing, so the loss is constant
    sink = listen(envs)
    envs.reset(seed=0)
    for _ in range(18):
        envs.step(np.stack([action()] * 2))
    snapshots = heard(envs, sink, "GOVERNOR_SNAPSHOT")
    epochs = [(0, 0), (0, 5), (0, 10), (1, 0), (1, 5)]
    assert sorted(map(event_at, snapshots)) == [(env, *epoch) for env in range(2) for epoch in epochs]
    assert {event.payload.fossilized for event in snapshots} == {()}
    settled = heard(envs, sink, "HOST_STABILIZED")
    assert [(event.env, event.episode) for event in settled] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert len({event.epoch for event in settled}) == 1
    epochs_of = {event_at(event): event.payload for event in heard(envs, sink, "EPOCH_COMPLETED")}
    for event in settled:
        epoch = epochs_of[event_at(event)]
        assert (event.payload.val_loss, event.payload.val_accuracy) == (epoch.val_loss, epoch.val_accuracy)


def test_broken_network_panics_and_is_rolled_back(make_digits_vec, script, action):
    """Its action is rejected and its live seed pruned; its fossil stays. The other environment has no event."""
    envs = make_digits_vec(2, horizon=30)
    sink = listen(envs)
    envs.reset(seed=0)
    wait = action()
    for choice in [*script(1), *script(2)[:4]]:
        envs.step(np.stack([wait, choice]))
    break_host(envs, 1)
    *_, infos = envs.step(np.stack([wait, script(2)[4]]))
    assert infos["rollback"].tolist() == [False, True]
    panic, rollback = heard(envs, sink, "GOVERNOR_PANIC", "GOVERNOR_ROLLBACK")
    for event in (panic, rollback):
        assert (event.env, event.episode, event.epoch) == (1, 0, 14)
        assert (event.payload.reason, event.payload.threshold, event.payload.panics) == ("non-finite", None, 1)
        assert np.isnan(event.payload.loss)
    payload = rollback.payload
    assert (payload.rollbacks, payload.pruned, payload.skipped_op) == (1, ("r0c2",), "ADVANCE")
    kept = [event for event in heard(envs, sink, "GOVERNOR_SNAPSHOT") if event.env == 1 and event.epoch < 14]
    assert payload.snapshot_epoch == kept[-1].epoch
    assert kept[-1].payload.fossilized == ("r0c1",)
    (pruned,) = heard(envs, sink, "SEED_PRUNED")
    assert (pruned.slot, pruned.payload.initiator, pruned.payload.stage) == ("r0c2", "governor", "TRAINING")
    (rejected,) = heard(envs, sink, "COMMAND_REJECTED")
    assert (rejected.epoch, rejected.payload.reason) == (14, "the governor rolled the network back")
    assert panic.id < rollback.id < pruned.id < rejected.id


def test_rollback_past_a_commitment_prunes_the_fossil(make_digits_vec, script):
    envs = make_digits_vec(1, horizon=30)
    sink = listen(envs)
    envs.reset(seed=0)
    for choice in script(0)[:8]:
        envs.step(choice[None])
    governor = envs.unwrapped._growth._governor
    due, governor.snapshots_due = governor.snapshots_due, lambda *_: np.zeros(1, dtype=bool)
    envs.step(script(0)[8][None])
    governor.snapshots_due = due
    break_host(envs, 0)
    envs.step(script(0)[2][None])
    last = heard(envs, sink, "SEED_STAGE_CHANGED")[-1].payload
    assert (last.from_stage, last.to_stage) == ("FOSSILIZED", "PRUNED")
    (pruned,) = payloads(envs, sink, "SEED_PRUNED")
    assert (pruned.stage, pruned.initiator) == ("FOSSILIZED", "governor")


class Clipper(nn.Module):
    """Writes into its input without autograd, but only into large values."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        x.data.clamp_(max=1.0)
        return x * self.scale.view(-1, 1, 1)


@pytest.mark.usefixtures("own_tables")
def test_in_place_module_violates_isolation(action, tiny):
    """The other network trains a seed that keeps its isolation."""
    value = register_blueprint("clipper", "cnn", Clipper, batched=False).value
    envs = gymnasium.make_vec(
        "Esper-CIFAR-Impaired-v0", num_envs=2, isolation="straight_through", **(tiny("Esper-CIFAR-v0") | {"horizon": 9})
    )
    sink = listen(envs, full=False)
    envs.reset(seed=0)
    envs.step(np.stack([action(Op.GERMINATE, 1, blueprint=value), action(Op.GERMINATE, 1)]))
    assert heard(envs, sink, "ISOLATION_VIOLATION") == []
    envs.step(np.stack([action(Op.ADVANCE, 1)] * 2))
    envs.step(np.stack([action()] * 2))  # the blueprint has been checked in this slot
    (violation,) = heard(envs, sink, "ISOLATION_VIOLATION")
    envs.close()
    assert (violation.env, violation.epoch) == (0, 2)
    assert violation.payload.slots == ("r0c1",)
    assert "outputs" in violation.payload.what


def test_non_finite_straight_through_seed_violates_isolation(make_digits_vec, action):
    """It changes the outputs and, through later layers, the statistics; then the governor acts."""
    envs = make_digits_vec(3, isolation="straight_through")
    sink = listen(envs, full=False)
    envs.reset(seed=0)
    envs.step(np.stack([action(Op.GERMINATE, 0)] * 3))
    shard = envs.unwrapped._growth._population.shards[0]
    shard.seed_stack(0, int(CNN_BLUEPRINTS[0])).parameters["gate"][1] = np.nan
    envs.step(np.stack([action(Op.ADVANCE, 0)] * 3))
    (violation,) = heard(envs, sink, "ISOLATION_VIOLATION")
    assert (violation.env, violation.payload.slots) == (1, ("r0c0",))
    assert violation.payload.what == "outputs and statistics"
    assert envs.unwrapped.telemetry.detail is Detail.FULL
    assert [event.env for event in heard(envs, sink, "GOVERNOR_ROLLBACK")] == [1]


def test_memory_of_process_and_accelerator_is_reported_once(make_digits_vec, action, monkeypatch):
    """A stand-in reports the memory of CUDA; the limits are 90% of the memory."""
    assert memory_gauge(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 * 2**20, 100 * 2**20))
    monkeypatch.setattr(memory, "available_mib", lambda: 1.0)
    monkeypatch.setattr(growth, "memory_gauge", lambda _: memory_gauge(torch.device("cuda:0")))
    envs = make_digits_vec(2, autoreset_mode="SameStep")
    sink = listen(envs, full=False)
    envs.reset(seed=0)
    for _ in range(MEMORY_STEPS + 1):
        envs.step(np.stack([action()] * 2))
    assert envs.unwrapped.telemetry.detail is Detail.FULL
    for _ in range(MEMORY_STEPS):
        envs.step(np.stack([action()] * 2))
    process, accelerator = heard(envs, sink, "MEMORY_WARNING")
    assert process.env is None
    assert process.payload.kind == "resident"
    assert process.payload.used_mib > process.payload.limit_mib == memory.SENSIBLE_SHARE
    assert vars(accelerator.payload) == {"kind": "cuda:0", "used_mib": 95.0, "limit_mib": 90.0}

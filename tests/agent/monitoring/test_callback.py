"""Diagnostics of real training: every report occurs, and healthy training has none."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from esper_agent.monitoring.callback import COUNTED, DiagnosticsCallback
from esper_agent.monitoring.detectors import AnomalySettings
from esper_agent.monitoring.payloads import (
    Anomaly,
    EntropyCollapse,
    NumericalInstability,
    PlateauDetected,
    PPOUpdateCompleted,
    RatioCollapse,
    RatioExplosion,
    RewardHackingSuspected,
    TrainingStarted,
    ValueCollapse,
)
from esper_agent.ppo.losses import loss_terms
from esper_agent.ppo.ppo import FactoredRecurrentPPO, NonFiniteUpdateError
from esper_agent.sb3 import make_sb3_env
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecNormalize

pytestmark = pytest.mark.numeric

QUICK = {"horizon": 6, "batches_per_step": 1, "batch_size": 8}
SMALL = {"features_dim": 16, "lstm_hidden_size": 16, "head_dim": 16}
#: Settings that disable the anomalies of the critic and of exploration.
QUIET = {"value_collapse": -1e9, "op_entropy_floor": 0.0, "argument_entropy_floor": 0.0}


class RecordingHub:
    """Keeps all calls of a hub."""

    def __init__(self):
        self.events, self.escalations = [], []

    def emit(self, payload, **where):
        self.events.append((payload, where))

    def escalate(self, epochs):
        self.escalations.append(epochs)

    def of(self, kind):
        return [payload for payload, _ in self.events if isinstance(payload, kind)]


def make_model(env=None, policy=(), **settings):
    env = make_sb3_env("Esper-Digits-v0", 2, seed=0, **QUICK) if env is None else env
    defaults = {"n_steps": 12, "batch_size": 12, "n_epochs": 2, "seed": 0, "device": "cpu"}
    model = FactoredRecurrentPPO(
        "FactoredLstmPolicy", env, policy_kwargs={**SMALL, **dict(policy)}, **(defaults | settings)
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def watched(model, steps=48, **settings):
    hub = RecordingHub()
    model.learn(steps, callback=DiagnosticsCallback(AnomalySettings(**QUIET | settings), hub))
    return hub


def diverge(model):
    """Train until a ``NonFiniteUpdateError``."""
    hub = RecordingHub()
    diagnostics = DiagnosticsCallback(AnomalySettings(**QUIET), hub)
    with pytest.raises(NonFiniteUpdateError), diagnostics.reporting_divergence():
        model.learn(96, callback=diagnostics)
    return hub


def rewarded(change):
    """An environment whose rewards (N,) are replaced by ``change(step, rewards)``."""
    env, steps = make_sb3_env("Esper-Digits-v0", 2, seed=0, **QUICK), iter(range(10**6))
    step_wait = env.step_wait

    def changed():
        observation, rewards, *rest = step_wait()
        return observation, change(next(steps), rewards), *rest

    env.step_wait = changed
    return env


def test_training_and_its_updates_are_reported():
    model = make_model()
    hub = watched(model)
    (started,), updates = hub.of(TrainingStarted), hub.of(PPOUpdateCompleted)
    assert started == TrainingStarted(
        env_id="Esper-Digits-v0", dataset="digits", num_envs=2, seed=0, timesteps=0, total_timesteps=48
    )
    assert hub.events[0][0] is started
    assert [update.timesteps for update in updates] == [24, 48]
    assert updates[-1].metrics == model.last_update
    assert updates[0].metrics != updates[1].metrics
    assert updates[-1].metrics is not model.last_update
    assert hub.of(Anomaly) == []
    assert hub.escalations == []


def test_exploding_and_collapsing_ratios_are_reported(monkeypatch):
    """A third of the decisions become 12 times more likely, and a third 12 times less likely."""

    def far_off(samples, evaluation, settings):
        terms = loss_terms(samples, evaluation, settings)
        shift = torch.tensor([2.5, -2.5, 0.0]).repeat(len(terms.rows))[: len(terms.rows)]
        return terms._replace(log_ratio=torch.where(terms.rows, shift.unsqueeze(1), 0.0))

    monkeypatch.setattr("esper_agent.ppo.ppo.loss_terms", far_off)
    hub = watched(make_model(target_kl=None))
    assert max(event.value for event in hub.of(RatioExplosion)) == pytest.approx(math.exp(2.5), rel=1e-4)
    assert min(event.value for event in hub.of(RatioCollapse)) == pytest.approx(math.exp(-2.5), rel=1e-4)


def test_value_collapse_is_reported_after_a_quarter_of_the_run():
    """The first round of a short run has an untrained critic, which is never judged."""
    for steps, first in ((120, 30), (48, 48)):
        hub = watched(make_model(learning_rate=1e-12), steps, value_collapse=0.1)
        assert {type(event) for event in hub.of(Anomaly)} == {ValueCollapse}
        values = {u.timesteps: u.metrics["explained_variance"] for u in hub.of(PPOUpdateCompleted)}
        expected = [timesteps for timesteps, value in values.items() if timesteps >= first and value < 0.1]
        assert [event.timesteps for event in hub.of(ValueCollapse)] == expected
        assert any(value < 0.1 for timesteps, value in values.items() if timesteps < first)


def test_nan_reward_is_numerical_instability():
    env = rewarded(lambda step, rewards: rewards * (math.nan if step == 20 else 1.0))
    hub = watched(make_model(env, batch_size=24), 72)
    (event,) = hub.of(NumericalInstability)
    assert (event.timesteps, event.quantity, event.value) == (48, "skipped_updates", 2.0)
    assert [(type(e), e.timesteps) for e in hub.of(ValueCollapse)] == [(ValueCollapse, 48)]


@pytest.mark.parametrize("healthy", [0, 1])
def test_divergence_is_reported_before_it_ends_training(healthy):
    env = rewarded(lambda step, rewards: rewards * (math.nan if step >= 12 * healthy else 1.0))
    hub = diverge(make_model(env))
    (event,) = hub.of(NumericalInstability)
    assert (event.timesteps, event.quantity, event.value) == (24 * (healthy + 1), "skipped_updates", 3.0)
    assert len(hub.of(PPOUpdateCompleted)) == healthy + 1
    assert hub.escalations[-1] == 5


def test_non_finite_decisions_are_reported(monkeypatch):
    model = make_model()
    monkeypatch.setattr(model, "_decides_next", lambda: False)
    (event,) = diverge(model).of(NumericalInstability)
    assert event.quantity == "decisions"


def test_collapsed_entropy_escalates_the_detail_and_a_trend_of_accuracies_does_not():
    committed = []

    class Witness(DiagnosticsCallback):
        def _on_step(self):
            committed.extend(i["committed_val_accuracy"] for i in self.locals["infos"] if i["committed_measured"])
            return super()._on_step()

    settings = {"op_entropy_floor": 0.2, "gradient_vanishing": 0.0, "escalation_epochs": 7}
    settings |= {"trend_rollouts": 1, "plateau_points": 100.0, "trend_points": 100.0}
    model, hub = make_model(policy={"logit_bias": {"op": {"WAIT": 6.0}}}, learning_rate=1e-9), RecordingHub()
    model.learn(48, callback=Witness(AnomalySettings(**QUIET | settings), hub))
    assert [(type(event), event.quantity) for event in hub.of(Anomaly)] == [(EntropyCollapse, "op_choice_entropy")] * 2
    assert hub.escalations == [7] * 2
    (event,) = hub.of(PlateauDetected)
    assert len(committed) == 8
    assert event.recent == pytest.approx(np.mean(committed[4:]))
    assert event.previous == pytest.approx(np.mean(committed[:4]))
    assert (event.timesteps, event.rollouts) == (48, 1)


def test_reward_hacking_is_reported_with_its_place():
    """A policy that always germinates is rewarded for stages that lead to nothing."""
    env = make_sb3_env("Esper-Digits-v0", 2, seed=0, reward_mode="contribution", **QUICK)
    hub = watched(make_model(env, policy={"logit_bias": {"op": {"GERMINATE": 5.0}}}), 24, hacking_points=1.5)
    wheres = [where for payload, where in hub.events if isinstance(payload, RewardHackingSuspected)]
    assert wheres
    assert all(where["env"] in (0, 1) and where["episode"] in (0, 1) and where["epoch"] == 6 for where in wheres)
    assert all(where["slot"] is None for where in wheres)


def test_counts_are_logged_per_round_without_a_hub(tmp_path):
    model = make_model(max_grad_norm=1e-3)  # the gradients explode
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(72, callback=DiagnosticsCallback(AnomalySettings(**QUIET)))
    model.logger.dump(72)
    model.logger.close()
    with (tmp_path / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"diagnostics/anomalies", *(f"diagnostics/{name}" for name in COUNTED)}
    assert names == {name for name in rows[0] if name.startswith("diagnostics/")}
    assert [row["diagnostics/gradient_anomaly"] for row in rows] == ["", "1", "1", "1"]
    assert [row["diagnostics/anomalies"] for row in rows] == ["", "1", "1", "1"]
    assert [row["diagnostics/ratio_explosion"] for row in rows] == ["", "0", "0", "0"]


def test_diagnostics_resume_from_a_json_state():
    settings = AnomalySettings(trend_rollouts=2, plateau_points=50.0, trend_points=50.0, value_collapse=-1e9)
    whole, hub = make_model(), RecordingHub()
    diagnostics = DiagnosticsCallback(settings, hub)
    whole.learn(48, callback=diagnostics)
    state = json.loads(json.dumps(diagnostics.get_state()))
    later = DiagnosticsCallback(settings, again := RecordingHub())
    for changes in ({"counts": {"PLATEAU_DETECTED": 2}, "accuracies": [12.5]}, {}):
        later.set_state(state | changes)
        assert later.get_state() == state | changes
    whole.learn(48, callback=later, reset_num_timesteps=False)
    assert [event.timesteps for event in again.of(PPOUpdateCompleted)] == [72, 96]
    (started,) = again.of(TrainingStarted)
    assert (started.timesteps, started.total_timesteps) == (48, 96)
    assert [event.timesteps for event in again.of(PlateauDetected)] == [96]
    assert later.get_state()["hacking"][0]["number"] == 8


def test_new_training_resets_the_state():
    settings = AnomalySettings(trend_rollouts=2, plateau_points=50.0, trend_points=50.0)
    diagnostics = DiagnosticsCallback(settings, hub := RecordingHub())
    model = make_model()
    for _ in range(2):
        model.learn(48, callback=diagnostics)
    assert len(hub.of(PPOUpdateCompleted)) == 4
    assert hub.of(PlateauDetected) == []
    assert diagnostics.get_state()["hacking"][0]["number"] == 4


def test_diagnostics_reject_other_algorithms(toy_id):
    model = PPO("MultiInputPolicy", make_sb3_env(toy_id, 1, seed=0), n_steps=4, batch_size=4, device="cpu")
    with pytest.raises(TypeError, match="the model is a PPO; diagnostics read a FactoredRecurrentPPO"):
        model.learn(4, callback=DiagnosticsCallback())


@pytest.mark.slow
def test_healthy_training_reports_no_anomaly():
    """The first updates of the default learner on Digits stay within the default thresholds.

    The progress of the critic, and a suspicion about one of 8 episodes, depend on the CPU.
    """
    env = make_sb3_env("Esper-Digits-v0", 4, seed=0, batches_per_step=2)
    model = FactoredRecurrentPPO("FactoredLstmPolicy", VecNormalize(env, norm_obs=False), seed=0, device="cpu")
    defaults = {"op_entropy_floor": 0.2, "argument_entropy_floor": 0.001}
    hub = watched(model, 320, **defaults)
    assert len(hub.of(PPOUpdateCompleted)) == 2
    assert hub.of(Anomaly) == []
    assert len(hub.of(RewardHackingSuspected)) <= 1
    assert hub.escalations == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": {"PLATEAU_DETECTED": "2"}}, "counts/PLATEAU_DETECTED is a str; expected a int"),
        ({"updates_seen": 1.5}, "updates_seen is a float; expected a int"),
        ({"accuracies": ["high"]}, "could not convert"),
        ({"other": 1}, r"has the unknown keys \['other'\]"),
        ({"trends": {"means": [1.0]}}, r"lacks \['verdict'\]"),
        (
            {"trends": {"means": [1.0], "verdict": "RISING"}},
            "verdict is 'RISING'; expected the type of a trend's event",
        ),
    ],
)
def test_set_state_rejects_other_forms(changes, message):
    diagnostics = DiagnosticsCallback()
    with pytest.raises(ValueError, match=message):
        diagnostics.set_state(diagnostics.get_state() | changes)

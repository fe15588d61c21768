"""Settings of the learner reach its losses, the end of a round of updates, bootstraps, and the log."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from esper_agent.ppo.losses import loss_terms
from esper_env.rules.heads import HEAD_NAMES, NUM_OPS
from stable_baselines3.common.save_util import load_from_zip_file

pytestmark = pytest.mark.numeric

DEFAULTS = {
    "clip_range": 0.2,
    "clip_range_vf": None,
    "ent_coef": 0.03,
    "vf_coef": 1.0,
    "normalize_advantage": True,
}


@pytest.fixture
def seen(monkeypatch):
    """The settings that the losses of each minibatch were computed with."""
    settings = []

    def recorded(samples, evaluation, given):
        settings.append(given)
        return loss_terms(samples, evaluation, given)

    monkeypatch.setattr("esper_agent.ppo.ppo.loss_terms", recorded)
    return settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_range", 0.3),
        ("clip_range_vf", 0.7),
        ("ent_coef", 0.07),
        ("vf_coef", 0.4),
        ("normalize_advantage", False),
    ],
)
def test_each_coefficient_reaches_the_loss_and_changes_no_other(mask_world, make_model, collect, seen, name, value):
    model = make_model(mask_world(), n_epochs=1, **{name: value})
    collect(model)
    model.train()
    expected = DEFAULTS | {name: value}
    assert [{field: getattr(settings, field) for field in expected} for settings in seen] == [expected] * 2


def test_entropy_multipliers_reach_the_loss(mask_world, make_model, collect, seen):
    model = make_model(mask_world(), n_epochs=1, entropy_multipliers={"slot": 3.0, "op": 0.5})
    collect(model)
    model.train()
    weights = dict(zip(HEAD_NAMES, seen[0].entropy_weights.tolist(), strict=True))
    assert (weights["slot"], weights["op"], weights["blueprint"]) == (3.0, 0.5, 1.5)


def test_schedules_follow_the_remaining_progress_of_the_run(mask_world, make_model, seen):
    schedules = {
        "clip_range": lambda progress: 0.1 + 0.2 * progress,
        "clip_range_vf": lambda progress: 0.5 + 0.4 * progress,
        "ent_coef": lambda progress: 0.01 + 0.08 * progress,
    }
    model = make_model(mask_world(), batch_size=64, n_epochs=1, **schedules).learn(256)
    assert [settings.clip_range for settings in seen] == pytest.approx([0.25, 0.2, 0.15, 0.1])
    assert [settings.clip_range_vf for settings in seen] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert [settings.ent_coef for settings in seen] == pytest.approx([0.07, 0.05, 0.03, 0.01])
    logged = [model.last_update[name] for name in schedules]
    assert logged == pytest.approx([0.1, 0.5, 0.01])


@pytest.mark.parametrize(("far", "steps", "epochs"), [(0.149, 12, 3), (0.151, 5, 2)])
def test_kl_above_the_limit_ends_the_round(mask_world, make_model, collect, monkeypatch, far, steps, epochs):
    """Four minibatches an epoch, three epochs; the second minibatch of the second epoch has the large KL."""
    kls = iter([0.0] * 5 + [far] + [0.0] * 6)
    monkeypatch.setattr(
        "esper_agent.ppo.ppo.loss_terms", lambda *args: loss_terms(*args)._replace(approx_kl=th.tensor(next(kls)))
    )
    model = make_model(mask_world(), target_kl=0.1, batch_size=16, n_epochs=3)
    collect(model)
    made = []
    model.policy.optimizer.register_step_pre_hook(lambda *_: made.append(1))
    model.train()
    assert len(made) == steps
    assert model._n_updates == epochs


@pytest.mark.parametrize("estimator", ["two_step", "sampled_op"])
def test_bootstrap_reads_the_critic_as_the_estimator_does(mask_world, make_model, collect, estimator):
    """One value per op, all ops equally likely: a sampled value is one of them, an expected value is their mean.

    Without a trace or a discount, the target of a step is its reward and the value after it, cut off or not.
    """
    model = make_model(
        mask_world(num_envs=6, horizon=20, cut=5), gamma=1.0, gae_lambda=0.0, advantage_estimator=estimator
    )
    op_values = th.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    model.policy.op_values = lambda _obs, _states, starts: (
        op_values.expand(len(starts), -1),
        th.full((len(starts), NUM_OPS), 1 / NUM_OPS),
    )
    buffer = collect(model)
    following = buffer.state_values if estimator == "two_step" else buffer.values
    np.testing.assert_allclose((buffer.returns - buffer.rewards)[:4], following[1:5], atol=1e-5)
    futures = (buffer.returns - buffer.rewards)[[4, 9, 14, 15]]
    if estimator == "two_step":
        assert futures == pytest.approx(10.5, abs=1e-4)
    else:
        for row in (futures[:3], futures[3]):
            assert len(np.unique(row)) > 1
            assert np.isclose(row[..., None], op_values.numpy()).any(axis=-1).all()


def test_explained_variance_is_computed_on_the_returns(mask_world, make_model, roughen):
    model = roughen(make_model(mask_world())).learn(64)
    values, returns = model.rollout_buffer.values.ravel(), model.rollout_buffer.returns.ravel()
    assert model.last_update["explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns))


def test_logged_clip_fraction_uses_the_models_clip_range(mask_world, make_model, roughen):
    model = roughen(make_model(mask_world(), clip_range=1e-4, n_epochs=3, learning_rate=1e-4)).learn(64)
    ratios = [value for name, value in model.last_update.items() if name.endswith(("ratio_max", "ratio_min"))]
    assert 0.8 < min(ratios) < max(ratios) < 1.2
    assert model.last_update["clip_fraction"] > 0.5


def test_last_good_parameters_are_not_saved_with_the_model(mask_world, make_model, tmp_path):
    model = make_model(mask_world()).learn(64)
    assert model._last_good is not None
    model.save(tmp_path / "model")
    data, _, _ = load_from_zip_file(tmp_path / "model")
    assert "entropy_multipliers" in data
    assert "_last_good" not in data

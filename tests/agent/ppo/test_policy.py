"""The policy network: size, initialisation, the critic, the LSTM over padded sequences, and SB3's policy interface."""

from __future__ import annotations

import inspect
import math

import gymnasium
import numpy as np
import pytest
import torch as th
from esper_agent.ppo.policy import FactoredLstmPolicy
from esper_env.rules.heads import Head, Op, head_sizes
from sb3_contrib.common.recurrent.type_aliases import RNNStates

pytestmark = pytest.mark.numeric

NVEC = head_sizes(3)


def make_policy(spaces, seed=0, **kwargs):
    th.manual_seed(seed)
    return FactoredLstmPolicy(*spaces, lambda _: 3e-4, **kwargs)


@pytest.fixture(scope="module")
def policy(spaces):
    return make_policy(spaces)


def lively(policy, seed=1):
    """Make the heads matter: an untrained policy's last layers are close to zero."""
    with th.no_grad():
        generator = th.Generator().manual_seed(seed)
        for head in Head:
            weight = policy.action_net.output_layer(head).weight
            weight.copy_(th.randn(weight.shape, generator=generator) * 0.3)
    return policy


def states(count, seed=None, size=256):
    if seed is None:
        state = (th.zeros(1, count, size), th.zeros(1, count, size))
    else:
        generator = th.Generator().manual_seed(seed)
        state = tuple(th.randn(1, count, size, generator=generator) * 0.5 for _ in range(2))
    return RNNStates(state, state)


def test_network_for_three_slots_has_929762_parameters(policy):
    assert sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad) == 929_762
    (group,) = policy.optimizer.param_groups
    assert sum(parameter.numel() for parameter in group["params"]) == 929_762


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"eps": 1e-5, "weight_decay": 0}),
        ({"optimizer_kwargs": {"weight_decay": 0.1}}, {"eps": 1e-5, "weight_decay": 0.1}),
        ({"optimizer_kwargs": {"eps": 1e-7}}, {"eps": 1e-7}),
        ({"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}, {"momentum": 0.9}),
    ],
)
def test_optimizer_receives_its_arguments(spaces, given, expected):
    defaults = make_policy(spaces, **given).optimizer.defaults
    assert {name: defaults[name] for name in expected} == expected


def is_orthogonal(weight, gain):
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    return th.allclose(short @ short.T, gain**2 * th.eye(len(short)), atol=1e-4)


def test_initialisation_has_documented_scales(spaces):
    policy = make_policy(spaces)
    lstm, encoder = policy.lstm_actor, policy.features_extractor
    assert encoder.embedding.weight.shape == (14, 4)
    assert encoder.embedding.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert is_orthogonal(encoder.linear.weight, math.sqrt(2))
    assert is_orthogonal(lstm.weight_ih_l0, 1.0)
    assert is_orthogonal(lstm.weight_hh_l0, 1.0)
    gates = (lstm.bias_ih_l0 + lstm.bias_hh_l0).reshape(4, 256)
    assert (gates[1] == 1).all(), "the forget gate"
    assert (gates[[0, 2, 3]] == 0).all()
    for head in Head:
        *hidden, last = [layer for layer in policy.action_net.heads[head] if isinstance(layer, th.nn.Linear)]
        assert len(hidden) == (2 if head == Head.BLUEPRINT else 1)
        assert all(is_orthogonal(layer.weight, math.sqrt(2)) for layer in hidden)
        assert is_orthogonal(last.weight, 0.01)
    critic, *others = policy.value_net.hidden, policy.value_net.output, encoder.linear
    assert all((layer.bias == 0).all() for layer in (critic, *others))
    assert is_orthogonal(critic.weight, math.sqrt(2))
    assert 0.1 - 1e-6 <= policy.value_net.output.weight.norm().item() <= 1.0


def test_encoder_is_a_linear_layer_a_norm_and_a_relu(policy, observations):
    encoder, obs = policy.features_extractor, observations(6)
    inputs = th.cat([obs["features"], encoder.embedding.weight[obs["blueprints"]].reshape(6, -1)], dim=1)
    linear = inputs @ encoder.linear.weight.T + encoder.linear.bias
    normed = (linear - linear.mean(dim=1, keepdim=True)) / (linear.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert th.allclose(encoder(obs), normed.clamp(min=0), atol=1e-5)


@pytest.mark.parametrize(
    ("bias", "op", "alpha_target"),
    [
        (None, [-1, 0, -2, -2, 0, 0], [0, 0, 2]),
        ({"op": {"GERMINATE": 0.5}}, [0, 0.5, 0, 0, 0, 0], [0, 0, 0]),
        ({"alpha_target": {"HALF": 1.0}}, [0] * 6, [1, 0, 0]),
        ({}, [0] * 6, [0, 0, 0]),
    ],
)
def test_initial_logits_have_the_bias(spaces, observations, bias, op, alpha_target):
    policy = make_policy(spaces, logit_bias=bias)
    obs = observations(64)
    latent, _ = policy._latent(obs, states(64).pi, th.ones(64))
    logits = policy.action_net(latent).split(policy.action_space.nvec.tolist(), dim=1)
    for head, expected in ((Head.OP, op), (Head.ALPHA_TARGET, alpha_target)):
        assert (logits[head] - th.tensor(expected, dtype=th.float32)).abs().max() < 0.1


def test_critic_reads_the_latent_and_a_one_hot_op(policy):
    latent = th.randn(5, 256, generator=th.Generator().manual_seed(0))
    critic = policy.value_net
    for op in Op:
        one_hot = th.zeros(5, len(Op))
        one_hot[:, op] = 1
        naive = critic.output(th.relu(critic.hidden(th.cat([latent, one_hot], dim=1)))).squeeze(1)
        assert th.allclose(critic(latent)[:, op], naive, atol=1e-5)


def test_blueprints_reach_the_policy_and_the_masks_do_not_reach_the_latent(policy, observations):
    obs = observations(8)
    latent, _ = policy._latent(obs, states(8).pi, th.zeros(8))
    other = dict(obs, blueprints=(obs["blueprints"] + 1) % 14)
    assert not th.allclose(policy._latent(other, states(8).pi, th.zeros(8))[0], latent)
    masked = dict(obs, action_mask=th.ones_like(obs["action_mask"]), op_slot_mask=th.ones_like(obs["op_slot_mask"]))
    assert th.equal(policy._latent(masked, states(8).pi, th.zeros(8))[0], latent)


def test_padded_sequences_equal_step_by_step_evaluation(spaces, observations):
    """Three sequences of 7, 4 and 1 steps; the second starts an episode, so its carried state must not count."""
    policy = lively(make_policy(spaces))
    lengths, longest = [7, 4, 1], 7
    obs = observations(3 * longest)
    starts = th.zeros(3, longest)
    starts[1, 0] = 1
    initial = states(3, seed=5)
    th.manual_seed(0)
    distribution, _ = policy.get_distribution(obs, initial.pi, starts.flatten())
    actions = distribution.get_actions()
    padded = policy.evaluate_heads(obs, actions, initial, starts.flatten())

    for sequence, length in enumerate(lengths):
        state = tuple(part[:, sequence : sequence + 1] for part in initial.pi)
        for step in range(length):
            row = sequence * longest + step
            single = {key: value[row : row + 1] for key, value in obs.items()}
            state_in = RNNStates(state, state)
            alone = policy.evaluate_heads(single, actions[row : row + 1], state_in, starts[sequence, step : step + 1])
            _, state = policy.get_distribution(single, state, starts[sequence, step : step + 1])
            for whole, part in zip((*padded[:3], *padded.heads), (*alone[:3], *alone.heads), strict=True):
                assert th.allclose(whole[row].float(), part[0].float(), atol=1e-4)


def test_episode_start_clears_the_carried_state(policy, observations):
    obs = observations(6)
    fresh = policy.predict_values(obs, states(6).pi, th.zeros(6))
    assert th.equal(policy.predict_values(obs, states(6, seed=2).pi, th.ones(6)), fresh)
    assert not th.allclose(policy.predict_values(obs, states(6, seed=2).pi, th.zeros(6)), fresh)


def test_episode_start_inside_a_sequence_is_rejected(policy, observations):
    starts = th.tensor([0.0, 0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="inside a sequence"):
        policy.predict_values(observations(4), states(2).pi, starts[[0, 1, 3, 2]])
    assert policy.predict_values(observations(4), states(2).pi, starts).shape == (4, 1)


def test_decision_values_the_op_it_takes(spaces, observations):
    count = 2048  # the rarest op is expected 27 times
    policy, obs = lively(make_policy(spaces)), observations(count, density=0.8)
    with th.no_grad():
        decision, _ = policy.decide(obs, states(count), th.ones(count))
        op_values, op_probs = policy.op_values(obs, states(count).pi, th.ones(count))
        evaluation = policy.evaluate_heads(obs, decision.actions, states(count), th.ones(count))
    ops = decision.actions[:, Head.OP]
    assert set(ops.tolist()) == set(Op)
    assert th.equal(decision.op_values, op_values[th.arange(count), ops])
    assert th.allclose(decision.state_values, (op_values * op_probs).sum(dim=1), atol=1e-6)
    assert th.equal(decision.op_values, evaluation.op_values)
    assert th.equal(decision.head_log_probs, evaluation.heads.log_probs)


def test_forward_and_evaluate_actions_have_the_shapes_of_sb3(policy, observations):
    obs = observations(5)
    actions, values, log_prob, after = policy(obs, states(5), th.ones(5))
    assert (actions.shape, values.shape, log_prob.shape) == ((5, 8), (5, 1), (5,))
    assert after.pi[0].shape == after.vf[1].shape == (1, 5, 256)
    again, log_prob_again, entropy = policy.evaluate_actions(obs, actions, states(5), th.ones(5))
    assert th.allclose(values, again)
    assert th.allclose(log_prob, log_prob_again)
    assert entropy.shape == (5,)


def test_predict_carries_state_for_single_and_batched_observations(spaces, observations):
    policy = lively(make_policy(spaces))
    obs = {key: value.numpy() for key, value in observations(3).items()}
    action, state = policy.predict(obs, deterministic=True)
    assert action.shape == (3, 8)
    assert state[0].shape == (1, 3, 256)
    single = {key: value[1] for key, value in obs.items()}
    alone, alone_state = policy.predict(single, deterministic=True)
    assert alone.shape == (8,)
    np.testing.assert_array_equal(alone, action[1])
    np.testing.assert_allclose(alone_state[0][:, 0], state[0][:, 1], atol=1e-5)
    _, carried = policy.predict(obs, state, np.zeros(3, dtype=bool), deterministic=True)
    _, restarted = policy.predict(obs, state, np.ones(3, dtype=bool), deterministic=True)
    assert not np.allclose(carried[0], restarted[0])
    np.testing.assert_allclose(restarted[0], state[0], atol=1e-5)


def test_actor_and_critic_both_train_every_shared_layer(spaces, observations):
    policy = lively(make_policy(spaces))
    obs, before, start = observations(64, density=0.9), states(64, seed=3), th.zeros(64)
    actions = policy.decide(obs, before, start)[0].actions
    for actor in (True, False):
        policy.zero_grad()
        evaluation = policy.evaluate_heads(obs, actions, before, start)
        (evaluation.heads.log_probs if actor else evaluation.op_values).sum().backward()
        for module in (policy.features_extractor, policy.lstm_actor, policy.latent_norm):
            assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_loaded_policy_has_every_setting_and_the_same_actions(spaces, observations, tmp_path):
    settings = {
        "embedding_dim": 5,
        "features_dim": 24,
        "lstm_hidden_size": 16,
        "head_dim": 12,
        "logit_bias": {"op": {"WAIT": -3.0}},
        "optimizer_class": th.optim.SGD,
        "optimizer_kwargs": {"momentum": 0.9},
    }
    others = {"observation_space", "action_space", "lr_schedule", "use_sde"}
    assert set(settings) | others == set(inspect.signature(FactoredLstmPolicy).parameters)
    policy = lively(make_policy(spaces, **settings))
    policy.save(tmp_path / "policy.pt")
    loaded = FactoredLstmPolicy.load(tmp_path / "policy.pt", device="cpu")
    again = loaded._get_constructor_parameters()
    assert {name: again[name] for name in settings} == settings
    obs = {key: value.numpy() for key, value in observations(9).items()}
    actions, again = (one.predict(obs, deterministic=True)[0] for one in (policy, loaded))
    np.testing.assert_array_equal(actions, again)


def as_floats(observed, key):
    parts = dict(observed.spaces)
    parts[key] = gymnasium.spaces.Box(0, 13, parts[key].shape, np.float64)
    return gymnasium.spaces.Dict(parts)


def test_policy_rejects_other_spaces_and_use_sde(spaces):
    observed, actions = spaces
    for given, message in (
        ((observed, gymnasium.spaces.Discrete(4)), r"expected .* MultiDiscrete\(head_sizes"),
        ((observed, gymnasium.spaces.MultiDiscrete([2, 3])), r"expected .* MultiDiscrete\(head_sizes"),
        ((observed["features"], actions), "do not flatten"),
        ((gymnasium.spaces.Dict(list(observed.spaces.items())[:-1]), actions), r"op_slot_mask \(18,\)"),
        ((observed, gymnasium.spaces.MultiDiscrete(head_sizes(4))), r"the integers blueprints \(4,\), action_mask \("),
        ((as_floats(observed, "blueprints"), actions), r"blueprints: Box\(\(3,\), float64\).*; expected .* integers"),
    ):
        with pytest.raises(ValueError, match=message):
            make_policy(given)
    with pytest.raises(ValueError, match="use_sde"):
        make_policy(spaces, use_sde=True)

"""Share of illegal actions among those sampled head by head under the marginal mask; docs/environment.md states it."""

import numpy as np

COUNT, HORIZON = 16, 40


def test_a_fifth_of_independently_sampled_actions_is_illegal(make_digits_vec):
    envs = make_digits_vec(COUNT, horizon=HORIZON, batches_per_step=1, autoreset_mode="Disabled")
    envs.reset(seed=0)
    space, base, valid = envs.single_action_space, envs.unwrapped, []
    space.seed(0)
    for _ in range(HORIZON):
        actions = np.stack([space.sample(mask=base.split_mask(index)) for index in range(COUNT)])
        *_, infos = envs.step(actions)
        valid.append(infos["action_valid"])
    assert 0.17 < 1 - np.mean(valid) < 0.27

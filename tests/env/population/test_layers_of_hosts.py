"""Hosts of one's own whose layers come twice, or begin with a slot at the input, against the plain module."""

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import register_task
from esper_env.hosts import SegmentedHost, SlotSpec
from esper_env.population.build import load_task_data
from esper_env.tasks import TASKS, make_task
from faults import growth_of
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric


class OneActivation(SegmentedHost):
    """The same ReLU object twice, as is common."""

    topology = "cnn"

    def __init__(self, data):
        super().__init__()
        channels, height, width = data.image_shape
        act = nn.ReLU()
        self.segments = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), act, nn.Conv2d(6, 6, 1), act),
                nn.Sequential(nn.Flatten(), nn.Linear(6 * height * width, data.classes)),
            ]
        )
        self.slots = (SlotSpec("r0c0", 6, "hidden", 0, 0, 0, (6, height, width)),)
        self.execution_order = (0,)


class SlotAtInput(SegmentedHost):
    """Seeds see the images themselves."""

    topology = "cnn"

    def __init__(self, data):
        super().__init__()
        channels, height, width = data.image_shape
        self.segments = nn.ModuleList(
            [nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, data.classes))]
        )
        self.slots = (SlotSpec("r0c0", channels, "input", 0, 0, 0, (channels, height, width)),)
        self.execution_order = (0,)


@pytest.fixture
def make():
    made, ids = [], []

    def build(host, auto_shard_size, **kwargs):
        env_id = f"{host.__name__}{len(ids)}-v0"
        register_task(env_id, base="Esper-Digits-v0", host=host, auto_shard_size=auto_shard_size)
        ids.append(env_id)
        made.append(gymnasium.make_vec(env_id, device="cpu", **kwargs))
        return made[-1]

    yield build
    for env in made:
        env.close()
    for env_id in ids:
        del TASKS[env_id], gymnasium.registry[env_id]


@pytest.mark.parametrize("auto_shard_size", [1, 2], ids=["alone", "together"])
def test_a_layer_that_comes_twice_runs_twice(make, auto_shard_size):
    env = make(OneActivation, auto_shard_size, num_envs=2)
    _, infos = env.reset(seed=0)
    data = load_task_data(make_task("Esper-Digits-v0"))
    stack = growth_of(env)._population.shards[0].host
    plain = OneActivation(data)
    plain.load_state_dict({name: value[0] for name, value in stack.parameters.items()})
    images = torch.from_numpy(data.val_images.copy()).float() / 255
    images = (images - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    with torch.no_grad():
        loss = F.cross_entropy(plain(images), torch.from_numpy(data.val_labels.copy()))
    assert infos["val_loss"][0] == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize(("num_envs", "auto_shard_size"), [(1, 1), (2, 1), (2, 2)])
def test_measuring_leaves_the_held_out_images_alone(make, num_envs, auto_shard_size):
    settings = {"num_envs": num_envs, "horizon": 1, "autoreset_mode": "Disabled", "shard_size": auto_shard_size}
    env = make(SlotAtInput, auto_shard_size, **settings)
    test = growth_of(env)._population._splits.test
    before = test._images.clone()
    for _ in range(2):
        env.reset(seed=0, options={"topology": {"r0c0": "conv_light"}})
        env.step(np.zeros((num_envs, 8), dtype=np.int64))
    assert torch.equal(test._images, before)


@pytest.mark.usefixtures("float64_networks")
def test_networks_with_a_slot_at_the_input_score_the_same_alone_and_together(make):
    accuracies = []
    for num_envs, size in ((2, 2), (1, 1)):
        env = make(SlotAtInput, size, num_envs=num_envs, horizon=1, autoreset_mode="Disabled", shard_size=size)
        env.reset(seed=0, options={"topology": {"r0c0": "conv_light"}})
        *_, infos = env.step(np.zeros((num_envs, 8), dtype=np.int64))
        accuracies.append(infos["test_accuracy"][0])
    assert accuracies[0] == accuracies[1]

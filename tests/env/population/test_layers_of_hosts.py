"""Custom hosts with a repeated layer, or with a slot at the input, compared with the plain module."""

from functools import partial

import numpy as np
import pytest
import torch
from esper_env.hosts import SegmentedHost, SlotSpec
from esper_env.rules.heads import Operator
from esper_env.rules.stages import Stage
from small_networks import CLASSES, LAYOUTS, everyone
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.numeric


class CustomHost(SegmentedHost):
    """Two segments for the stripes, with one slot."""

    topology = "cnn"

    def __init__(self, channels, *layers):
        super().__init__()
        head = nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, CLASSES))
        self.segments = nn.ModuleList([nn.Sequential(*layers) if layers else nn.Identity(), head])
        self.slots = (SlotSpec("r0c0", channels, "hidden", 0, 0, 0, (channels, 8, 8)),)
        self.execution_order = (0,)


def repeated_layer():
    """A host that uses the same ReLU object twice."""
    act = nn.ReLU()
    return CustomHost(6, nn.Conv2d(1, 6, 3, padding=1), act, nn.Conv2d(6, 6, 1), act)


slot_at_input = partial(CustomHost, 1)  # its seeds read the images


@LAYOUTS
def test_repeated_layer_runs_twice(make_population, grow, stripes, batched):
    population = make_population(2, host=repeated_layer, batched=batched)
    plain = repeated_layer()
    plain.load_state_dict({name: value[0] for name, value in population.shards[0].host.parameters.items()})
    images = torch.from_numpy(stripes.val_images.copy()).float() / 255
    images = (images - torch.tensor(stripes.mean)[:, None, None]) / torch.tensor(stripes.std)[:, None, None]
    with torch.no_grad():
        loss = F.cross_entropy(plain(images), torch.from_numpy(stripes.val_labels.copy()))
    measured = population.measure(grow(population, 2), everyone(2)).loss[0]
    assert measured == pytest.approx(float(loss), abs=1e-5)


def test_slot_at_input_scores_equally_and_keeps_images_in_both_layouts(make_population, grow):
    results = []
    for batched in (True, False):
        population = make_population(2, host=slot_at_input, batched=batched, dtype=torch.float64)
        structure = grow(population, 2, *[(row, 0, "conv_light", Operator.ADD, Stage.FOSSILIZED) for row in range(2)])
        population.train(structure)
        before = [split.samples.clone() for split in population._splits[1:]]
        measured = population.measure(structure, everyone(2))
        results.append([*measured, *population.appraise(structure, np.arange(2))])
        assert all(torch.equal(split.samples, old) for split, old in zip(population._splits[1:], before, strict=True))
    for batched, single in zip(*results, strict=True):
        np.testing.assert_allclose(batched, single, rtol=0, atol=1e-9)

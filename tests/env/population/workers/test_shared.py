"""Values whose arrays processes share."""

import numpy as np
import pytest
import torch
from esper_env.population.workers.shared import ALIGNMENT, pack, shared_file, unpack
from torch import nn


@pytest.fixture
def file():
    with shared_file() as opened:
        yield opened


def test_values_equal_the_originals_and_arrays_are_not_in_the_pickle(file):
    array, tensor = np.arange(10_000.0), torch.randn(100, 100)
    empty, scale = np.zeros(0), 3
    packed = pack({"array": array, "nested": [tensor, empty, "text"], "function": lambda x: scale * x}, file)
    assert len(packed.content) < 5000
    copy = unpack(packed, file.fileno())
    np.testing.assert_array_equal(copy["array"], array)
    assert torch.equal(copy["nested"][0], tensor)
    assert copy["nested"][1].shape == (0,)
    assert copy["function"](2) == 6


def test_views_of_one_tensor_still_share_its_memory(file):
    padded = torch.arange(36, dtype=torch.uint8).view(6, 6)
    packed = pack((padded, padded.unfold(0, 3, 1).unfold(1, 3, 1), padded[1:, 1]), file)
    assert sum(size for _, size in packed.places) == 36
    whole, crops, column = unpack(packed, file.fileno())
    assert torch.equal(crops, padded.unfold(0, 3, 1).unfold(1, 3, 1))
    assert torch.equal(column, padded[1:, 1])
    whole[1, 1] = 99
    assert crops[1, 1, 0, 0] == column[0] == 99


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_every_dtype_are_aligned(dtype, file):
    odd, tensor = np.zeros(3, dtype=np.uint8), torch.tensor([0, 1, 1]).to(dtype)
    _, copy = unpack(pack((odd, tensor), file), file.fileno())
    assert copy.dtype == dtype
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() % ALIGNMENT == 0


def test_parameters_and_tensors_with_gradients_are_copied(file):
    layer, leaf = nn.Linear(2, 3), torch.ones(2, requires_grad=True)
    copied, other = unpack(pack((layer, leaf), file), file.fileno())
    assert all(torch.equal(one, two) for one, two in zip(layer.parameters(), copied.parameters(), strict=True))
    assert isinstance(copied.weight, nn.Parameter)
    assert other.requires_grad


def test_writing_changes_only_the_writers_copy(file):
    packed = pack(torch.zeros(5), file)
    one, other = (unpack(packed, file.fileno()) for _ in range(2))
    one += 1
    assert other.sum() == 0


def test_data_stay_read_only_and_are_not_copied(stripes, file):
    packed = pack(stripes, file)
    copy = unpack(packed, file.fileno())
    assert copy.digest == stripes.digest
    assert not copy.train_images.flags.writeable
    assert not copy.train_images.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        copy.train_images[0] = 0

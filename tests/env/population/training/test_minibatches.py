"""Minibatches: permutations of the training set, valid crops and flips, and independent streams."""

import numpy as np
import pytest
import torch
from esper_env.data import TextData
from esper_env.population.training.minibatches import Draw, MinibatchStream, TrainingImages, TrainingText
from plain_network import minibatches

CPU = torch.device("cpu")


def source(data, dtype=torch.float64):
    return TrainingImages(data, CPU, dtype)


def stream(images, seed=0, batch=8, batches=4):
    made = MinibatchStream(images, batch, batches)
    made.seed(seed)
    return made


@pytest.mark.parametrize(("batch", "batches"), [(8, 4), (8, 5), (10, 25), (7, 1)], ids=str)
def test_stream_draws_every_image_once_before_it_repeats(make_data, batch, batches):
    """Including across epochs, and in epochs longer than the training set."""
    count = 100
    own = stream(source(make_data(train=count)), batch=batch, batches=batches)
    drawn = torch.cat([own.draw()[0].flatten() for _ in range(30)])
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count].tolist()) == list(range(count))
    if len(drawn) >= 2 * count:
        assert drawn[:count].tolist() != drawn[count : 2 * count].tolist()


def test_stream_is_determined_by_its_seed(make_data):
    images = source(make_data(pad=1, flip=True))

    def epochs(seed):
        own = stream(images, seed)
        return [torch.cat([part.flatten().long() for part in own.draw()]) for _ in range(3)]

    assert all(torch.equal(a, b) for a, b in zip(epochs(5), epochs(5), strict=True))
    assert not torch.equal(epochs(5)[0], epochs(6)[0])


def test_seeding_restarts_stream_in_the_middle_of_a_pass(make_data):
    images = source(make_data())
    own, fresh = stream(images, 3), stream(images, 4)
    own.draw()
    own.seed(4)
    for _ in range(5):
        assert torch.equal(own.draw()[0], fresh.draw()[0])


def naive(data, index, crop, flip):
    """One training image by NumPy: pad with black, cut out, mirror, normalise."""
    pad, size = data.crop_padding, data.train_images.shape[-1]
    image = np.pad(data.train_images[index], ((0, 0), (pad, pad), (pad, pad)))
    image = image[:, crop[0] : crop[0] + size, crop[1] : crop[1] + size]
    if flip:
        image = image[:, :, ::-1]
    mean, std = np.array(data.mean)[:, None, None], np.array(data.std)[:, None, None]
    return (image / 255 - mean) / std


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_cropped_mirrored_and_normalised(make_data, channels, pad, flip):
    data = make_data(channels=channels, pad=pad, flip=flip)
    images = source(data)
    streams, twins = ([stream(images, seed) for seed in (1, 2)] for _ in range(2))
    draws = [own.draw() for own in twins]
    for step, (x, labels) in enumerate(minibatches(images, streams)):
        assert x.shape == (2, 8, channels, 8, 8)
        assert x.dtype == torch.float64
        for row, (indices, crops, flips) in enumerate(draws):
            for sample, index in enumerate(indices[step].tolist()):
                crop = (0, 0) if crops is None else crops[:, step, sample].tolist()
                mirrored = flips is not None and bool(flips[step, sample])
                np.testing.assert_allclose(x[row, sample].numpy(), naive(data, index, crop, mirrored), atol=1e-12)
                assert labels[row, sample] == data.train_labels[index]


def test_offsets_and_flips_are_uniform(make_data):
    own = stream(source(make_data(pad=2, flip=True)), batch=100, batches=100)
    _, crops, flips = own.draw()
    for axis in range(2):
        shares = torch.bincount(crops[axis].flatten(), minlength=5) / crops[axis].numel()
        assert len(shares) == 5
        assert (shares - 0.2).abs().max() < 0.03
    assert abs(float(flips.double().mean()) - 0.5) < 0.03
    assert abs(float(np.corrcoef(crops[0].flatten(), crops[1].flatten())[0, 1])) < 0.05


# Text


def text_source(length=100, context=8):
    """A text in which every byte is its own position."""
    text = np.arange(length, dtype=np.uint8)
    return TrainingText(TextData("places", text, text, text), context, CPU)


def test_labels_of_text_are_the_next_bytes():
    text = text_source()
    own, twin = (stream(text, batch=5, batches=7) for _ in range(2))
    indices, offsets, flips = twin.draw()
    assert flips is None
    for step, (tokens, following) in enumerate(minibatches(text, [own])):
        assert tokens.shape == following.shape == (1, 5, 8)
        start = indices[step] * 8 + offsets[0, step]
        torch.testing.assert_close(tokens[0], start[:, None] + torch.arange(8))
        torch.testing.assert_close(following, tokens + 1)


def test_pass_draws_every_window_once_from_any_offset():
    text = text_source(length=2_000 // 8, context=4)
    assert text.count == (250 - 1) // 4 - 1
    own = stream(text, batch=text.count, batches=200)
    indices, offsets, _ = own.draw()
    assert all(sorted(one) == list(range(text.count)) for one in indices.tolist())
    starts = torch.bincount((indices * 4 + offsets[0]).flatten())
    assert (starts > 0).all()
    assert len(starts) == text.count * 4
    assert starts.max() < 2 * starts.double().mean()


def test_text_windows_end_within_the_text():
    text = text_source(length=17, context=8)
    assert text.count == 1
    _, following = text.assemble(Draw(torch.tensor([[0]]), torch.tensor([[[7]]]), None))
    assert following[0, 0].tolist() == list(range(8, 16))
    with pytest.raises(ValueError, match="places: 16 bytes to train on; a context of 8 needs at least 17"):
        text_source(length=16, context=8)

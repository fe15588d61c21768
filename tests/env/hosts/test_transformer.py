"""The Transformer host: sizes, slots, causality and clear errors."""

import pytest
import torch
from esper_env.hosts import HostProtocol, TransformerHost
from torch.nn import functional as F

pytestmark = pytest.mark.numeric


def host(vocab=20, width=8, heads=2, layers=4, context=10, segments=2, **options):
    return TransformerHost(vocab, width, heads, layers, context, segments, **options)


def tokens(count=3, length=10, vocab=20):
    return torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("expansion", [0, 1, 4])
def test_host_has_exact_number_of_parameters(expansion):
    width, inner = 8, 8 * expansion
    attention = 3 * width * width + 3 * width + width * width + width
    perceptron = width * inner + inner + inner * width + width
    layer = attention + 2 * width + (perceptron + 2 * width if expansion else 0)
    expected = 20 * width + 10 * width + 4 * layer + 2 * width
    assert sum(parameter.numel() for parameter in host(expansion=expansion).parameters()) == expected


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_slots_lie_behind_each_group_of_layers(segments):
    built, x = host(segments=segments), tokens()
    assert isinstance(built, HostProtocol)
    assert built.topology == "transformer"
    assert [slot.slot_id for slot in built.slots] == [f"r0c{group}" for group in range(segments)]
    assert built.execution_order == tuple(range(segments))
    logits = built(x)
    for slot, segment in zip(built.slots, built.segments[:-1], strict=True):
        x = segment(x)
        assert (slot.channels, slot.shape) == (8, (10, 8))
        assert x.shape == (3, 10, 8)
    assert logits.shape == (3, 10, 20)
    torch.testing.assert_close(built.segments[-1](x), logits)


def test_subset_of_slots_leaves_network_unchanged():
    torch.manual_seed(0)
    whole = host(segments=4)
    torch.manual_seed(0)
    subset = host(segments=4, slots=["r0c2"])
    assert [slot.slot_id for slot in subset.slots] == ["r0c2"]
    assert len(subset.segments) == 2
    torch.testing.assert_close(subset(tokens()), whole(tokens()))


def test_output_is_tied_to_embedding():
    built = host(segments=1)
    table = built.segments[0][0].tokens.weight
    assert built.segments[-1][-1].weight is table
    normed = built.segments[-1][0](built.segments[0](tokens()))
    torch.testing.assert_close(built(tokens()), F.linear(normed, table))


def test_embeddings_are_initialised_small():
    torch.manual_seed(0)
    embedding = host(vocab=400, width=16, context=300).segments[0][0]
    for table in (embedding.tokens.weight, embedding.positions.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("place", range(10))
def test_logits_depend_on_this_and_earlier_tokens_only(place):
    built, x = host(), tokens()
    changed = x.clone()
    changed[:, place] = (changed[:, place] + 7) % 20
    before, after = built(x), built(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert ((before - after).abs().amax(dim=(0, 2))[place:] > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "layers is 3, which 2 segments do not divide; choose a multiple of segments"),
        ({"width": 9}, "width is 9, which 2 heads do not divide"),
        ({"heads": 0}, "`heads` is 0; expected a positive integer"),
        ({"vocab": 1}, "`vocab` is 1; expected an integer of at least 2"),
        ({"context": 1}, "`context` is 1; expected an integer of at least 2"),
        ({"segments": 0}, "`segments` is 0; expected a positive integer"),
        ({"layers": 0}, "`layers` is 0; expected a positive integer"),
        ({"expansion": -1}, "`expansion` is -1; expected a non-negative integer"),
        ({"slots": ["r0c2"]}, r"slots \['r0c2'\] do not exist in this host"),
    ],
)
def test_host_rejects_bad_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        host(**options)

"""The Transformer host: sizes, slots, routing, causality and clear errors."""

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
def test_it_has_exactly_its_parameters(expansion):
    width, inner = 8, 8 * expansion
    attention = 3 * width * width + 3 * width + width * width + width
    perceptron = width * inner + inner + inner * width + width
    layer = attention + 2 * width + (perceptron + 2 * width if expansion else 0)
    built = host(expansion=expansion)
    expected = 20 * width + 10 * width + 4 * layer + 2 * width
    assert sum(parameter.numel() for parameter in built.parameters()) == expected


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_a_slot_is_behind_each_group_of_layers(segments):
    built = host(segments=segments)
    assert isinstance(built, HostProtocol)
    assert built.topology == "transformer"
    assert [slot.slot_id for slot in built.slots] == [f"r0c{group}" for group in range(segments)]
    assert built.execution_order == tuple(range(segments))
    for slot in built.slots:
        assert (slot.channels, slot.shape) == (8, (10, 8))
        assert built.forward_between(tokens(), None, slot.slot_id).shape == (3, 10, 8)
    assert built(tokens()).shape == (3, 10, 20)


def test_running_from_slot_to_slot_is_running_at_once():
    built, x = host(segments=4), tokens()
    between = built.forward_between(built.forward_between(x, None, "r0c1"), "r0c1", "r0c3")
    torch.testing.assert_close(built.forward_between(between, "r0c3", None), built(x))
    torch.testing.assert_close(between, built.forward_between(x, None, "r0c3"))


def test_slots_can_be_left_out_without_changing_the_host():
    torch.manual_seed(0)
    whole = host(segments=4)
    torch.manual_seed(0)
    part = host(segments=4, slots=["r0c2"])
    assert [slot.slot_id for slot in part.slots] == ["r0c2"]
    assert len(part.segments) == 2
    torch.testing.assert_close(part(tokens()), whole(tokens()))


def test_the_output_is_tied_to_the_embedding():
    built = host()
    table = built.segments[0][0].tokens.weight
    assert built.segments[-1][-1].weight is table
    features = built.forward_between(tokens(), None, "r0c1")
    normed = built.segments[-1][0](features)
    torch.testing.assert_close(built(tokens()), F.linear(normed, table))


def test_tokens_and_positions_begin_as_small_random_vectors():
    torch.manual_seed(0)
    embedding = host(vocab=400, width=16, context=300).segments[0][0]
    for table in (embedding.tokens.weight, embedding.positions.weight):
        assert table.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(table.mean().item()) < 0.002


def test_a_position_has_its_own_vector():
    built = host()
    same = torch.full((1, 10), 3)
    features = built.forward_between(same, None, "r0c0")
    with torch.no_grad():
        built.segments[0][0].positions.weight[4] += 1.0
    moved = built.forward_between(same, None, "r0c0")
    assert torch.equal(moved[:, :4], features[:, :4])
    assert not torch.equal(moved[:, 4], features[:, 4])


@pytest.mark.parametrize("place", range(10))
def test_nothing_looks_ahead(place):
    built, x = host(), tokens()
    changed = x.clone()
    changed[:, place] = (changed[:, place] + 7) % 20
    before, after = built(x), built(changed)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place:], after[:, place:])


def test_what_came_before_matters():
    built, x = host(), tokens()
    changed = x.clone()
    changed[:, 0] = (changed[:, 0] + 7) % 20
    assert ((built(x) - built(changed)).abs().amax(dim=(0, 2)) > 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 3}, "layers is 3, which 2 segments do not divide; choose a multiple of segments"),
        ({"width": 9}, "width is 9, which 2 heads do not divide"),
        ({"heads": 0}, "width is 8, which 0 heads do not divide"),
        ({"vocab": 1}, "vocab is 1; a Transformer host needs at least 2"),
        ({"context": 1}, "context is 1"),
        ({"segments": 0}, "segments is 0"),
        ({"layers": 0}, "layers is 0"),
        ({"expansion": -1}, "expansion is -1"),
        ({"slots": ["r0c2"]}, r"slots \['r0c2'\] do not exist in this host"),
        ({"slots": []}, "slots is empty"),
    ],
)
def test_numbers_that_make_no_host_are_a_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        host(**options)


@pytest.mark.parametrize(("start", "stop"), [("r0c1", "r0c0"), ("r0c1", "r0c1"), ("r9c9", None), (None, "r9c9")])
def test_a_misrouted_request_is_a_clear_error(start, stop):
    with pytest.raises(ValueError, match=r"only runs forward|is not known; this host has r0c0, r0c1"):
        host().forward_between(torch.zeros(1, 10, 8), start, stop)

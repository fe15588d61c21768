"""Splits are disjoint and complete: stratified for images, at line ends for a text."""

from __future__ import annotations

import numpy as np
from esper_env.data.splits import split_at_lines, stratified_split
from hypothesis import given
from hypothesis import strategies as st


@given(
    labels=st.lists(st.integers(0, 4), min_size=3, max_size=200),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_stratified_split_assigns_every_image_once_in_equal_shares(
    labels: list[int], cuts: tuple[float, float]
) -> None:
    array = np.array(labels)
    first, second = sorted(int(c * len(array)) for c in cuts)
    sizes = (first, second - first, len(array) - second)
    parts = stratified_split(array, sizes, "test")
    assert tuple(map(len, parts)) == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(array)))
    for part in parts:
        expected = np.bincount(array, minlength=5) * len(part) / len(array)
        assert np.abs(np.bincount(array[part], minlength=5) - expected).max() <= 3


def test_stratified_split_depends_on_the_purpose_and_shuffles() -> None:
    labels = np.repeat(np.arange(4), 50)
    first, again = (stratified_split(labels, (150, 50), "a") for _ in range(2))
    other = stratified_split(labels, (150, 50), "b")
    np.testing.assert_array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert set(np.bincount(labels[first[1]])) <= {12, 13}
    in_first_class = first[1][labels[first[1]] == 0]
    assert in_first_class.max() - in_first_class.min() > 20  # from the whole class


@given(text=st.lists(st.sampled_from(b"ab\n"), min_size=20, max_size=400).map(bytes))
def test_split_at_lines_cuts_at_line_ends_and_keeps_half_a_split(text: bytes) -> None:
    parts = [part.tobytes() for part in split_at_lines(np.frombuffer(text, np.uint8))]
    assert b"".join(parts) == text
    tenth = len(text) // 10
    places = [len(text) - 2 * tenth, len(text) - tenth]
    for part, behind, place in ((parts[0], parts[1], places[0]), (b"".join(parts[:2]), parts[2], places[1])):
        assert len(behind) >= tenth - tenth // 2
        within_reach = text[place : place + tenth // 2]
        assert len(part) == place + (within_reach.index(b"\n") + 1 if b"\n" in within_reach else 0)


@given(text=st.text("aé—𝄞", min_size=20, max_size=400), reach=st.integers(0, 60))
def test_split_at_lines_cuts_between_characters_without_line_ends(text: str, reach: int) -> None:
    text = text + "a" * reach
    content = text.encode()
    parts = [part.tobytes() for part in split_at_lines(np.frombuffer(content, np.uint8))]
    assert b"".join(parts) == content
    tenth = len(content) // 10
    if tenth < 8:  # a cut reaches half of it
        return
    assert "".join(part.decode() for part in parts) == text
    assert min(map(len, parts[1:])) >= tenth - 3


def test_split_at_lines_holds_out_little_of_a_long_text() -> None:
    for ahead, reached in ((20_000, True), (2**15 - 1, True), (2**15, False)):
        content = bytearray(b"x" * 1_000_000)
        content[len(content) - 2**16 + ahead] = ord("\n")
        train, _, test = split_at_lines(np.frombuffer(bytes(content), np.uint8))
        assert len(test) == (2**16 - ahead - 1 if reached else 2**16)  # a cut reaches half of the split
        assert len(train) == 1_000_000 - 2**16 - 2**14

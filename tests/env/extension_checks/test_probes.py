"""Probes of modules: samples, cuts of sequences, scrambled parameters and comparisons."""

import numpy as np
import pytest
import torch
from esper_env.extension_checks.probes import MOST_CUTS, cut_positions, has_dropout, is_close, scrambled, trial_samples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


@given(st.integers(2, 300))
def test_cut_positions_start_at_one_and_are_even(length):
    places = cut_positions(length)
    assert places[0] == 1
    assert places[-1] < length
    assert len(places) == min(length - 1, MOST_CUTS)
    gaps = np.diff([*places, length])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("count", "expected"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (5, [0, 1, 2])])
def test_trial_samples_repeat_few_samples(count, expected):
    assert trial_samples(torch.arange(count)).tolist() == expected


def test_scrambled_parameters_are_reproducible_and_away_from_zero():
    zeros = {"scale": torch.zeros(100)}
    assert torch.equal(scrambled(zeros)["scale"], scrambled(zeros)["scale"])
    assert scrambled(zeros)["scale"].abs().mean() > 0.1


def test_has_dropout_ignores_dropout_with_probability_zero():
    assert has_dropout(nn.Sequential(nn.Sequential(nn.Dropout2d(0.1))))
    assert not has_dropout(nn.Sequential(nn.Dropout(0.0), nn.Linear(1, 1)))


def test_is_close_allows_rounding_and_compares_nan_and_shape():
    x = torch.tensor([1000.0, torch.nan, 0.0])
    assert is_close(x + 0.01, x)
    assert not is_close(x + 1.0, x)
    assert not is_close(x.nan_to_num(), x)
    assert not is_close(x[None], x)

"""exp and tanh in compiled loops agree with NumPy's."""

import numpy as np
import pytest

pytest.importorskip("numba")
from esper_env.population.fused.compilation import OPTIONS
from esper_env.population.fused.functions import exp, tanh
from numba import njit

pytestmark = pytest.mark.numeric


@njit(**OPTIONS)
def all_exp(x, y):
    for j in range(len(x)):
        y[j] = exp(x[j])


@njit(**OPTIONS)
def all_tanh(x, y):
    for j in range(len(x)):
        y[j] = tanh(x[j])


def values(function, x):
    y = np.empty_like(x)
    function(x, y)
    return y


@pytest.mark.parametrize(("dtype", "largest", "error"), [(np.float32, 87, 1e-5), (np.float64, 700, 1e-13)])
def test_exp_and_tanh(dtype, largest, error):
    x = np.concatenate([np.linspace(-largest, largest, 9973), [0.0, -0.0, 1e-30]]).astype(dtype)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(values(all_exp, x), exact, rtol=error)
    np.testing.assert_allclose(values(all_tanh, x / 4), np.tanh(x.astype(np.float64) / 4), atol=error)


@pytest.mark.parametrize(("dtype", "largest"), [(np.float32, 87), (np.float64, 700)])
def test_arguments_that_are_too_large_or_not_numbers(dtype, largest):
    x = np.array([np.nan, np.inf, -np.inf, 2 * largest, -2 * largest], dtype)
    least, most = np.exp(np.array([-largest, largest], dtype))
    np.testing.assert_allclose(values(all_exp, x), [np.nan, most, least, most, least], rtol=1e-5)
    np.testing.assert_array_equal(values(all_tanh, x), np.array([np.nan, 1, -1, 1, -1], dtype))

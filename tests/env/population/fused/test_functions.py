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


@pytest.mark.parametrize(("dtype", "largest", "error"), [(np.float32, 87, 1e-5), (np.float64, 700, 1e-12)])
def test_exp_and_tanh(dtype, largest, error):
    x = np.concatenate([np.linspace(-largest, largest, 9973), np.geomspace(1e-30, 1, 997), [0.0, -0.0]]).astype(dtype)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(values(all_exp, x), exact, rtol=error)
    np.testing.assert_allclose(values(all_tanh, x / 4), np.tanh(x.astype(np.float64) / 4), rtol=error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arguments_that_are_huge_or_nan(dtype):
    x = np.array([np.nan, np.inf, 1e30, 2e3, -2e3, -1e30, -np.inf], dtype)
    np.testing.assert_array_equal(values(all_exp, x), [np.nan, np.inf, np.inf, np.inf, 0, 0, 0])
    np.testing.assert_array_equal(values(all_tanh, x), [np.nan, 1, 1, 1, -1, -1, -1])

"""Errors of training, which the command reports without loading PyTorch."""


class NonFiniteUpdateError(RuntimeError):
    """Training stopped after several non-finite updates in a row; the model holds its last good parameters."""

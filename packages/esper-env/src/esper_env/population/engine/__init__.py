"""Layouts of features, and batched forms of layers that run n networks at once."""

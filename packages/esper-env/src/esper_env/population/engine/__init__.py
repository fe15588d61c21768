"""Layouts of features, and batched forms of layers."""

"""Evaluation of networks with any subset of their seeds."""

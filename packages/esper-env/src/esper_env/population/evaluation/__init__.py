"""Scores of networks with any of their seeds switched on."""

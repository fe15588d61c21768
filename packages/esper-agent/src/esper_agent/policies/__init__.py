"""Policies without training: the heuristic and the baselines."""

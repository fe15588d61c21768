"""Policies that are not trained: the heuristic and the baselines."""

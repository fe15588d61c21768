"""The learning side: hosts, seeds and the population that trains them. It knows nothing of rewards or agents."""

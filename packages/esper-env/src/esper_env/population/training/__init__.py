"""Training of a shard: plan, working set, minibatches, steps."""

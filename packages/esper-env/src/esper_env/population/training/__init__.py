"""One epoch of training for a shard: what trains, on which minibatches, and in which steps."""

"""Events of growth: typed payloads, a hub that never gets in the way of training, sinks, and a reader."""

"""Settings of training: their declarations, what is checked, and the configuration files that hold them."""

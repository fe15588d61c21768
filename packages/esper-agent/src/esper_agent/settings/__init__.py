"""Settings of training, and the configuration files and NAME=VALUE pairs that set them."""

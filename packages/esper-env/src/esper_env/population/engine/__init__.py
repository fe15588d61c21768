"""How n networks run as one: layouts of features and batched forms of layers."""

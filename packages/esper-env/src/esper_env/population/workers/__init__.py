"""A population whose networks are spread over worker processes."""

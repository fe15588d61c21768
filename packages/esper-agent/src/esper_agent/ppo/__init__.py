"""The factored recurrent PPO."""

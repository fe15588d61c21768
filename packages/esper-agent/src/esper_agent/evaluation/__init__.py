"""Episodes played by a policy, their statistics, and tables and figures of them."""

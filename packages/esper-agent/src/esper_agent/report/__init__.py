"""What people look at: tables for the terminal and figures of training curves."""

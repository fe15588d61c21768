"""The ``esper`` command: one module per subcommand."""

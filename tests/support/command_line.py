"""The `esper` command in the process of the tests and in a child process."""

import signal

from esper_agent.cli.main import BAD_INPUT, main

#: A training run of two rollouts on the toy.
SMALL = ["--total-timesteps", "48", "--num-envs", "2", "--n-steps", "12", "--batch-size", "24", "--no-progress"]


def text_of(capsys):
    """Return standard output and standard error since the last call."""
    captured = capsys.readouterr()
    return captured.out, captured.err


def bad(arguments, capsys):
    """Run a command that must exit with code 2; return its standard error."""
    assert main(arguments) == BAD_INPUT
    out, err = text_of(capsys)
    assert out == ""
    assert "Traceback" not in err
    return err


def interruptible():
    """Restore the default SIGINT handler in a child, which inherits an ignored SIGINT from the test runner."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

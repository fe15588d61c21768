"""The `esper` command in the process of the tests, and in one of its own."""

import signal

from esper_agent.cli.main import BAD_INPUT, main

#: A training run of two rollouts on the toy.
SMALL = ["--total-timesteps", "48", "--num-envs", "2", "--n-steps", "12", "--batch-size", "24", "--no-progress"]


def text_of(capsys):
    """What was printed since the last look: standard output and standard error."""
    captured = capsys.readouterr()
    return captured.out, captured.err


def bad(arguments, capsys):
    """The one line of standard error of a command that has to fail with exit code 2."""
    assert main(arguments) == BAD_INPUT
    out, err = text_of(capsys)
    assert out == ""
    assert "Traceback" not in err
    return err


def interruptible():
    """For a child to run first: a test runner that ignores SIGINT, as in a shell's background, hands that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

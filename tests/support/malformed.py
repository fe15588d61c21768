"""Tables of malformed inputs and of the parts of their error messages."""

import pytest


def table(*rows):
    """Parameters ``what, error, says`` from rows of (id, input, error, value, expectation, remedy).

    The remedy is optional.
    """
    return pytest.mark.parametrize(
        ("what", "error", "says"), [pytest.param(what, error, says, id=name) for name, what, error, *says in rows]
    )


def lines(*rows):
    """Parameters ``what, says`` of commands, which end with an exit code instead of an exception."""
    return pytest.mark.parametrize(("what", "says"), [pytest.param(what, says, id=name) for name, what, *says in rows])


def assert_says(message, says):
    """Check that a message is one line with all parts in this order."""
    assert "\n" not in message
    position = 0
    for part in says:
        assert part in message[position:], f"{message!r} lacks {part!r}"
        position = message.index(part, position) + len(part)


def refused(call, error, says):
    """Check that ``call`` raises this error, with all parts in its message."""
    with pytest.raises(error) as caught:
        call()
    assert_says(str(caught.value), says)

"""Tables of malformed inputs: what is done, and what the error has to say about it."""

import pytest


def table(*rows):
    """Parameters ``what, error, says`` from rows of (id, what is done, error, value named, what was expected, remedy).

    The remedy is left out where the expected value says it all.
    """
    return pytest.mark.parametrize(
        ("what", "error", "says"), [pytest.param(what, error, says, id=name) for name, what, error, *says in rows]
    )


def lines(*rows):
    """Parameters ``what, says`` of commands, which end with an exit code instead of an error."""
    return pytest.mark.parametrize(("what", "says"), [pytest.param(what, says, id=name) for name, what, *says in rows])


def assert_says(message, says):
    """One line that says all of it, in this order."""
    assert "\n" not in message
    position = 0
    for part in says:
        assert part in message[position:], f"{message!r} lacks {part!r}"
        position = message.index(part, position) + len(part)


def refused(call, error, says):
    """``call`` raises this error, and its message says all of it."""
    with pytest.raises(error) as caught:
        call()
    assert_says(str(caught.value), says)

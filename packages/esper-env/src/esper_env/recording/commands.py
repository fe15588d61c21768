"""Events of the commands that the networks got."""

from __future__ import annotations

from typing import NamedTuple

from esper_env import telemetry as events
from esper_env.recording.step import Emissions, Names, StepRecord
from esper_env.rules.heads import HEAD_NAMES, HEAD_RELEVANCE, HEAD_VALUES, Head, Op

ILLEGAL, ROLLED_BACK = "it was not legal", "the governor rolled the network back"

#: Op -> the other heads that it reads.
_READ = {
    op.value: [(head, HEAD_NAMES[head]) for head in Head if HEAD_RELEVANCE[op, head] and head != Head.OP] for op in Op
}
_OPS = {op.value: op.name for op in Op}
_VALUE_NAMES = {head: [value.name for value in values] for head, values in HEAD_VALUES.items()}


class Request(NamedTuple):
    """An action other than WAIT. The arguments of an illegal one are unknown."""

    env: int
    op: str
    arguments: dict[str, str]


def requests(step: StepRecord, names: Names) -> list[Request]:
    """Return the actions of a step."""
    command, found = step.command, []
    ops, valid = command.requested_op.tolist(), command.valid.tolist()
    columns = {head: getattr(command, HEAD_NAMES[head]).tolist() for head in Head}
    for env in step.where(command.requested_op != Op.WAIT):
        heads = _READ[ops[env]] if valid[env] else []
        arguments = {name: _value_name(head, columns[head][env], names) for head, name in heads}
        found.append(Request(env, _OPS[ops[env]], arguments))
    return found


def issued(commands: list[Request]) -> Emissions:
    """Events of the actions themselves."""
    for env, op, arguments in commands:
        yield env, None, events.CommandIssued(op=op, arguments=arguments)


def outcomes(commands: list[Request], step: StepRecord) -> Emissions:
    """Events of their success or rejection."""
    for env, op, arguments in commands:
        if step.succeeded[env]:
            yield env, None, events.CommandSucceeded(op=op, arguments=arguments)
        else:
            yield env, None, events.CommandRejected(op=op, arguments=arguments, reason=_reason(step, env))


def _reason(step: StepRecord, env: int) -> str:
    if not step.command.valid[env]:
        return ILLEGAL
    if step.epoch.judgement.roll_back[env]:
        return ROLLED_BACK
    verdict = step.changes.gates.verdict(env)
    assert verdict is not None, "a legal action without a gate always succeeds"
    return verdict.message


def _value_name(head: Head, value: int, names: Names) -> str:
    if head == Head.SLOT:
        return names.slots[value]
    return names.blueprints[value] if head == Head.BLUEPRINT else _VALUE_NAMES[head][value]

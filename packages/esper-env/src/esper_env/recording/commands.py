"""What was asked of the networks, and what came of it."""

from __future__ import annotations

from typing import NamedTuple

from esper_env import telemetry as events
from esper_env.recording.step import Names, StepRecord, Told
from esper_env.rules.heads import HEAD_NAMES, HEAD_RELEVANCE, HEAD_VALUES, Head, Op

ILLEGAL, ROLLED_BACK = "it was not legal", "the governor rolled the network back"

#: Heads that an op reads besides itself.
_READ = {
    op.value: [(head, HEAD_NAMES[head]) for head in Head if HEAD_RELEVANCE[op, head] and head != Head.OP] for op in Op
}
_OPS = {op.value: op.name for op in Op}
_VALUE_NAMES = {head: [value.name for value in values] for head, values in HEAD_VALUES.items()}


class Asked(NamedTuple):
    """An action other than WAIT; of an illegal one only the op is known."""

    env: int
    op: str
    arguments: dict[str, str]


def asked(step: StepRecord, names: Names) -> list[Asked]:
    """The actions of a step."""
    command, found = step.asked, []
    ops, valid = command.requested_op.tolist(), command.valid.tolist()
    columns = {head: getattr(command, HEAD_NAMES[head]).tolist() for head in Head}
    for env in step.where(command.requested_op != Op.WAIT):
        heads = _READ[ops[env]] if valid[env] else []
        arguments = {name: _value_name(head, columns[head][env], names) for head, name in heads}
        found.append(Asked(env, _OPS[ops[env]], arguments))
    return found


def issued(commands: list[Asked]) -> Told:
    """That the actions arrived."""
    for env, op, arguments in commands:
        yield env, None, events.CommandIssued(op=op, arguments=arguments)


def outcomes(commands: list[Asked], step: StepRecord) -> Told:
    """That they took effect, or why they did not."""
    for env, op, arguments in commands:
        if step.succeeded[env]:
            yield env, None, events.CommandSucceeded(op=op, arguments=arguments)
        else:
            yield env, None, events.CommandRejected(op=op, arguments=arguments, reason=_reason(step, env))


def _reason(step: StepRecord, env: int) -> str:
    if not step.asked.valid[env]:
        return ILLEGAL
    if step.epoch.judgement.roll_back[env]:
        return ROLLED_BACK
    verdict = step.changes.gates.verdict(env)
    assert verdict is not None, "a legal action that no gate was asked about takes effect"
    return verdict.message


def _value_name(head: Head, value: int, names: Names) -> str:
    if head == Head.SLOT:
        return names.slots[value]
    return names.blueprints[value] if head == Head.BLUEPRINT else _VALUE_NAMES[head][value]

"""Programs of whole networks: training on a minibatch, and evaluation of configurations of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esper_env.population.fused import instructions as ins
from esper_env.population.fused.arena import GATE, HOST, Arena
from esper_env.population.fused.compiler import Features, Mode, Program
from esper_env.population.shard import Shard
from esper_env.rules.heads import Operator

_BLENDS = {Operator.ADD: ins.BLEND_ADD, Operator.MULTIPLY: ins.BLEND_MULTIPLY, Operator.GATE: ins.BLEND_GATE}
_TWO_INPUTS = (ins.RESIDUAL, ins.MIX, ins.EXCITE, ins.STRAIGHT, *_BLENDS.values())
#: For each input: its field, the flag for its gradient, and the operations that read it.
_INPUTS = (
    (ins.X, ins.NEW_X, range(ins.LOSS + 1)),
    (ins.Z, ins.NEW_Z, _TWO_INPUTS),
    (ins.GATE, ins.NEW_GATE, (ins.BLEND_GATE,)),
)
#: Numbers of the results of a training program.
MAIN, SHADOW = range(2)


class Seed(NamedTuple):
    """Properties of a seed that its program depends on."""

    blueprint: int
    operator: int
    isolated: bool = False  # it trains in isolation


class Code(NamedTuple):
    """A finished program."""

    program: NDArray[np.int64]  # (K, FIELDS)
    constants: NDArray[Any]  # (K, CONSTANTS)
    pieces: NDArray[np.int64]  # (P, 3) place, length and unit of the tensors that train
    memory: int  # working memory, in values
    scratch: int  # scratch memory, in values


#: The seeds of a network by slot, in action order.
Seeds = tuple[Seed | None, ...]


class Compiler:
    """Compiles the networks of a shard.

    Args:
        shard: the networks.
        arena: places of their tensors.
        input_shape: (C, H, W) of a sample.
    """

    def __init__(self, shard: Shard, arena: Arena, input_shape: tuple[int, int, int]) -> None:
        self._shard, self._arena, self._input_shape = shard, arena, input_shape
        self._dtype = arena.dtype

    def training_code(self, seeds: Seeds, samples: int, *, straight_through: bool) -> Code:
        """Return the program that trains on a minibatch: the main pass, the shadow pass, and their losses.

        Raises:
            NotCompilableError: a module has no kernel.
        """
        program, learn, fixed = Program(samples), Mode(training=True, parameters=True), Mode(training=False)
        z = None
        x = self._segment(program, 0, program.buffer(*self._input_shape), learn)
        for position, slot in enumerate(self._shard.execution_order):
            seed = seeds[slot]
            if seed is not None and straight_through and seed.isolated:
                detached = program.emit(ins.DETACH, x, program.buffer(*x[1:]))
                s = self._seed(program, slot, seed, detached, learn)
                y = program.emit(ins.STRAIGHT, x, program.buffer(*x[1:]), z=s.place)
            else:
                if seed is not None and seed.isolated and z is None:
                    z = program.emit(ins.DETACH, x, program.buffer(*x[1:]))
                y = x if seed is None or seed.isolated else self._blend(program, slot, seed, x, learn)
            x = self._segment(program, position + 1, y, learn)
            if z is not None:  # after the main pass, which updates the running statistics
                if seed is not None:
                    z = self._blend(program, slot, seed, z, Mode(training=True, parameters=seed.isolated))
                z = self._segment(program, position + 1, z, fixed)
        _loss(program, x, MAIN)
        if z is not None:
            _loss(program, z, SHADOW)
        pieces = list(self._arena.pieces(HOST, 0))
        for slot, seed in enumerate(seeds):
            if seed is not None:
                pieces += self._arena.pieces((slot, seed.blueprint), 1 + slot)
                if seed.operator == Operator.GATE:
                    pieces += self._arena.pieces((GATE, slot), 1 + slot)
        return self._finished(program, np.array(pieces, np.int64))

    def scoring_code(self, seeds: Seeds, masks: Sequence[int], wanted: Sequence[bool], samples: int) -> Code:
        """Return the program that evaluates configurations of seeds; result i belongs to ``masks[i]``.

        Bit k of a mask switches on the k-th slot in execution order. ``wanted`` marks configurations that need a loss.

        Raises:
            NotCompilableError: a module has no kernel.
        """
        program, order, fixed = Program(samples), self._shard.execution_order, Mode(training=False)

        def visit(position: int, x: Features, members: list[int]) -> None:
            x = self._segment(program, position, x, fixed)
            if position == len(order):
                z = program.memory((x.channels + 2) * samples)
                for member in members:
                    program.emit(ins.SCORE, x, x, z=z, index=member, flags=ins.WANTED if wanted[member] else 0)
                return
            size = program.size
            for on in (False, True):
                chosen = [member for member in members if bool(masks[member] >> position & 1) is on]
                seed = seeds[order[position]]
                if chosen:
                    y = self._blend(program, order[position], seed, x, fixed) if on and seed is not None else x
                    visit(position + 1, y, chosen)
                    program.release(size)

        visit(0, program.buffer(*self._input_shape), list(range(len(masks))))
        return self._finished(program, np.zeros((0, 3), np.int64))

    def _segment(self, program: Program, number: int, x: Features, mode: Mode) -> Features:
        return program.run(self._shard.segments[number], self._arena.segment(number), x, mode)

    def _seed(self, program: Program, slot: int, seed: Seed, x: Features, mode: Mode) -> Features:
        template = self._shard.seed_stack(slot, seed.blueprint).template
        return program.run(template, self._arena.tensors(slot, seed.blueprint), x, mode)

    def _blend(self, program: Program, slot: int, seed: Seed, x: Features, mode: Mode) -> Features:
        s, gate = self._seed(program, slot, seed, x, mode), 0
        if seed.operator == Operator.GATE:
            template = self._shard.gate_stack(slot).template
            gate = program.run(template, self._arena.tensors(GATE, slot), x, mode).place
        y = program.buffer(*x[1:])
        return program.emit(_BLENDS[Operator(seed.operator)], x, y, z=s.place, gate=gate, index=slot)

    def _finished(self, program: Program, pieces: NDArray[np.int64]) -> Code:
        lines, constants = program.arrays()
        lines[lines[:, ins.X] == 0, ins.FLAGS] &= ~ins.INPUT  # the samples, at place 0, need no gradient
        written: set[int] = set()
        for line in lines[::-1]:  # in the order of the backward pass
            for field, flag, readers in _INPUTS:
                if line[ins.OPERATION] in readers and line[field] not in written:
                    written.add(line[field])
                    line[ins.FLAGS] |= flag
        return Code(lines, constants.astype(self._dtype), pieces, program.most, program.scratch)


def _loss(program: Program, logits: Features, index: int) -> None:
    z = program.memory((logits.channels + 2) * program.samples)
    program.emit(ins.LOSS, logits, logits, z=z, index=index)

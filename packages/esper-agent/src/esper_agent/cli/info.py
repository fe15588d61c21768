"""``esper info``: tasks, action heads, blueprints with their parameter counts, and datasets on this disk."""

from __future__ import annotations

from typing import Any

import torch
from esper_env.data import data_folder
from esper_env.devices import resolve_device
from esper_env.hosts import flex_obstacle
from esper_env.population import host_builder
from esper_env.rules import HEAD_RELEVANCE, Head, Op, describe_head
from esper_env.seeds import offered_blueprints
from esper_env.tasks import TASKS, TaskConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from esper_agent.cli.commands import InfoSettings
from esper_agent.cli.data import dataset_places
from esper_agent.cli.progress import say
from esper_agent.evaluation.tables import print_table

#: Heading of the slots. The width of a Transformer is what the channels are in a CNN.
_SLOTS = "slots (channels or width)"
#: Columns of text that wraps.
_TEXTS = ("values", "read by", _SLOTS, "found")


def run_info(_settings: InfoSettings, console: Console) -> int:
    """Print the tables and the attention implementation that this machine uses, and return the exit code."""
    folder = data_folder()
    datasets = _table(escape(f"Datasets in {folder}"), "name", "found")
    for name, place in dataset_places(folder).items():
        datasets.add_row(name, escape(place))
    for table in (task_table(), head_table(), *blueprint_tables(), datasets):
        print_table(console, table)
        console.print()
    device = resolve_device("auto")
    obstacle = flex_obstacle(device)
    attention = f"scaled_dot_product_attention, the same mathematics, as {obstacle}"
    if obstacle is None:
        attention = f"PyTorch's flex attention, on {device}"
    say(console, f"flex_attention seeds: {attention}")
    return 0


def task_table() -> Table:
    """Return a table of the registered tasks."""
    table = _table("Tasks", "id", "data", "horizon", "host parameters", _SLOTS)
    for env_id, task in TASKS.items():
        host = _host(task)
        slots = ", ".join(f"{slot.slot_id} ({slot.channels})" for slot in host.slots)
        table.add_row(env_id, task.family, str(task.horizon), f"{parameters(host):,}", slots)
    return table


def head_table() -> Table:
    """Return a table of the heads of the action, in order."""
    table = _table("Action heads, in order", "head", "values", "read by")
    for head in Head:
        readers = [op.name for op in Op if HEAD_RELEVANCE[op, head]]
        table.add_row(head.name.lower(), describe_head(head), "every op" if head == Head.OP else ", ".join(readers))
    return table


def blueprint_tables() -> list[Table]:
    """Return a table for each kind of host: trainable parameters of each blueprint by the size of the slot."""
    widths: dict[str, set[int]] = {}
    for task in TASKS.values():
        host = _host(task)
        widths.setdefault(host.topology, set()).update(slot.channels for slot in host.slots)
    tables = []
    for topology, channels in widths.items():
        columns = sorted(channels)
        size = "width" if topology == "transformer" else "channels"
        table = _table(f"Blueprints for {topology} hosts: parameters by {size} of the slot", "blueprint")
        for width in columns:
            table.add_column(str(width), justify="right", no_wrap=True)
        for entry in offered_blueprints(topology):
            with torch.device("meta"):
                counts = [parameters(entry.factory(width)) for width in columns]
            table.add_row(f"{entry.name} {entry.value}", *(f"{count:,}" for count in counts))
        tables.append(table)
    return tables


def parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _host(task: TaskConfig) -> Any:
    """A host on the meta device, which needs no memory and draws no random numbers."""
    with torch.device("meta"):
        return host_builder(task)()


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        text = heading in _TEXTS
        table.add_column(heading, no_wrap=not text, overflow="fold")
    return table

"""Tasks: their settings, the registered tasks, and custom tasks."""

from esper_env.tasks.config import (
    TASK_KWARGS,
    TASKS,
    CNNSpec,
    TaskConfig,
    TransformerSpec,
    make_task,
    task_dict,
)

__all__ = [
    "TASKS",
    "TASK_KWARGS",
    "CNNSpec",
    "TaskConfig",
    "TransformerSpec",
    "make_task",
    "task_dict",
]

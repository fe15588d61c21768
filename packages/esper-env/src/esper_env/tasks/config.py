"""Settings of tasks, and the registered tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from os import PathLike, fspath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from esper_env.checks import NON_NEGATIVE, POSITIVE, Described, Interval, OneOf, check
from esper_env.data.catalog import Data, DataFamily, check_dataset
from esper_env.rules.gates import GATE_CONFIGS
from esper_env.rules.reward_config import REWARD_MODES, reward_config
from esper_env.suggestions import closest, did_you_mean, shown
from esper_env.tasks.choices import CAPTURE_MODES, ENGINES, ISOLATIONS, PRECISIONS

if TYPE_CHECKING:
    from torch import nn

    #: Function from the data of a task to a host (``esper_env.hosts.HostProtocol``).
    HostFactory = Callable[[Data], nn.Module]
else:
    HostFactory = Callable  # tasks are checked without PyTorch

#: Fields that only ``register_task`` sets; every other field is a keyword argument of ``gymnasium.make``.
_REGISTERED = ("env_id", "host", "family", "data", "auto_shard_size", "plateau_points")


@dataclass(frozen=True)
class CNNSpec:
    """Geometry of a convolutional host.

    With data of its own, a task takes ``in_channels``, ``image_size`` and ``classes`` from the data.

    Args:
        n_blocks: convolutional blocks.
        base_channels: channels of the first block; every further block doubles them.
        pool_layers: blocks, counted from the first, that end in a 2x2 pooling layer.
        kernel: side of the convolution kernels, odd.
        in_channels: channels of an image.
        image_size: height and width of an image in pixels.
        classes: classes of the data.
        surfaces: "post" for a slot behind each block, "both" for a slot in front of each pooling layer as well.
        norm_momentum: momentum of BatchNorm's running statistics.
    """

    n_blocks: Annotated[int, Interval(2)]
    base_channels: Annotated[int, POSITIVE]
    pool_layers: Annotated[int, NON_NEGATIVE]
    kernel: Annotated[int, POSITIVE]
    in_channels: Annotated[int, POSITIVE]
    image_size: Annotated[int, POSITIVE]
    classes: Annotated[int, Interval(2)] = 10
    surfaces: Annotated[str, OneOf(("post", "both"))] = "post"
    norm_momentum: Annotated[float, Interval(0, 1, "(]")] = 0.5

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TransformerSpec:
    """Geometry of a Transformer host that reads bytes; see ``esper_env.hosts.TransformerHost``.

    Args:
        width: size of the embeddings, a multiple of ``heads``.
        heads: attention heads.
        layers: attention layers, a multiple of ``segments``.
        context: bytes of a sequence.
        segments: parts of equally many layers, each with a slot behind it.
        expansion: hidden units of a layer's perceptron, as a multiple of the width; 0 for no perceptron.
    """

    width: Annotated[int, POSITIVE]
    heads: Annotated[int, POSITIVE]
    layers: Annotated[int, POSITIVE]
    context: Annotated[int, Interval(2)]
    segments: Annotated[int, POSITIVE]
    expansion: Annotated[int, NON_NEGATIVE] = 4

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TaskConfig:
    """One task. An episode has ``horizon`` epochs of ``batches_per_step`` minibatches of ``batch_size`` samples.

    Args:
        env_id: id for ``gymnasium.make``.
        host: geometry of the host, or a function from the data to the host, a ``torch.nn.Module``.
        family: family of datasets that fit the task, a value of ``DataFamily``.
        data: custom data, or a function that returns them; None for a dataset of the family.
        auto_shard_size: networks that run together on one CPU thread with ``shard_size="auto"``.
        plateau_points: accuracy points; a smaller smoothed gain counts as a plateau.
        dataset: name of a dataset; in a task on text also the path of a file or folder.
        data_dir: folder of the data files; None for ``$ESPER_DATA_DIR``, or ``esper`` in the user's cache folder.
        batch_size: samples of a minibatch.
        batches_per_step: minibatches of an epoch.
        horizon: epochs of an episode.
        host_lr: learning rate of the host.
        seed_lr: learning rate of the seeds and of their gates.
        slots: ids of the slots to keep; None for all slots of the host.
        max_seeds: seeds that a network holds at a time, committed ones included; None for one for each slot.
        gates: "permissive" or "strict".
        mask_gates: the masks also exclude actions whose gate would fail now.
        isolation: "shadow" or "straight_through": what a seed in TRAINING learns from.
        reward_mode: "accuracy", "sparse" or "contribution".
        reward_weights: weights that replace defaults of the reward mode.
        param_budget: added parameters at which the feature ``parameters_added`` reaches 1; they are not limited.
        device: "cpu", "cuda" or "cuda:N"; "auto" for the first CUDA device, or else the CPU.
        shard_size: networks that run together; "auto" for all on an accelerator and ``auto_shard_size`` on a CPU.
        precision: "float32", or "bfloat16" for automatic mixed precision.
        engine: "torch" to run networks with PyTorch, "fused" to run them in programs that numba compiles; "auto" for
            "fused" where the task and the installation allow it and several networks run together.
        capture: "auto" to capture training steps as CUDA graphs on a CUDA device, "off" to run them eagerly.

    Raises:
        ValueError: a value of another type or outside its range.
    """

    env_id: str
    host: Annotated[
        CNNSpec | TransformerSpec | HostFactory, Described("a CNNSpec, a TransformerSpec or a function of the data")
    ]
    _: KW_ONLY
    family: Annotated[str, OneOf(tuple(family.value for family in DataFamily))]
    data: Annotated[
        Data | Callable[[], Data] | None,
        Described("an ImageData, a TextData, or a function for one (`dataset` names a dataset or the path of a text)"),
    ] = None
    auto_shard_size: Annotated[int, POSITIVE]
    plateau_points: Annotated[float, POSITIVE] = 0.5
    dataset: Annotated[str, Described("'auto', the name of a dataset, or the path of a text")] = "auto"
    data_dir: Annotated[str | None, Described("a path")] = None
    batch_size: Annotated[int, Interval(2)]  # batch normalisation needs two samples
    batches_per_step: Annotated[int, POSITIVE]
    horizon: Annotated[int, POSITIVE]
    host_lr: Annotated[float, POSITIVE]
    seed_lr: Annotated[float, POSITIVE]
    slots: Annotated[tuple[str, ...] | None, Described("a list of slot ids such as ['r0c0', 'r0c1']")] = None
    max_seeds: Annotated[int, POSITIVE] | None = None
    gates: Annotated[str, OneOf(GATE_CONFIGS)] = "permissive"
    mask_gates: bool = True
    isolation: Annotated[str, OneOf(ISOLATIONS)] = "shadow"
    reward_mode: Annotated[str, OneOf(REWARD_MODES)] = "accuracy"
    reward_weights: Annotated[Mapping[str, float], Described("a mapping from names of weights to numbers")] = field(
        default_factory=dict
    )
    param_budget: Annotated[int, POSITIVE]
    device: Annotated[str, Described("'auto', 'cpu', 'cuda' or 'cuda:N'")] = "auto"
    shard_size: Annotated[int, POSITIVE] | Literal["auto"] = "auto"
    precision: Annotated[str, OneOf(PRECISIONS)] = "float32"
    engine: Annotated[str, OneOf(ENGINES)] = "auto"
    capture: Annotated[str, OneOf(CAPTURE_MODES)] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.data_dir, PathLike):
            object.__setattr__(self, "data_dir", fspath(self.data_dir))
        check(self)
        if self.data is None:
            check_dataset(self.dataset, DataFamily(self.family))
        elif self.dataset != "auto":
            raise ValueError(
                f"`dataset` is {shown(self.dataset)}; {self.env_id} has custom data and accepts no dataset: leave "
                "`dataset` out, or use a task without custom data, such as its base task"
            )
        if self.data_dir == "":
            raise ValueError("`data_dir` is ''; expected a path or None")
        reward_config(self.reward_mode, self.reward_weights)
        if self.slots is not None:
            object.__setattr__(self, "slots", tuple(self.slots))
            if not self.slots or len(set(self.slots)) < len(self.slots):
                raise ValueError(f"`slots` is {list(self.slots)}; expected at least one slot id, each once")
            if not isinstance(self.host, CNNSpec | TransformerSpec):
                raise ValueError(
                    f"`slots` is {list(self.slots)}; {self.env_id} has a custom host, which defines its slots"
                )


#: Keyword arguments of ``gymnasium.make`` and ``make_vec`` that change a task; all are JSON types.
TASK_KWARGS = tuple(item.name for item in fields(TaskConfig) if item.name not in _REGISTERED)


_CIFAR: dict[str, Any] = {
    "family": "cifar",
    "batch_size": 128,
    "batches_per_step": 24,
    "horizon": 75,
    "host_lr": 0.05,
    "seed_lr": 0.02,
    "auto_shard_size": 1,
}


def _cifar_host(n_blocks: int, base_channels: int, pool_layers: int, kernel: int, surfaces: str = "post") -> CNNSpec:
    return CNNSpec(n_blocks, base_channels, pool_layers, kernel, in_channels=3, image_size=32, surfaces=surfaces)


TASKS: dict[str, TaskConfig] = {
    task.env_id: task
    for task in (
        TaskConfig("Esper-CIFAR-v0", _cifar_host(3, 8, 3, 3), param_budget=25_000, **_CIFAR),
        TaskConfig("Esper-CIFAR-Deep-v0", _cifar_host(5, 8, 3, 3), param_budget=400_000, **_CIFAR),
        TaskConfig(
            "Esper-CIFAR-Impaired-v0", _cifar_host(3, 1, 3, 1), param_budget=2_000, **_CIFAR | {"host_lr": 0.15}
        ),
        TaskConfig("Esper-CIFAR-Surfaces-v0", _cifar_host(3, 8, 3, 3, "both"), param_budget=50_000, **_CIFAR),
        TaskConfig(
            "Esper-Digits-v0",
            CNNSpec(3, 4, 2, 1, in_channels=1, image_size=8),
            family="digits",
            batch_size=64,
            batches_per_step=17,
            horizon=40,
            host_lr=0.008,
            seed_lr=0.01,
            param_budget=6_500,
            auto_shard_size=32,
        ),
        TaskConfig(
            "Esper-Text-v0",
            TransformerSpec(width=32, heads=2, layers=2, context=64, segments=2, expansion=0),
            family="text",
            batch_size=16,
            batches_per_step=40,
            horizon=50,
            host_lr=0.2,
            seed_lr=0.5,
            param_budget=40_000,
            auto_shard_size=2,
            plateau_points=1.0,
        ),
        TaskConfig(
            "Esper-TinyStories-v0",
            TransformerSpec(width=64, heads=4, layers=4, context=128, segments=4, expansion=1),
            family="tinystories",
            batch_size=16,
            batches_per_step=16,
            horizon=75,
            host_lr=0.2,
            seed_lr=0.2,
            param_budget=150_000,
            auto_shard_size=1,
        ),
    )
}


def make_task(env_id: str, **overrides: Any) -> TaskConfig:
    """Return the task of an id with some of its settings replaced.

    Raises:
        ValueError: an unknown id, or a value outside its range.
        TypeError: an unknown keyword argument.
    """
    if not isinstance(env_id, str) or env_id not in TASKS:
        raise ValueError(
            f"environment {shown(env_id)} is not known; expected one of {', '.join(TASKS)}{did_you_mean(env_id, TASKS)}"
        )
    reject_unknown(overrides, TASK_KWARGS, TASKS[env_id], env_id)
    return replace(TASKS[env_id], **overrides)


def reject_unknown(names: Iterable[str], known: Sequence[str], task: TaskConfig, called: str) -> None:
    """Raise ``TypeError`` for the first of ``names`` that is not ``known`` as a keyword argument of ``called``."""
    for name in names:
        if name in known:
            continue
        hint = f"known: {', '.join(known)}"
        near = closest(name, known)
        if isinstance(task.host, CNNSpec | TransformerSpec) and hasattr(task.host, name):
            spec = f"register_task('Mine-v0', base={task.env_id!r}, host={task.host!r})"
            hint = f"it belongs to the host; register a custom task with another {name} in {spec}, see docs/tasks.md"
        elif near is not None:
            hint = f"did you mean {near!r}? {hint}"
        raise TypeError(f"{called} got an unexpected keyword argument {name!r}; {hint}")


def task_dict(task: TaskConfig) -> dict[str, Any]:
    """Return the settings of a task as JSON values, with the name of the class or function for a custom host."""
    values = {item.name: getattr(task, item.name) for item in fields(task) if item.name not in ("host", "data")}
    host: Any = task.host
    if isinstance(host, CNNSpec | TransformerSpec):
        values["host"] = asdict(host)
    else:
        name = getattr(host, "__qualname__", type(host).__qualname__)
        values["host"] = f"{getattr(host, '__module__', '?')}.{name}"
    values["reward_weights"] = dict(task.reward_weights)
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain

"""The registered tasks: every number of an environment in one frozen object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from esper_env.checks import is_finite, is_whole
from esper_env.data.catalog import DataFamily, check_dataset
from esper_env.rules.gates import GATE_CONFIGS
from esper_env.rules.reward_config import RewardMode, reward_config
from esper_env.suggestions import closest, did_you_mean, shown
from esper_env.tasks.choices import CAPTURE_MODES, ISOLATIONS, PRECISIONS

if TYPE_CHECKING:
    from torch import nn

    from esper_env.data.catalog import Data

    #: Builds a host (``esper_env.hosts.HostProtocol``) for the data that it is to learn.
    HostFactory = Callable[[Data], nn.Module]

#: Keyword arguments of ``gymnasium.make`` and ``make_vec`` that change a task; all are JSON types.
TASK_KWARGS = (
    "dataset",
    "data_dir",
    "batch_size",
    "batches_per_step",
    "horizon",
    "host_lr",
    "seed_lr",
    "slots",
    "max_seeds",
    "gates",
    "isolation",
    "reward_mode",
    "reward_weights",
    "param_budget",
    "device",
    "shard_size",
    "precision",
    "capture",
)


#: Settings that are one of a few names.
_CHOICES: dict[str, tuple[str, ...]] = {
    "family": tuple(family.value for family in DataFamily),
    "gates": GATE_CONFIGS,
    "isolation": ISOLATIONS,
    "reward_mode": tuple(mode.value for mode in RewardMode),
    "precision": PRECISIONS,
    "capture": CAPTURE_MODES,
}


@dataclass(frozen=True)
class CNNSpec:
    """Geometry of a convolutional host; channels and size of the images, and classes, follow the data it is given."""

    n_blocks: int
    base_channels: int
    pool_layers: int
    kernel: int
    in_channels: int
    image_size: int
    classes: int = 10
    surfaces: str = "post"
    norm_momentum: float = 0.5  # of BatchNorm's running statistics

    def __post_init__(self) -> None:
        _check_whole_fields(self)
        if not is_finite(self.norm_momentum) or not 0 < self.norm_momentum <= 1:
            raise ValueError(f"norm_momentum is {self.norm_momentum!r}; expected a number above 0, at most 1")


@dataclass(frozen=True)
class TransformerSpec:
    """Geometry of a Transformer host that reads bytes; see ``esper_env.hosts.TransformerHost``."""

    width: int
    heads: int
    layers: int
    context: int
    segments: int
    expansion: int = 4  # hidden units of a layer's perceptron, as a multiple of the width; 0: no perceptron

    def __post_init__(self) -> None:
        _check_whole_fields(self)


@dataclass(frozen=True)
class TaskConfig:
    """One task. An episode is ``horizon`` epochs of ``batches_per_step`` minibatches of ``batch_size`` samples."""

    env_id: str
    host: CNNSpec | TransformerSpec | HostFactory
    family: str  # of data sets that fit the task: a ``DataFamily``
    batch_size: int
    batches_per_step: int
    horizon: int
    host_lr: float
    seed_lr: float
    param_budget: int  # trainable scalars at which the parameter feature reaches 1
    auto_shard_size: int  # networks run together on one CPU thread when shard_size is "auto"
    plateau_points: float = 0.5  # a smoothed accuracy gain below this is a plateau
    dataset: str = "auto"
    data_dir: str | None = None
    slots: tuple[str, ...] | None = None  # ids of the slots to keep; None keeps all
    max_seeds: int | None = None  # seeds a network can hold; None: as many as it has slots
    gates: str = "permissive"
    isolation: str = "shadow"
    reward_mode: str = "accuracy"
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    device: str = "auto"
    shard_size: int | str = "auto"
    precision: str = "float32"
    capture: str = "auto"
    data: Data | Callable[[], Data] | None = None  # in place of a data set of the family

    def __post_init__(self) -> None:
        for name in ("batch_size", "batches_per_step", "horizon", "param_budget", "auto_shard_size"):
            value = getattr(self, name)
            if not is_whole(value, least=1):
                raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; batch normalisation needs at least 2 samples")
        for name in ("host_lr", "seed_lr"):
            value = getattr(self, name)
            if not is_finite(value) or value <= 0:
                raise ValueError(f"{name} is {value!r}; expected a positive number")
        if not is_finite(self.plateau_points) or self.plateau_points <= 0:
            raise ValueError(f"plateau_points is {self.plateau_points!r}; expected a positive number")
        if self.shard_size != "auto" and not is_whole(self.shard_size, least=1):
            raise ValueError(f"shard_size is {self.shard_size!r}; expected 'auto' or a whole number of at least 1")
        if not isinstance(self.host, CNNSpec | TransformerSpec) and not callable(self.host):
            raise TypeError(f"host is {self.host!r}; expected a CNNSpec, a TransformerSpec or a function of the data")
        if self.data is not None and not callable(self.data) and not hasattr(self.data, "classes"):
            named = isinstance(self.data, str | PathLike)
            remedy = (
                f"; a data set, or in a task on text a file, is named by dataset={str(self.data)!r}" if named else ""
            )
            raise TypeError(
                f"data is {shown(self.data)}; expected an ImageData or a TextData, or a function for one{remedy}"
            )
        for name, known in _CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        if self.data is not None and self.dataset != "auto":
            raise ValueError(
                f"dataset is {shown(self.dataset)}; {self.env_id} has data of its own and takes no data set: leave "
                "dataset out, or take a task without data of its own, such as the one that this was registered from"
            )
        if self.data is None:
            check_dataset(self.dataset, DataFamily(self.family))
        if not isinstance(self.device, str):
            raise ValueError(f"device is {self.device!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
        if self.data_dir is not None and (self.data_dir == "" or not isinstance(self.data_dir, str | PathLike)):
            raise ValueError(f"data_dir is {self.data_dir!r}; expected a path or None")
        if not isinstance(self.reward_weights, Mapping):
            raise ValueError(f"reward_weights is {self.reward_weights!r}; expected weights by name")
        reward_config(self.reward_mode, self.reward_weights)
        if self.max_seeds is not None and not is_whole(self.max_seeds, least=1):
            raise ValueError(f"max_seeds is {self.max_seeds!r}; expected None or a whole number of at least 1")
        if self.slots is not None:
            object.__setattr__(self, "slots", _slot_list(self.slots))
            if not isinstance(self.host, CNNSpec | TransformerSpec):
                raise ValueError(f"slots is {self.slots!r}; {self.env_id} has a host of its own, with slots of its own")


def _check_whole_fields(spec: CNNSpec | TransformerSpec) -> None:
    for item in fields(spec):
        value = getattr(spec, item.name)
        if item.type == "int" and not is_whole(value):
            raise ValueError(f"{item.name} is {value!r}; expected a whole number")


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")


def _slot_list(slots: object) -> tuple[str, ...]:
    """Slot ids as a tuple; ``ValueError`` unless they are a list of names, none twice."""
    names = tuple(slots) if isinstance(slots, list | tuple) else ()
    if not isinstance(slots, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"slots is {slots!r}; expected a list of slot ids such as ['r0c0', 'r0c1']")
    if not names:
        raise ValueError("slots is empty; an environment needs at least one slot")
    if len(set(names)) < len(names):
        raise ValueError(f"slots is {slots!r}; it names a slot twice")
    return names


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
    """The task of an id with some of its numbers replaced.

    Raises:
        ValueError: an unknown id, or a value that makes no sense.
        TypeError: a keyword argument that no task has.
    """
    if not isinstance(env_id, str) or env_id not in TASKS:
        raise ValueError(
            f"environment {env_id!r} is not known; expected one of {', '.join(TASKS)}{did_you_mean(env_id, TASKS)}"
        )
    complaint = f"{env_id} has no keyword argument"
    refuse_of_host(overrides, TASKS[env_id], complaint)
    refuse_unknown(overrides, TASK_KWARGS, complaint)
    return replace(TASKS[env_id], **overrides)


def refuse_unknown(names: Iterable[str], known: Sequence[str], complaint: str) -> None:
    """``TypeError`` for the first of the names that is not known, with the closest one that is."""
    for name in names:
        if name not in known:
            near = closest(name, known)
            hint = f"did you mean {near!r}? " if near else ""
            raise TypeError(f"{complaint} {name!r}; {hint}known: {', '.join(known)}")


def refuse_of_host(given: Mapping[str, Any], task: TaskConfig, complaint: str) -> None:
    """``TypeError`` for a field of the host's spec among settings of the task, with the spec that would have it."""
    spec = task.host
    if not isinstance(spec, CNNSpec | TransformerSpec):
        return
    numbers = {item.name: getattr(spec, item.name) for item in fields(spec)}
    for name in given:
        if name in numbers:
            wanted = ", ".join(f"{field}={shown(number)}" for field, number in (numbers | {name: given[name]}).items())
            raise TypeError(
                f"{complaint} {name!r}: it belongs to the host; give it to a task of your own with "
                f"register_task('Mine-v0', base={task.env_id!r}, host={type(spec).__name__}({wanted})), see "
                "docs/tasks.md"
            )


def task_dict(task: TaskConfig) -> dict[str, Any]:
    """A task's numbers as JSON types, for reports and checkpoints."""
    numbers = {item.name: getattr(task, item.name) for item in fields(task) if item.name not in ("host", "data")}
    numbers["host"] = _host_dict(task.host)
    numbers["slots"] = list(task.slots) if task.slots is not None else None
    numbers["reward_weights"] = dict(task.reward_weights)
    return numbers


def _host_dict(host: Any) -> dict[str, Any] | str:
    """The geometry of a host; of a user's own, what makes it."""
    if isinstance(host, CNNSpec | TransformerSpec):
        return {item.name: getattr(host, item.name) for item in fields(host)}
    return f"{getattr(host, '__module__', '?')}.{getattr(host, '__qualname__', type(host).__qualname__)}"

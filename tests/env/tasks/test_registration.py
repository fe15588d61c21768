"""Custom tasks: other settings, custom data, a custom host."""

import re
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from esper_env import ENV_IDS, CNNSpec, ImageData, TextData, TransformerSpec, register_task, unregister_task
from esper_env.data.images import SPLITS
from esper_env.hosts import SegmentedHost, SlotSpec
from esper_env.tasks import config as tasks
from torch import nn

SMALL = {"batch_size": 4, "batches_per_step": 2, "horizon": 3, "device": "cpu"}


pytestmark = pytest.mark.usefixtures("own_tables")


def blobs(classes=3, size=8, channels=2):
    rng = np.random.default_rng(0)
    parts = []
    for count in (60, 30, 30):
        labels = rng.integers(classes, size=count)
        images = rng.integers(0, 60, (count, channels, size, size)) + 60 * labels[:, None, None, None]
        parts += [images.astype(np.uint8), labels.astype(np.int64)]
    return ImageData(
        "blobs", classes, *parts, mean=(0.5,) * channels, std=(0.25,) * channels, crop_padding=0, flip=False
    )


def played(env_id, **kwargs):
    """Play an episode of random growth; return the environment and the last info."""
    env = gymnasium.make(env_id, **kwargs)
    env.reset(seed=0)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        *_, ended, _, info = env.step(env.unwrapped.sample_valid_actions(rng))
    env.close()
    return env, info


def test_register_task_replaces_settings():
    task = register_task("Mine-v0", **SMALL)
    assert task == tasks.TASKS["Mine-v0"]
    assert (task.horizon, task.family) == (3, "digits")
    assert gymnasium.spec("Mine-v0").kwargs == {"env_id": "Mine-v0"}
    env, _ = played("Mine-v0", horizon=2)
    assert env.unwrapped.task.horizon == 2
    assert env.unwrapped.dataset_name == "digits"
    envs = gymnasium.make_vec("Mine-v0", num_envs=2)
    assert envs.unwrapped.task.horizon == 3
    envs.close()


def test_replaced_and_unregistered_tasks_stay_in_environments_that_exist():
    register_task("Mine-v0", **SMALL)
    with pytest.raises(ValueError, match="'Mine-v0' is already registered; choose another id, or pass replace=True"):
        register_task("Mine-v0", **SMALL)
    old = gymnasium.make("Mine-v0")
    register_task("Mine-v0", base="Mine-v0", horizon=5, replace=True)
    new = gymnasium.make("Mine-v0")
    assert (new.unwrapped.task.horizon, new.unwrapped.task.batch_size) == (5, SMALL["batch_size"])
    unregister_task("Mine-v0")
    with pytest.raises(gymnasium.error.NameNotFound):
        gymnasium.make("Mine-v0")
    for env, horizon in ((old, 3), (new, 5)):
        env.reset(seed=0)
        env.unwrapped.set_state(env.unwrapped.get_state())
        over, steps = False, 0
        while not over:
            *_, over, _, _ = env.step(np.zeros(8, dtype=np.int64))
            steps += 1
        assert steps == horizon
        env.close()
    register_task("Mine-v0", **SMALL)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Esper-Digits-v0", "'Esper-Digits-v0' belongs to the package and cannot be unregistered"),
        ("CartPole-v1", "'CartPole-v1' is not a registered task; expected one of Mine-v0"),
        ("mine-v0", "'mine-v0' is not a registered task; expected one of Mine-v0; did you mean 'Mine-v0'"),
        (["Mine-v0"], r"\['Mine-v0'\] is not a registered task"),
    ],
)
def test_unregister_task_rejects_other_ids(env_id, message):
    register_task("Mine-v0", **SMALL)
    before = dict(tasks.TASKS), set(gymnasium.registry)
    with pytest.raises(ValueError, match=message):
        unregister_task(env_id)
    assert (dict(tasks.TASKS), set(gymnasium.registry)) == before


@pytest.mark.parametrize("env_id", [*ENV_IDS, "CartPole-v1"])
def test_only_custom_tasks_can_be_replaced(env_id):
    before = dict(tasks.TASKS), dict(gymnasium.registry)
    with pytest.raises(ValueError, match=f"'{env_id}' is already registered; choose another id$"):
        register_task(env_id, replace=True, **SMALL)
    assert (dict(tasks.TASKS), dict(gymnasium.registry)) == before


@pytest.mark.parametrize("lazily", [False, True])
def test_make_accepts_custom_images(lazily):
    """The host follows the data: classes, channels and size."""
    data = blobs()
    register_task("Blobs-v0", data=(lambda: data) if lazily else data, **SMALL)
    env, _ = played("Blobs-v0")
    assert env.unwrapped.dataset_name == "blobs"
    # 1x1 convolutions 2*4 + 4*8 + 8*16, BatchNorm 2*28, linear 17*3
    assert env.unwrapped.host_parameters == 8 + 32 + 128 + 56 + 51


def test_field_of_the_spec_is_rejected_with_the_spec_to_use():
    said = r"Esper-Text-v0 got an unexpected keyword argument 'context'; .* host=(TransformerSpec.*\))\), see docs/"
    with pytest.raises(TypeError, match=said) as caught:
        gymnasium.make("Esper-Text-v0", context=96)
    spec = re.search(said, str(caught.value)).group(1)
    assert eval(spec, {"TransformerSpec": TransformerSpec}) == tasks.TASKS["Esper-Text-v0"].host
    with pytest.raises(TypeError, match="argument 'context'; known: "):  # a host of images has none either
        gymnasium.make("Esper-Digits-v0", context=96)


def test_custom_text_on_a_transformer():
    text = np.frombuffer(b"a tree is a tree is a tree. " * 40, dtype=np.uint8)
    register_task(
        "Trees-v0",
        host=TransformerSpec(width=8, heads=2, layers=2, context=8, segments=2),
        data=TextData("trees", text, text[:200], text[:200]),
        **SMALL,
    )
    env, info = played("Trees-v0")
    assert env.unwrapped.slot_ids == ("r0c0", "r0c1")
    assert info["val_bits_per_byte"] == pytest.approx(info["val_loss"] / np.log(2))


class Wide(SegmentedHost):
    """One convolution, a slot, and a linear layer."""

    topology = "cnn"

    def __init__(self, data):
        super().__init__()
        channels, height, width = data.image_shape
        self.segments = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, 5, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Flatten(), nn.Linear(5 * height * width, data.classes)),
            ]
        )
        self.slots = (SlotSpec("r0c0", 5, "hidden", 0, 0, 0, (5, height, width)),)
        self.execution_order = (0,)


@pytest.mark.parametrize("shards", [{}, {"shard_size": 1}, {"shard_size": 1, "auto_shard_size": 1}])
def test_make_accepts_a_custom_host(shards):
    register_task("Wide-v0", host=Wide, data=blobs(), **SMALL, **shards)
    env, info = played("Wide-v0")
    assert env.unwrapped.host_parameters == 2 * 5 * 9 + 5 + 5 * 64 * 3 + 3
    assert np.isfinite(info["test_accuracy"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"env_id": "CartPole-v1"}, ValueError, "'CartPole-v1' is already registered"),
        ({"env_id": "not an id"}, gymnasium.error.Error, "Malformed"),
        ({"env_id": ["a"]}, TypeError, r"the id of a task is \['a'\]; expected a string such as 'Mine-v0'"),
        ({"base": "esper-text-v0"}, ValueError, r"`base` is .*; expected one of .* mean 'Esper-Text-v0'\?"),
        ({"family": "nope", "data": blobs()}, ValueError, "`family` is 'nope'; expected one of 'cifar', 'digits', "),
        ({"kernel": 3}, TypeError, r"argument 'kernel'; it belongs to the host; .*host=CNNSpec\("),
        ({"horizons": 3}, TypeError, "unexpected keyword argument 'horizons'; did you mean 'horizon'"),
        ({"horizon": 0}, ValueError, "`horizon` is 0"),
        ({"plateau_points": "x"}, ValueError, "`plateau_points` is 'x'"),
        ({"data": blobs(), "dataset": "digits"}, ValueError, "'digits'; Mine-v0 has custom data .*: leave `dataset` o"),
        ({"data": "book.txt"}, ValueError, "`data` is 'book.txt'; expected an ImageData, a TextData, or a function"),
        ({"host": TransformerSpec(7, 2, 2, 8, 2)}, ValueError, "width is 7, which 2 heads do not divide"),
        ({"host": CNNSpec(3, 4, 9, 1, 1, 8)}, ValueError, "pool_layers is 9; expected 0 to n_blocks = 3"),
        ({"host": "cnn"}, ValueError, "`host` is 'cnn'; expected a CNNSpec, a TransformerSpec or a function"),
        ({"host": Wide, "slots": ["r0c0"]}, ValueError, r"`slots` is \['r0c0'\]; Mine-v0 has a custom host, which de"),
        ({"slots": ["r0c0", "r0c0"]}, ValueError, "expected at least one slot id, each once"),
    ],
)
def test_register_task_rejects_bad_values_and_registers_nothing(changes, error, message):
    before = dict(tasks.TASKS), set(gymnasium.registry)
    with pytest.raises(error, match=message):
        register_task(**({"env_id": "Mine-v0"} | changes))
    assert (dict(tasks.TASKS), set(gymnasium.registry)) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": CNNSpec(3, 4, 2, 1, 1, 8), "base": "Esper-Text-v0"}, "the host sees images and grammar is a text"),
        ({"host": TransformerSpec(8, 2, 2, 8, 2)}, "the host reads sequences and digits is made of images"),
        ({"data": lambda: torch.zeros(3)}, "the data of Mine-v0 is a tensor"),
        ({"data": lambda: {}["x"]}, r"the data function of Mine-v0 fails \(KeyError: 'x'\); expected a fun"),
        ({"data": lambda: Path("/no/such").read_bytes()}, r"data function of Mine-v0 fails \(FileNotFoundError: \[E"),
        ({"host": lambda _data: 3}, "the host of Mine-v0 for the data digits is 3; expected a torch.nn.Module"),
        ({"data": blobs(size=4), "host": CNNSpec(3, 4, 2, 1, 1, 8)}, "pools shrink a 4x4 image below 2x2"),
    ],
)
def test_make_rejects_mismatched_host_and_data(fields, message):
    register_task("Mine-v0", **SMALL, **fields)
    with pytest.raises((ValueError, TypeError), match=message):
        gymnasium.make("Mine-v0")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (lambda: TransformerSpec(32.0, 2, 2, 8, 2), "`width` is 32.0; expected a positive integer"),
        (lambda: CNNSpec(3, 4, 2, 1, 1, 8, classes=1), "`classes` is 1; expected an integer of at least 2"),
        (lambda: CNNSpec(1, 4, 0, 1, 1, 8), "`n_blocks` is 1; expected an integer of at least 2"),
        (lambda: CNNSpec(3, 4, 2, 1, 1, 8, surfaces="pre"), "`surfaces` is 'pre'; expected one of 'post', 'both'"),
        (lambda: TransformerSpec(8, 2, 2, 1, 1), "`context` is 1; expected an integer of at least 2"),
        (lambda: CNNSpec(3, 4, 2, 1, 1, 8, norm_momentum=0.0), "`norm_momentum` is 0.0; expected a number in"),
    ],
)
def test_specs_reject_values_out_of_range(spec, message):
    with pytest.raises(ValueError, match=message):
        spec()


def test_standard_blueprints_fit_widths_not_divisible_by_four():
    text = np.frombuffer(b"a tree is a tree is a tree. " * 40, dtype=np.uint8)
    host = TransformerSpec(width=6, heads=2, layers=2, context=8, segments=2)
    register_task("Narrow-v0", host=host, data=TextData("trees", text, text[:200], text[:200]), **SMALL)
    for name in ("norm", "attention", "lora", "lora_large", "mlp_small", "mlp", "flex_attention"):
        env = gymnasium.make("Narrow-v0")
        env.reset(seed=0, options={"topology": {"r0c1": name}})
        *_, info = env.step(np.zeros(8, dtype=np.int64))
        assert info["parameters_added"] > 0
        env.close()


def test_make_rejects_a_host_that_draws_from_numpy():
    class Drawn(Wide):
        def __init__(self, data):
            super().__init__(data)
            self.segments[0][0].weight.data += float(np.random.default_rng().random())

    register_task("Drawn-v0", host=Drawn, data=blobs(), **SMALL)
    with pytest.raises(ValueError, match=r"a Drawn built twice from the same seed has other values in segments.0.0.we"):
        gymnasium.make("Drawn-v0")


def rectangular(height, width):
    square = blobs(size=max(height, width))
    parts = {f"{split}_images": getattr(square, f"{split}_images")[:, :, :height, :width] for split in SPLITS}
    return replace(square, crop_padding=1, flip=True, **parts)


@pytest.mark.numeric
@pytest.mark.usefixtures("float64_networks")
@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (9, 8)])
@pytest.mark.parametrize("auto_shard_size", [1, 2], ids=["alone", "together"])
def test_images_need_not_be_square(height, width, auto_shard_size):
    register_task("Oblong-v0", data=rectangular(height, width), auto_shard_size=auto_shard_size, **SMALL)
    losses = []
    for num_envs in (1, 2):
        envs = gymnasium.make_vec("Oblong-v0", num_envs=num_envs, shard_size=min(num_envs, auto_shard_size))
        envs.reset(seed=0, options={"topology": {"r0c0": "conv_light", "r0c1": "attention"}})
        *_, infos = envs.step(np.zeros((num_envs, 8), dtype=np.int64))
        losses.append(infos["val_loss"][0])
        envs.close()
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def fails(_data):
    raise RuntimeError("no such file")


class Inplace(Wide):
    """Host whose second segment rectifies the slot's features in place."""

    def __init__(self, data):
        super().__init__(data)
        self.segments = nn.ModuleList([self.segments[0][0], nn.Sequential(nn.ReLU(inplace=True), *self.segments[1])])


class Rectified(Inplace):
    """The same host with a first ReLU, so that the second changes no value."""

    def __init__(self, data):
        super().__init__(data)
        self.segments = nn.ModuleList([nn.Sequential(self.segments[0], nn.ReLU()), self.segments[1]])


class WrongLinear(Wide):
    def __init__(self, data):
        super().__init__(data)
        self.segments[1][1] = nn.Linear(99, 3)


class Frozen(Wide):
    def __init__(self, data):
        super().__init__(data)
        self.segments[0][0].weight.requires_grad_(False)


class Recurrent(nn.Module):
    """Module that torch.func.vmap does not support."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x.flatten(1, 2))[0].view(x.shape)


class Unmapped(Wide):
    def __init__(self, data):
        super().__init__(data)
        self.segments[0] = nn.Sequential(self.segments[0], Recurrent())


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (fails, r"the host of Odd-v0 cannot be built from the data blobs \(RuntimeError: no such file\)"),
        (nn.Flatten(), "the host of Odd-v0 cannot be built from the data blobs"),
        (Inplace, "segment 1 of the host Inplace writes into its input"),
        (Rectified, "segment 1 of the host Rectified writes into its input"),
        (WrongLinear, r"segment 1 of the host WrongLinear cannot run on \(3, 5, 8, 8\) torch.float32 \(mat1 and"),
        (
            Frozen,
            r"a Frozen has frozen, complex or lazy parameters \(segments.0.0.weight\); every parameter is trained",
        ),
        (Unmapped, r"the host Unmapped cannot be trained for many networks at once.*register the task with auto_shard"),
    ],
)
def test_make_rejects_unusable_hosts(host, message):
    register_task("Odd-v0", host=host, data=blobs(), **SMALL)
    with pytest.raises(ValueError, match=message):
        gymnasium.make("Odd-v0")


def test_unbatchable_host_runs_stand_alone():
    register_task("Alone-v0", host=Unmapped, data=blobs(), auto_shard_size=1, **SMALL)
    _, info = played("Alone-v0")
    assert np.isfinite(info["test_accuracy"])


def test_registration_leaves_the_default_generator_alone():
    state = torch.default_generator.get_state()
    register_task("Mine-v0", host=CNNSpec(2, 4, 1, 3, in_channels=1, image_size=8))
    assert torch.equal(torch.default_generator.get_state(), state)

"""What is saved is the whole network, or nothing is."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from residuum import ResNet, ResNetConfig, WeightsError, create, freeze, load, optimize_for_inference, recompute, save
from residuum.preprocessing import Preprocessing
from residuum.weights.files import read_metadata

CONFIG = ResNetConfig(block="basic", depths=(1, 1), widths=(8, 16), stem_width=8, num_classes=5)
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_classes_and_preprocessing_come_back_and_go_along_when_saved_again(tmp_path):
    preprocessing = Preprocessing(3, (32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.0, "bicubic")
    save(create(CONFIG), tmp_path / "a", classes=list("abcde"), preprocessing=preprocessing, epoch=3)
    model = load(tmp_path / "a")
    assert not model.training
    assert model.classes == tuple("abcde")
    assert model.preprocessing == preprocessing
    assert read_metadata(tmp_path / "a")["epoch"] == 3
    save(model, tmp_path / "b")
    assert load(tmp_path / "b").classes == tuple("abcde")


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, AveragedModel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))]
)
def test_wrappers_are_taken_off(tmp_path, wrap):
    model = create(CONFIG).eval()
    save(wrap(model), tmp_path / "x")
    assert torch.equal(load(tmp_path / "x")(X), model(X))


def compiled_stage(model):
    model.layer1 = torch.compile(model.layer1)


def new_head(model):
    model.fc = nn.Linear(model.fc.in_features, 7)


def no_head(model):
    model.fc = nn.Identity()


def grey_stem(model):
    model.conv1 = nn.Conv2d(1, 8, 7, 2, 3, bias=False)


@pytest.mark.parametrize(
    "change", [compiled_stage, new_head, no_head, grey_stem, freeze, lambda m: recompute(m, "block"),
               nn.SyncBatchNorm.convert_sync_batchnorm, lambda m: m.to(memory_format=torch.channels_last)]
)  # fmt: skip
def test_what_the_config_can_tell_is_saved_truthfully(tmp_path, change):
    model = create(CONFIG)
    model.classes = tuple("abcde")
    model = change(model) or model
    save(model, tmp_path / "x")
    again = load(tmp_path / "x")
    assert again.config.num_classes == (0 if change is no_head else 7 if change is new_head else 5)
    assert (again.classes is None) is (change in (no_head, new_head))
    x = X[:, : again.config.in_channels]
    if change not in (compiled_stage, nn.SyncBatchNorm.convert_sync_batchnorm):  # the one takes long, the other a GPU
        assert torch.allclose(again(x), model.eval()(x), atol=1e-5)


def sequential_head(model):
    model.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(model.fc.in_features, 5))


def pruned(model):
    prune.l1_unstructured(model.layer1[0].conv1, "weight", 0.5)


def parametrised(model):
    parametrizations.weight_norm(model.layer1[0].conv1)


def hooked(model):
    model.layer1.register_forward_hook(lambda module, args, output: output * 2)


def hooked_before(model):
    model.layer1.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def no_pool(model):
    model.maxpool = nn.Identity()


def other_activation(model):
    model.act1 = nn.GELU()


def other_stride(model):
    model.conv1.stride = (1, 1)


def other_epsilon(model):
    model.bn1.eps = 0.1


def own_forward(model):
    model.forward = lambda x: x


def extra_tensor(model):
    model.extra = nn.Linear(2, 2)


def to_meta(model):
    model.to("meta")


def to_float8(model):
    model.to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    "change",
    [sequential_head, pruned, parametrised, hooked, hooked_before, no_pool, other_activation, other_stride,
     other_epsilon, own_forward, extra_tensor, to_meta, to_float8],
)  # fmt: skip
def test_what_no_file_can_carry_is_refused_before_anything_is_written(tmp_path, change):
    model = create(CONFIG)
    change(model)
    with pytest.raises(WeightsError) as caught:
        save(model, tmp_path / "x")
    assert len(str(caught.value)) <= 500
    assert not list(tmp_path.iterdir())


class Own(ResNet):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "make", [lambda: optimize_for_inference(create(CONFIG)), lambda: nn.Linear(2, 2), lambda: Own(CONFIG)]
)
def test_what_is_no_resnet_is_not_saved(tmp_path, make):
    with pytest.raises(WeightsError):
        save(make(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"classes": ["a", "b"]}, "2 names of classes, but the network has 5"),
        ({"classes": "abcde"}, "must be a list of names"),
        ({"classes": [1, 2, 3, 4, 5]}, "must be a list of names"),
        ({"preprocessing": Preprocessing(1, (8, 8), (0.0,), (1.0,), 0.0)}, "1 channels, but the network 3"),
        ({"config": 3}, "config is written by residuum itself"),
        ({"extra": object()}, "not JSON serializable"),
        ({"extra": "x" * 10**7}, "characters long"),
    ],
)
def test_notes_that_load_would_refuse_are_not_written(tmp_path, said, says):
    with pytest.raises(WeightsError, match=says):
        save(create(CONFIG), tmp_path / "x", **said)
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_numbers(tmp_path):
    save(create(CONFIG), tmp_path / "x")
    before = torch.get_rng_state()
    load(tmp_path / "x")
    assert torch.equal(torch.get_rng_state(), before)

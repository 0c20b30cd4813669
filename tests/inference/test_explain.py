"""Explanations: the maps are what the methods say, follow the weights, and lie where the class is."""

import copy
import gc

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.networks import relative, scramble

import residuum
from residuum import Preprocessing, create, explain, freeze
from residuum.data.catalog import scan
from residuum.data.settings import DataSettings
from residuum.data.sources import normalise, open_dataset
from residuum.errors import ConfigError, DataError, MissingExtraError, WeightsError
from residuum.inference.explanations import explain_files

CLASSES = ("cat", "dog", "a fox, red", "gnu", "hen")
FAMILIES = [
    "resnet18", "resnet50", "resnet50d", "resnext50_32x4d", "seresnet50", "ecaresnet26t", "resnetblur18", "resnetaa50",
    "resnetrs50", "resnet50_gn", "cifar_resnet20", "cifar_preresnet20", "resnetv2_50", "resnetv2_50x1_bit",
]  # fmt: skip


def network(name="resnet18", **fields):
    torch.manual_seed(0)
    model = create(name, **{"width": 0.25, "num_classes": len(CLASSES), **fields})
    scramble(model)
    return model.eval()


def images(count=2, channels=3, size=(33, 45)):
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


def closed_form(model, x, classes):
    """What each cell of the last feature map adds to a logit, where that is more than nothing."""
    with torch.no_grad():
        features = model.forward_features(x)
    weights = model.fc.weight.detach()[classes]
    return torch.einsum("nchw,nkc->nkhw", features, weights).relu() / features.shape[2:].numel()


# -- Grad-CAM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_grad_cam_at_the_last_stage_is_the_closed_form(name):
    model = network(name)
    found = explain(model, images())
    assert found.maps.shape[:2] == found.classes.shape == (2, 3)
    assert relative(found.maps, closed_form(model, images(), found.classes)) <= 1e-5


@pytest.mark.parametrize(("name", "stage"), [("resnet18", 1), ("resnet18", 3), ("resnet18", 4), ("resnetv2_50", 2)])
def test_grad_cam_is_captums(name, stage):
    attr = pytest.importorskip("captum.attr")
    model = network(name)
    found = explain(model, images(), stage=stage, classes=[1])
    theirs = attr.LayerGradCam(model, getattr(model, f"layer{stage}"))
    expected = theirs.attribute(images(), 1, relu_attributions=True)
    assert relative(found.maps, expected) <= 1e-6
    assert found.stage == stage


# -- the other methods -------------------------------------------------------------------------------------------------


def test_integrated_gradients_add_up_to_the_difference_of_the_logits():
    pytest.importorskip("captum")
    model = network(num_classes=5)
    found = explain(model, images(), method="ig")
    with torch.no_grad():
        difference = (model(images()) - model(torch.zeros_like(images()))).gather(1, found.classes)
    assert found.maps.shape[2:] == (33, 45)
    assert (found.maps.sum((2, 3)) - difference).abs().max() <= 0.02 * difference.abs().max()


@pytest.mark.parametrize("size", [(29, 30), (8, 5), (1, 3)])
def test_occlusion_is_how_far_the_logit_falls_where_a_square_covers_the_image(size):
    model = network("cifar_resnet20", stem_pool="none")
    x = images(1, size=size)
    found = explain(model, x, method="occlusion", classes=[4])
    step = max(1, round(min(size) / 14))
    rows, columns = found.maps.shape[2:]
    assert (rows - 1) * step < size[0] <= (rows + 1) * step
    covered = x.clone()
    i, j = rows - 1, columns // 2
    covered[..., i * step : (i + 2) * step, j * step : (j + 2) * step] = 0
    with torch.no_grad():
        fall = (model(x) - model(covered))[0, 4]
    assert found.maps[0, 0, i, j].item() == pytest.approx(fall.item(), abs=1e-5)


# -- what comes in, and what stays as it was ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradcam", "ig", "occlusion"])
def test_a_network_is_left_as_it_was_and_any_block_will_do(method):
    pytest.importorskip("captum")
    model = network("cifar_resnet20").train()
    state = copy.deepcopy(model.state_dict())
    expected = explain(model, images(1, size=(20, 17)), method=method, steps=8)
    with torch.inference_mode():
        inside = explain(model, images(1, size=(20, 17)), method=method, steps=8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        quiet = explain(model, images(1, size=(20, 17)), method=method, steps=8)
    for other in (inside, quiet):
        assert torch.allclose(other.maps, expected.maps, atol=1e-6)
    assert not expected.maps.requires_grad
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_frozen_and_bfloat16_networks_and_grey_images_are_explained():
    model = network("resnet18", in_channels=1)
    expected = explain(model, images(channels=1))
    assert torch.equal(explain(freeze(copy.deepcopy(model), 4).requires_grad_(False), images(channels=1)).maps,
                       expected.maps)  # fmt: skip
    half = copy.deepcopy(model).bfloat16()
    found = explain(half, images(channels=1).bfloat16())
    assert found.maps.dtype == torch.float32
    assert half.fc.weight.dtype == torch.bfloat16
    assert relative(found.maps, closed_form(half.float(), images(channels=1).bfloat16().float(), found.classes)) <= 1e-5


def test_hooks_on_layers_and_pruning_keep_their_effect():
    model = network()
    model.layer4.register_forward_hook(lambda module, given, out: out * 2)
    torch.nn.utils.prune.l1_unstructured(model.fc, "weight", 0.5)
    found = explain(model, images())
    assert relative(found.maps, closed_form(model, images(), found.classes)) <= 1e-5


def test_a_network_of_several_classes_an_image_says_a_probability_for_each():
    model = network()
    model.several_classes = True
    found = explain(model, images())
    with torch.no_grad():
        assert torch.allclose(found.probabilities, model(images()).sigmoid().topk(3).values)


def test_classes_are_named_numbered_or_the_likeliest():
    model = network()
    model.classes = CLASSES
    assert explain(model, images(), classes=["a fox, red", 0]).classes.tolist() == [[2, 0]] * 2
    assert explain(model, images(), classes=99).classes.shape == (2, 5)
    model.classes = tuple("43210")  # a name comes before a number
    assert explain(model, images(), classes=["4", 4]).classes.tolist() == [[0, 4]] * 2


WRONG = [
    (ConfigError, "method is 'guided_backprop'", {"method": "guided_backprop"}),
    (ConfigError, "1810.03292", {"method": "guided-gradcam"}),
    (ConfigError, "did you mean 'gradcam'", {"method": "gradcma"}),
    (ConfigError, "stage is 5; this network has 4", {"stage": 5}),
    (ConfigError, "stage is 0", {"stage": 0}),
    (ConfigError, "stage is for gradcam", {"stage": 2, "method": "occlusion"}),
    (ConfigError, "no class 'dgo'; did you mean 'dog'", {"classes": ["dgo"]}),
    (ConfigError, "no class 5", {"classes": [5]}),
    (ConfigError, "no class -1", {"classes": [-1]}),
    (ConfigError, "classes is 0", {"classes": 0}),
    (ConfigError, "classes is 'dog'", {"classes": "dog"}),
    (DataError, "this network takes", {"images": images(channels=1)}),
    (DataError, "normalised floats", {"images": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}),
]


@pytest.mark.parametrize(("kind", "says", "changes"), WRONG, ids=[says for _, says, _ in WRONG])
def test_what_cannot_be_is_refused(kind, says, changes):
    model = network()
    model.classes = CLASSES
    with pytest.raises(kind) as raised:
        explain(model, **{"images": images(), **changes})
    assert says in str(raised.value)


def test_networks_that_cannot_be_explained_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="no classes"):
        explain(network(num_classes=0), images())
    with pytest.raises(ConfigError, match="unwrapped"):
        explain(torch.nn.Linear(2, 2), images())
    hooked = network()
    hooked.register_forward_hook(lambda module, given, out: -out)
    with pytest.raises(ConfigError, match="forward hook"):
        explain(hooked, images())
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(MissingExtraError, match=r"residuum-nn\[explain\]"):
        explain(network(), images(), method="ig")


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A weights file and four images, two of one name."""
    model = network()
    model.classes, model.preprocessing = CLASSES, Preprocessing(3, (40, 56), (0.5,) * 3, (0.2,) * 3, 0.875)
    residuum.save(model, tmp_path / "net.safetensors")
    draw = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name in ("a", "sheet", "more/a", "$x$\u043a"):
        Image.fromarray(draw.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.slow
def test_the_folder_has_a_picture_of_each_image_a_sheet_and_the_maps(photos, command):
    paths = [photos / f"{name}.png" for name in ("a", "sheet", "more/a", "$x$\u043a")]
    result = command("explain", photos / "net.safetensors", *paths, "--out", photos / "out", "--classes", "top2")
    assert result.code == 0, result.err
    names = {path.name for path in (photos / "out").iterdir()}
    assert names == {"a.png", "a-2.png", "sheet.png", "sheet-2.png", "$x$\u043a.png", "maps.npz"}
    first = result.out.splitlines()[0].split("\t")
    assert first[:2] == [str(paths[0]), str(photos / "out" / "a.png")]
    assert len(first) == 4
    with np.load(photos / "out" / "maps.npz") as kept:
        assert kept["maps"].shape == (4, 2, 2, 2)
        assert kept["images"].tolist() == [str(path) for path in paths]
        assert kept["names"].tolist() == list(CLASSES)
        chosen = [CLASSES[k] for k in kept["classes"][0]]
        assert [word.split(" 0.")[0] for word in first[2:]] == chosen
    for name in names - {"maps.npz"}:
        with Image.open(photos / "out" / name) as picture:
            assert picture.size[0] > 600


def test_folders_and_patterns_stand_for_the_images_in_them(photos, command):
    line = ("explain", photos / "net.safetensors", photos / "more", photos / "a*.png", "--out", photos / "out")
    result = command(*line, "--classes", "top1")
    assert result.code == 0, result.err
    shown = [line.split("\t")[0] for line in result.out.splitlines()]
    assert shown == [str(photos / "more" / "a.png"), str(photos / "a.png")]


def test_red_speaks_for_the_class_and_blue_against_it():
    from residuum.report.pictures import Scale, overlaid

    grey = np.full((64, 64, 3), 128, np.uint8)
    values = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)
    drawn = overlaid(grey, values, Scale(1.0, True, ""))
    red, _, blue = drawn[4, 4]
    assert red > 2 * blue
    red, _, blue = drawn[-5, -5]
    assert blue > 2 * red
    corner = drawn[4, -5]
    assert np.ptp(corner) < 0.1


def test_all_classes_of_an_image_have_one_scale():
    from residuum.inference.explanations import scale_of

    maps = np.zeros((3, 7, 7), np.float32)
    maps[0, 3, 3], maps[2, 1, 1] = 4.0, 1.0
    assert scale_of(maps, "gradcam").most == 4
    assert scale_of(np.zeros_like(maps), "ig").most == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("model.onnx", "a.png"), "was exported and has no gradients"),
        (("net.safetensors", "none.png"), "none.png"),
        (("net.safetensors", "a.png", "--classes", "cow"), "no class 'cow'"),
        (("net.safetensors", "a.png", "--classes", ","), "it must be topN"),
        (("net.safetensors", "a.png", "--stage", "5"), "stage is 5; this network has 4"),
        (("net.safetensors", "a.png", "--out", "more"), "exists already"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(photos, refused, monkeypatch, words, says):
    monkeypatch.chdir(photos)
    before = sorted(photos.iterdir())
    assert says in refused("explain", *(words if "--out" in words else (*words, "--out", "out")))
    assert sorted(photos.iterdir()) == before


def test_a_class_with_a_comma_in_its_name_is_found(photos, command):
    args = ("explain", photos / "net.safetensors", photos / "a.png", "--out", photos / "out")
    assert "a fox, red 0." in command(*args, "--classes", "a fox, red").out


def test_weights_that_do_not_say_their_preprocessing_are_refused(photos):
    with pytest.raises(WeightsError, match="does not say its preprocessing"):
        explain_files(network(), [photos / "a.png"], photos / "out")


# -- sanity, on a trained network --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A network that has learnt the digits, and 100 normalised images with their labels."""
    data = open_dataset(scan("digits"), DataSettings(holdout=0.0), channels=1, cache=None)

    def ready(split):
        return normalise(split.images.permute(0, 3, 1, 2), data.preprocessing).contiguous(), split.labels

    torch.manual_seed(0)
    model = create("digits_resnet", width=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.01)
    x, y = ready(data.train)
    epochs, batch = 10, 96
    steps = epochs * len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, steps + epochs)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    x, y = ready(data.test)
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.97
    return model, x, y


def rank_correlation(one, other):
    """Mean over images of Spearman's, of the sizes of two maps (N, h, w); a map that is 0 everywhere is like none."""
    scipy = pytest.importorskip("scipy.stats")
    pairs = zip(one.abs().flatten(1).numpy(), other.abs().flatten(1).numpy(), strict=True)
    return np.mean([scipy.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs])


def edges(model, x, classes):
    """A method that looks at the image alone."""
    return F.conv2d(x, torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]]), padding=1)[:, 0]


def maps_of(method):
    def maps(model, x, y):
        found = torch.zeros(len(x), 1)
        for label in y.unique():
            mine = explain(model, x[y == label], method=method, classes=[int(label)]).maps[:, 0]
            found = found.new_zeros(len(x), *mine.shape[1:]) if found.ndim == 2 else found
            found[y == label] = mine
        return found

    return maps


def likeness_after_randomising(method, model, x, y):
    """How like the maps stay once the head and the last stage have been drawn anew."""
    torch.manual_seed(3)
    other = copy.deepcopy(model)
    for part in (other.fc, other.stages[-1]):
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return rank_correlation(method(model, x, y), method(other, x, y))


@pytest.mark.slow
def test_maps_follow_the_weights_and_an_edge_detector_is_found_out(digits):
    pytest.importorskip("captum")
    model, x, y = digits[0], digits[1][:100], digits[2][:100]
    for method in ("gradcam", "ig"):
        assert likeness_after_randomising(maps_of(method), model, x, y) <= 0.5
    assert likeness_after_randomising(edges, model, x, y) > 0.5


@pytest.mark.slow
def test_of_two_digits_side_by_side_each_is_lit_for_its_own_class(digits):
    model, x, y = digits
    pairs = [(i, i + 180) for i in range(180) if y[i] != y[i + 180]][:100]
    lit = 0
    for a, b in pairs:
        found = explain(model, torch.cat([x[a], x[b]], 2)[None], classes=[int(y[a]), int(y[b])])
        width = found.maps.shape[3] // 2
        left, right = found.maps[0, 0], found.maps[0, 1]
        shares = left[:, :width].sum() / left.sum(), right[:, width:].sum() / right.sum()
        lit += shares[0] >= 0.7
        lit += shares[1] >= 0.7
    assert lit / 2 >= 0.9 * len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gradcam", "ig", "occlusion"])
def test_without_what_a_map_names_the_class_is_less_likely_than_without_as_much_of_the_rest(digits, method):
    scipy = pytest.importorskip("scipy.stats")
    pytest.importorskip("captum")
    model, x, y = digits[0], digits[1][:100], digits[2][:100]
    maps = maps_of(method)(model, x, y)
    order = F.interpolate(maps[:, None], size=(8, 8), mode="bilinear")[:, 0].flatten(1)
    generator = torch.Generator().manual_seed(0)

    def probability(scores):
        removed = torch.zeros_like(scores).scatter_(1, scores.topk(round(0.2 * 64)).indices, 1).bool()
        with torch.no_grad():
            shares = model(x.masked_fill(removed.view(-1, 1, 8, 8), 0.0)).softmax(1)
        return shares.gather(1, y[:, None])[:, 0].numpy()

    named, random = probability(order), probability(torch.rand(order.shape, generator=generator))
    assert scipy.ttest_rel(named, random, alternative="less").pvalue < 0.01


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    model = network("cifar_resnet20")
    process = psutil.Process()

    def explained(count):
        for i in range(count // 4):
            explain(model, images(4, size=(32, 32)), classes=[i % 5], stage=1 + i % 3)
        gc.collect()
        return process.memory_info().rss

    before = explained(48)
    assert explained(500) - before < 50 << 20

"""Classes of image files: by any source, in order, at once, in whatever block, with the file named that is bad."""

import itertools
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tests.networks import scramble

import residuum.data.sources
from residuum import Preprocessing, create, save
from residuum.data.sources import evaluation_transform, normalise, read_image
from residuum.errors import ConfigError, DataError, DeviceError, WeightsError
from residuum.inference.predict import predict

CLASSES = ("a cat", "[old] dog", "кот", "two\nlines", "e")
PREPROCESSING = Preprocessing(3, (20, 24), (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), 0.875)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create("resnet18", width=0.125, num_classes=len(CLASSES))
    scramble(model)
    model.classes, model.preprocessing = CLASSES, PREPROCESSING
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A weights file and some images of several sizes."""
    root = tmp_path_factory.mktemp("predict")
    save(model, root / "weights.safetensors")
    draw = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(draw.integers(0, 256, (30 + i, 45 - i, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


@pytest.fixture
def images(folder):
    return sorted(map(str, folder.glob("?.png")))


def shares(model, images):
    transform = evaluation_transform(model.preprocessing)
    pixels = torch.stack([transform(read_image(image, 3)) for image in images])
    with torch.no_grad():
        return model(normalise(pixels, model.preprocessing)).softmax(1)


def same(predictions, model, images, top, tolerance=1e-5):
    predictions = list(predictions)
    assert [p.path for p in predictions] == images
    for prediction, expected in zip(predictions, shares(model, images), strict=True):
        best = expected.topk(top)
        assert [name for name, _ in prediction.classes] == [CLASSES[i] for i in best.indices]
        assert [p for _, p in prediction.classes] == pytest.approx(best.values.tolist(), abs=tolerance)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_predictions_are_the_networks_own_in_the_order_of_the_images(model, folder, images, batch_size):
    found = predict(folder / "weights.safetensors", images, top=2, precision="fp32", batch_size=batch_size)
    same(found, model, images, 2)


def test_a_run_folder_a_network_and_a_single_image_will_do(model, folder, images):
    same(predict(folder, images[0], precision="fp32", top=99), model, images[:1], len(CLASSES))
    same(predict(model, iter(images), precision="fp32"), model, images, 3)


def test_weights_of_another_library_predict_with_their_classes_and_preprocessing(tmp_path, folder, images):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label={0: "left", 1: "right"}
    )
    theirs = transformers.ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    processor = transformers.ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=1.0, image_mean=PREPROCESSING.mean, image_std=PREPROCESSING.std
    )
    processor.save_pretrained(tmp_path)
    for prediction in predict(tmp_path, images):
        assert {name for name, _ in prediction.classes} == {"left", "right"}
        assert sum(p for _, p in prediction.classes) == pytest.approx(1, abs=1e-5)


def test_what_a_user_put_into_a_network_counts(model, images):
    handle = model.fc.register_forward_hook(lambda module, given, out: -out)
    try:
        same(predict(model, images, precision="fp32"), model, images, 3)
    finally:
        handle.remove()


BLOCKS = [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False), lambda: torch.device("meta")]


@pytest.mark.parametrize("block", BLOCKS)
def test_it_works_in_any_block_and_leaves_the_callers_as_it_was(model, folder, images, block):
    with block():
        found = list(predict(folder, images, precision="fp32"))
    same(found, model, images, 3)
    predictions = predict(folder, images, precision="fp32", batch_size=1)
    next(predictions)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


# torch scales images by weights in the default dtype, so that half precision may move a pixel by one level.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 1e-3)])
def test_the_default_dtype_changes_no_prediction(model, folder, images, dtype, tolerance):
    torch.set_default_dtype(dtype)
    try:
        found = list(predict(folder, images, precision="fp32"))
    finally:
        torch.set_default_dtype(torch.float32)
    same(found, model, images, 3, tolerance)


def test_the_first_predictions_come_before_the_last_images_are_read(model, images, monkeypatch):
    read, asked, shown = residuum.data.sources.read_image, [], []
    monkeypatch.setattr(residuum.data.sources, "read_image", lambda path, n: (asked.append(path), read(path, n))[1])
    endless = itertools.cycle(images)
    for prediction in itertools.islice(predict(model, endless, batch_size=2), 10):
        shown.append(prediction)
        assert len(asked) <= len(shown) + 2 * 4


def test_a_bad_image_is_named_after_the_predictions_before_it(model, folder, images):
    (folder / "bad.jpg").write_bytes(b"junk")
    predictions = predict(model, [*images[:4], str(folder / "bad.jpg"), images[5]], batch_size=2)
    assert len(list(itertools.islice(predictions, 4))) == 4
    with pytest.raises(DataError, match=r"bad\.jpg"):
        next(predictions)


def without(model, **changes):
    other = create(model.config).eval()
    other.classes, other.preprocessing = model.classes, model.preprocessing
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def test_what_cannot_be_is_refused_before_any_image_is_read(model, tmp_path):
    save(without(model, preprocessing=None), tmp_path / "x.safetensors")
    wrong = [
        (WeightsError, "no weights file", lambda: predict(tmp_path / "nowhere", "x.png")),
        (
            WeightsError,
            "does not say its preprocessing; write weights",
            lambda: predict(tmp_path / "x.safetensors", "x"),
        ),
        (WeightsError, "does not say its classes", lambda: predict(without(model, classes=None), "x.png")),
        (DataError, "no image was given", lambda: predict(model, [])),
        (ConfigError, "top is 0; it must be at least 1", lambda: predict(model, "x.png", top=0)),
        (ConfigError, "batch_size is -1; it must", lambda: predict(model, "x.png", batch_size=-1)),
        (ConfigError, "precision is 'int8'", lambda: predict(model, "x.png", precision="int8")),
        (DeviceError, "no device 'cuda:99'", lambda: predict(tmp_path / "x.safetensors", "x.png", device="cuda:99")),
    ]
    for kind, says, act in wrong:
        with pytest.raises(kind) as raised:
            act()
        assert says in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "order"), [(".pt2", "rgb"), (".xml", "bgr")])
def test_an_exported_file_predicts_images_of_any_sizes_in_their_order(model, images, tmp_path, ending, order):
    if ending == ".xml":
        pytest.importorskip("openvino")
    from residuum.export import export

    precision = "fp32" if ending == ".xml" else "auto"
    export(model, tmp_path / f"net{ending}", input="image", order=order, precision=precision)
    same(predict(tmp_path / f"net{ending}", images), model, images, 3)


def test_past_bad_images_every_other_one_has_its_prediction(model, folder, images):
    (folder / "bad.jpg").write_bytes(b"junk")
    asked = [str(folder / "bad.jpg"), *images[:3], str(folder / "none.png"), *images[3:]]
    found = list(predict(model, asked, bad_images="skip", batch_size=2, precision="fp32"))
    assert [p.path for p in found if p.error] == [asked[0], asked[4]]
    assert all(p.error is None or (p.classes == () and p.path in p.error) for p in found)
    same([p for p in found if not p.error], model, images, 3)


def test_the_mirrored_view_takes_the_mean_of_both_probabilities(model, images, tmp_path):
    Image.open(images[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")

    def first(image, **how):
        (found,) = predict(model, str(image), top=5, precision="fp32", **how)
        return dict(found.classes)

    both, one, other = first(images[0], mirrored=True), first(images[0]), first(tmp_path / "mirrored.png")
    assert both == {name: pytest.approx((one[name] + other[name]) / 2, abs=1e-4) for name in CLASSES}


def test_a_generator_that_waits_has_its_images_answered_meanwhile(model, images):
    answered = []

    def names():
        yield images[0]
        while not answered:
            time.sleep(0.001)
        yield images[1]

    for prediction in predict(model, names()):
        answered.append(prediction.path)  # noqa: PERF401 (the generator waits for it)
    assert answered == images[:2]


def test_what_a_generator_raises_comes_after_the_predictions_before_it(model, images):
    def names():
        yield from images[:2]
        raise KeyError("lost")

    found = predict(model, names(), batch_size=1)
    assert next(found).path == images[0]
    with pytest.raises(KeyError, match="lost"):
        list(found)

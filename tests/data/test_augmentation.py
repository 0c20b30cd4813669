"""What is done to images: torchvision's transforms, one file at a time, and the same for a batch in memory."""

import dataclasses
import resource

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from residuum.data.augmentation import (
    Draws,
    MemoryTransform,
    TrainingTransform,
    border,
    draw,
    seed_for,
)
from residuum.data.preparing import evaluation_transform, normalise, scaled_crop
from residuum.data.settings import Augmentation
from residuum.errors import ConfigError
from residuum.preprocessing import Preprocessing

CPU = torch.device("cpu")


def look(size=(32, 32), crop=0.875, interpolation="bilinear", channels=3):
    return Preprocessing(channels, size, (0.4,) * channels, (0.2,) * channels, crop, interpolation)


def pixels(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth(height, width):
    """As a photograph is, neighbours alike."""
    if height * width <= 4:
        return pixels(3, height, width)
    return functional.resize(pixels(3, max(2, height // 9), max(2, width // 9)), [height, width], antialias=True)


def test_seeds_depend_on_every_part():
    assert seed_for(1, 2) == seed_for(1, 2)
    assert len({seed_for(0, 1), seed_for(1, 0), seed_for(0, 1, 0), seed_for(0, 11)}) == 4


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 91), (91, 50), (40, 40), (300, 33), (20, 24)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_evaluation_is_torchvisions_resize_and_centre_crop(shape, interpolation, crop):
    image = smooth(*shape)
    theirs = v2.Compose(
        [v2.Resize(round(32 / crop), InterpolationMode(interpolation), antialias=True), v2.CenterCrop(32)]
    )
    assert torch.equal(evaluation_transform(look(crop=crop, interpolation=interpolation))(image), theirs(image))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32), (20, 40)])
@pytest.mark.parametrize("crop", [0.0, 0.875, 1.0])
@pytest.mark.parametrize("shape", [(50, 91), (91, 50), (1, 1), (1, 300), (300, 2)])
def test_every_image_comes_out_in_the_promised_size(interpolation, size, crop, shape):
    made = evaluation_transform(look(size, crop, interpolation))(smooth(*shape))
    assert made.shape == (3, *size)
    assert made.dtype == torch.uint8


def test_an_image_is_not_stretched_where_the_image_size_is_not_square():
    made = evaluation_transform(look((32, 64), 1.0))(smooth(160, 200))
    whole = functional.resize(smooth(160, 200), [51, 64], antialias=True)
    assert torch.equal(made, functional.center_crop(whole, [32, 64]))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [(40, 900), (900, 40), (61, 77), (9, 130)])
def test_only_what_a_crop_shows_is_scaled_as_the_whole_image_would_be(interpolation, shape):
    image, size = smooth(*shape), (24, 28)
    scaled = (28, 28 * shape[1] // shape[0]) if shape[0] < shape[1] else (28 * shape[0] // shape[1], 28)
    part = scaled_crop(image, scaled, size, interpolation)
    mode = look(size, 1.0, interpolation)
    whole = evaluation_transform(Preprocessing(3, scaled, mode.mean, mode.std, 0.0, interpolation))(image)
    # torchvision and Pillow round between the two axes, and to weights of some bits
    assert (part.int() - functional.center_crop(whole, list(size)).int()).abs().max() <= 2


@pytest.mark.parametrize("shape", [(6000, 1), (1, 6000), (3, 29_000_000)])
def test_a_long_thin_image_takes_no_more_than_its_own_memory(shape):
    transform = evaluation_transform(look((224, 224)))
    transform(smooth(300, 400))
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert transform(image).shape == (3, 224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


# -- training, one file at a time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("pad", [0, 3])
def test_training_draws_and_computes_as_torchvisions_transforms(seed, pad):
    image, preprocessing = smooth(70, 90), look((24, 32))
    steps = [v2.RandomResizedCrop((24, 32), scale=(0.2, 0.9), antialias=True)]
    steps += [v2.Pad(pad, fill=[102.0] * 3), v2.RandomCrop((24, 32))] if pad else []
    theirs = v2.Compose([*steps, v2.RandomHorizontalFlip()])
    ours = TrainingTransform(preprocessing, Augmentation(crop_scale=(0.2, 0.9), pad=pad, flip="random"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(seed)
        assert torch.equal(ours(image), expected)


def test_a_policy_comes_after_crop_and_mirror_and_erasing_last():
    image = smooth(70, 90)
    ours = TrainingTransform(look(), Augmentation(crop_scale=(0.1, 1), flip="random", policy="rand:2:9", erase=0.5))
    fill = [102] * 3
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.1, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR, fill=fill),
            v2.RandomErasing(0.5, value=[102.0] * 3),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        for seed in range(10):
            torch.manual_seed(seed)
            expected = theirs(image)
            torch.manual_seed(seed)
            assert torch.equal(ours(image), expected)


def test_without_a_crop_files_are_brought_to_size_as_in_evaluation_then_shifted():
    image, preprocessing = smooth(70, 90), look()
    plain = TrainingTransform(preprocessing, Augmentation())(image)
    assert torch.equal(plain, evaluation_transform(preprocessing)(image))
    around = functional.pad(plain, [2], fill=[102.0] * 3)
    windows = [around[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    shifted = TrainingTransform(preprocessing, Augmentation(pad=2))
    for _ in range(10):
        made = shifted(image)
        assert any(torch.equal(made, window) for window in windows)


# -- training, a batch in memory at a time -----------------------------------------------------------------------------


def test_crops_in_memory_are_torchvisions_resized_crops():
    images, preprocessing = pixels(40, 16, 20, 3), look((16, 20))
    augmentation = Augmentation(crop_scale=(0.1, 1.0))
    draws = draw(augmentation, 40, (16, 20), 7)
    made = MemoryTransform(images, preprocessing, augmentation, CPU)(torch.arange(40), draws.to(CPU))
    assert made.is_contiguous(memory_format=torch.channels_last)
    for image, box, ours in zip(images.permute(0, 3, 1, 2), draws.crop.T.int().tolist(), made, strict=True):
        theirs = functional.resized_crop(image.float(), *box, [16, 20], antialias=True)
        assert (ours - theirs).abs().max() < 0.02


def test_shift_and_mirror_come_after_a_crop_in_memory():
    images, preprocessing = pixels(30, 8, 8, 1), look((8, 8), channels=1)
    cropped = Augmentation(crop_scale=(0.3, 1.0))
    everything = Augmentation(crop_scale=(0.3, 1.0), pad=2, flip="random")
    drawn = draw(everything, 30, (8, 8), 3)
    plain = MemoryTransform(images, preprocessing, cropped, CPU)(
        torch.arange(30), Draws(torch.zeros_like(drawn.shift), torch.zeros_like(drawn.mirror), drawn.crop).to(CPU)
    )
    made = MemoryTransform(images, preprocessing, everything, CPU)(torch.arange(30), drawn.to(CPU))
    for before, after, (down, right), mirrored in zip(plain, made, drawn.shift.T.tolist(), drawn.mirror, strict=True):
        expected = functional.pad(before, [2], fill=float(border(preprocessing)))[:, down : down + 8, right : right + 8]
        assert torch.allclose(after, expected.flip(2) if mirrored else expected, atol=0.01)


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (64, 8)])
def test_crops_in_memory_are_drawn_as_torchvision_draws_them(size):
    ours = draw(Augmentation(crop_scale=(0.08, 1.0)), 4000, size, 0).crop
    top, left, height, width = ours
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()
    crop = v2.RandomResizedCrop(size)
    image = torch.empty(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        boxes = [crop.make_params([image]) for _ in range(4000)]
    for values, name in zip(ours, ("top", "left", "height", "width"), strict=True):
        theirs = torch.tensor([box[name] for box in boxes], dtype=torch.float64)
        assert (values - theirs.mean()).mean().abs() < 0.05 * max(size) / 2
        assert (values.std() - theirs.std()).abs() < 0.05 * max(size) / 2


def test_what_a_shift_brings_in_can_be_the_image_mirrored_at_its_edge():
    images, preprocessing = pixels(6, 8, 10, 3), look((8, 10))
    augmentation = Augmentation(pad=3, border="reflect")
    draws = draw(augmentation, 6, (8, 10), 1)
    made = MemoryTransform(images, preprocessing, augmentation, CPU)(torch.arange(6), draws)
    whole = images.permute(0, 3, 1, 2)
    around = torch.nn.functional.pad(whole.float(), (3,) * 4, mode="reflect").byte()
    places = draws.shift.T.tolist()
    expected = [image[:, y : y + 8, x : x + 10] for image, (y, x) in zip(around, places, strict=True)]
    assert torch.equal(made, torch.stack(expected))
    one = TrainingTransform(dataclasses.replace(preprocessing, crop=0.0), augmentation)
    windows = [around[0][:, y : y + 8, x : x + 10] for y in range(7) for x in range(7)]
    for _ in range(5):
        made = one(whole[0])
        assert any(torch.equal(made, window) for window in windows)


def test_a_mirrored_border_may_be_wider_than_images_that_are_scaled_up():
    images, preprocessing = pixels(6, 8, 9, 3), look((32, 36), crop=0.0)
    augmentation = Augmentation(pad=16, border="reflect")
    draws = draw(augmentation, 6, (32, 36), 1)
    made = MemoryTransform(images, preprocessing, augmentation, CPU)(torch.arange(6), draws)
    whole = evaluation_transform(preprocessing)(images.permute(0, 3, 1, 2))
    around = torch.nn.functional.pad(whole.float(), (16,) * 4, mode="reflect").byte()
    places = draws.shift.T.tolist()
    expected = [image[:, y : y + 32, x : x + 36] for image, (y, x) in zip(around, places, strict=True)]
    assert torch.equal(made, torch.stack(expected))


def test_a_square_is_cut_out_around_a_random_pixel_in_both_back_ends():
    images, preprocessing = torch.full((200, 12, 12, 3), 7, dtype=torch.uint8), look((12, 12))
    augmentation = Augmentation(cutout=4)
    drawn = draw(augmentation, 200, (12, 12), 5)
    made = MemoryTransform(images, preprocessing, augmentation, CPU)(torch.arange(200), drawn)
    one = TrainingTransform(preprocessing, augmentation)
    for batch in (made, torch.stack([one(image.permute(2, 0, 1)) for image in images])):
        gone = (batch == border(preprocessing).view(3, 1, 1)).all(1)
        assert torch.equal(batch[~gone[:, None].expand_as(batch)].unique(), torch.tensor([7], dtype=torch.uint8))
        sizes = {(int(rows.sum()), int(columns.sum())) for rows, columns in zip(gone.any(2), gone.any(1), strict=True)}
        assert {(4, 4), (2, 4), (4, 2)} < sizes <= {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}  # less at the edge
        assert all(int(g.sum()) == int(g.any(1).sum()) * int(g.any(0).sum()) for g in gone)


def test_crops_in_memory_are_scaled_to_another_size_too():
    images, preprocessing = pixels(20, 16, 20, 3), look((24, 30))
    augmentation = Augmentation(crop_scale=(0.1, 1.0))
    draws = draw(augmentation, 20, (16, 20), 7)
    made = MemoryTransform(images, preprocessing, augmentation, CPU)(torch.arange(20), draws.to(CPU))
    for image, box, ours in zip(images.permute(0, 3, 1, 2), draws.crop.T.int().tolist(), made, strict=True):
        theirs = functional.resized_crop(image.float(), *box, [24, 30], antialias=True)
        assert (ours - theirs).abs().max() < 0.02


@pytest.mark.parametrize("text", ["", "128:0.5", "128:0.5,160:0.4,224", "128:0,224", "a:0.5,224", "0", "8:nan,9"])
def test_sizes_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="it must be sides in pixels with rising shares"):
        Augmentation(sizes=text)


def test_sizes_go_by_the_share_of_the_epochs():
    augmentation = Augmentation(sizes="128:0.5,160:0.8,224")
    assert [augmentation.size_in(epoch, 10)[0] for epoch in range(10)] == [128] * 5 + [160] * 3 + [224] * 2
    assert [augmentation.size_in(epoch, 1)[0] for epoch in range(1)] == [160]
    assert augmentation.largest_size == (224, 224)
    assert Augmentation(sizes="128").size_in(3, 5) == (128, 128)
    with pytest.raises(ConfigError, match="leave one out"):
        Augmentation(sizes="128", image_size=(128, 128))


def test_a_crop_scale_that_cannot_be_is_refused():
    for scale in ((0.0, 1.0), (0.9, 0.1), (0.5, 1.5), (0.1,), "x"):
        with pytest.raises(ConfigError, match=r"augment\.crop_scale is"):
            Augmentation(crop_scale=scale)


# -- normalisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 3, 40, 60), (300, 3, 8, 8), (1, 3, 500, 400), (0, 3, 8, 8)])
def test_normalised_values_are_exact_and_channels_last(shape):
    images, preprocessing = pixels(*shape), Preprocessing(3, (8, 8), (0.1, 0.4, 0.7), (0.2, 0.3, 0.4), 0.0)
    made = normalise(images, preprocessing)
    mean, std = (torch.tensor(v).view(-1, 1, 1) * 255 for v in (preprocessing.mean, preprocessing.std))
    assert torch.equal(made, (images.float() - mean) / std)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_the_border_normalises_to_nearly_zero():
    preprocessing = Preprocessing(3, (6, 5), (0.3, 0.5, 0.7), (0.2,) * 3, 0.0)
    edge = border(preprocessing).view(1, 3, 1, 1)
    assert normalise(edge, preprocessing).abs().max() < 0.5 / 255 / 0.2 + 1e-6

"""Policies by name: torchvision's own, on colour and on grey images."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from residuum.data.catalog import scan
from residuum.data.loaders import Schedule, make_loader
from residuum.data.policies import erasing_transform, parse_policy, policy_transform
from residuum.data.settings import Augmentation, DataSettings
from residuum.data.sources import Split, open_dataset
from residuum.errors import ConfigError
from residuum.preprocessing import Preprocessing

FILL = [124, 116, 104]


def image(channels=3):
    return torch.randint(256, (channels, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def drawn(transform, picture, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(picture)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("trivial", v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=FILL)),
        ("rand:2:9", v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR, fill=FILL)),
        ("rand:3:0", v2.RandAugment(3, 0, interpolation=InterpolationMode.BILINEAR, fill=FILL)),
    ],
)
def test_a_policy_is_torchvisions(name, theirs, seed):
    picture = image()
    found = drawn(policy_transform(name, FILL), picture, seed)
    assert torch.equal(found, drawn(theirs, picture, seed))
    assert (found.dtype, found.shape) == (picture.dtype, picture.shape)


@pytest.mark.parametrize("name", ["trivial", "rand:2:30"])
def test_grey_images_go_through_every_operation(name):
    transform, picture = policy_transform(name, [7]), image(1)
    found = [drawn(transform, picture, seed) for seed in range(60)]
    assert all(each.shape == picture.shape for each in found)
    assert sum(not torch.equal(each, picture) for each in found) > 20


def test_erasing_fills_a_box_in_its_share_of_images():
    transform, picture = erasing_transform(0.3, FILL), torch.zeros(3, 20, 24, dtype=torch.uint8)
    found = [drawn(transform, picture, seed) for seed in range(200)]
    changed = [each for each in found if not torch.equal(each, picture)]
    assert 30 <= len(changed) <= 90
    colour = torch.tensor(FILL, dtype=torch.uint8)[:, None]
    for each in changed:
        erased = (each != 0).all(0)
        assert torch.equal(each[:, erased], colour.expand(3, int(erased.sum())))
        assert 0.01 < erased.float().mean() < 0.36


@pytest.mark.parametrize("name", ["rand", "rand:2", "rand:0:9", "rand:2:31", "rand:2:-1", "rand:²:9", "auto", ""])
def test_a_policy_that_there_is_not_is_refused(name):
    with pytest.raises(ConfigError, match="augment.policy is .*; it must be trivial, or rand:OPERATIONS:MAGNITUDE"):
        parse_policy(name)


# -- in loaders --------------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def loader(root, augmentation, batch_size=6, *, train=True, workers=0):
    dataset = open_dataset(scan(root), DataSettings(image_size=(40, 40)), channels=3, cache=root)
    return make_loader(
        dataset.train, dataset.preprocessing, batch_size=batch_size, seed=0, train=train, augmentation=augmentation,
        device=CPU, workers=workers, skip_bad_images=False,
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_files_are_a_function_of_seed_and_epoch(image_folder, workers):
    augmentation = Augmentation(crop_scale=(0.1, 1), policy="trivial", erase=0.5, image_size=(24, 32))
    batches = loader(image_folder(side=80), augmentation, workers=workers)
    first, again, other = (torch.cat([images for images, _ in batches.epoch(n)]) for n in (0, 0, 1))
    assert first.shape[1:] == (3, 24, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_evaluation_keeps_its_own_image_size_and_has_no_policy(image_folder):
    root = image_folder(side=80)
    plain = loader(root, Augmentation(), train=False).epoch(0)
    found = loader(root, Augmentation(policy="trivial", erase=1.0, image_size=(24, 24), repeats=2), train=False)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, found.epoch(0), strict=True))


@pytest.mark.parametrize("field", [{"policy": "trivial"}, {"erase": 0.5, "flip": "alternate"}])
@pytest.mark.parametrize(("channels", "workers"), [(3, 0), (3, 2), (1, 0)])
def test_images_in_memory_vary_as_the_same_files_do(field, channels, workers, tmp_path):
    images = torch.randint(256, (12, 16, 20, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    paths = tuple(str(tmp_path / f"{number}.png") for number in range(len(images)))
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.squeeze(2).numpy() if channels == 1 else image.numpy()).save(path)
    how = Preprocessing(channels, (16, 20), (0.5,) * channels, (0.25,) * channels, 0.0)
    found = []
    for held in (images, paths):
        batches = make_loader(
            Split(held, torch.arange(len(images))), how, batch_size=4, seed=0, train=True, device=CPU, workers=workers,
            augmentation=Augmentation(pad=2, cutout=3, **field), skip_bad_images=False,
        )  # fmt: skip
        found.append([batch for epoch in (0, 1) for batch in batches.epoch(epoch)])
    for (one, labels), (other, same) in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(labels, same)
    assert len(found[0]) == 6


@pytest.mark.parametrize("settings", [{"crop": 0.95}, {"interpolation": "bicubic"}])
def test_how_images_are_scaled_is_for_images_that_are(image_folder, tmp_path, settings):
    with pytest.raises(ConfigError, match=f"data.{next(iter(settings))} is for images that are scaled"):
        open_dataset(scan("digits"), DataSettings(**settings), channels=1, cache=tmp_path)
    root = image_folder(side=80)
    found = open_dataset(scan(root), DataSettings(**settings), channels=3, cache=tmp_path).preprocessing
    assert found.to_dict().items() >= settings.items()


@pytest.mark.parametrize(("count", "batch_size", "repeats"), [(24, 12, 3), (25, 8, 3), (10, 4, 4), (5, 8, 2)])
def test_repeated_images_come_in_groups_within_batches_first_views_first(count, batch_size, repeats):
    schedule = Schedule(count, batch_size, 0, True, repeats=repeats)
    epochs = [torch.cat(schedule.batches(epoch)) for epoch in range(2)]
    assert [len(b) for b in schedule.batches(0)] == [len(b) for b in Schedule(count, batch_size, 0, True).batches(0)]
    for numbers in epochs:
        assert len(numbers.unique()) == len(numbers)  # a view comes once
        assert len((numbers % count).unique()) <= -(-len(numbers) // repeats) + 1
    assert not torch.equal(*epochs)
    for batch in schedule.batches(0):
        views = (batch // count).tolist()
        assert views == sorted(views)


def test_the_processes_of_a_step_have_views_of_one_image_each():
    shares = [Schedule(24, 12, 0, True, rank=rank, world=3, repeats=3).batches(0)[0] for rank in range(3)]
    assert torch.equal(torch.cat(shares), Schedule(24, 12, 0, True, repeats=3).batches(0)[0])
    assert all(torch.equal(share % 24, shares[0] % 24) for share in shares)


@pytest.mark.parametrize("workers", [0, 2])
def test_views_of_one_image_file_differ_and_come_again_the_same(image_folder, workers):
    batches = loader(image_folder(side=80), Augmentation(crop_scale=(0.1, 1), repeats=3), workers=workers)
    images, labels = next(iter(batches.epoch(0)))
    assert torch.equal(images, next(iter(batches.epoch(0)))[0])
    first, second, third = images.split(2)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(labels[:2], labels[2:4])


def test_views_of_one_image_in_memory_differ():
    pixels = torch.arange(12, dtype=torch.uint8)[:, None, None, None] * 16 + torch.randint(
        8, (12, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    batches = make_loader(
        Split(pixels, torch.arange(12)), Preprocessing(1, (8, 8), (0.5,), (0.25,), 0.0), batch_size=6, seed=0,
        train=True, augmentation=Augmentation(pad=3, repeats=3), device=CPU, workers=0, skip_bad_images=False,
    )  # fmt: skip
    images, labels = next(iter(batches.epoch(0)))
    assert labels[:2].tolist() * 3 == labels.tolist()
    assert not torch.equal(images[:2], images[2:4])

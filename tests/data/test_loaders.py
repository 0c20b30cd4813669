"""Batches: a function of seed, epoch and step; augmentation that moves pixels and nothing else."""

import numpy as np
import pytest
import torch

from residuum.data.catalog import facts
from residuum.data.loaders import Augmentation, make_batches, seed_for
from residuum.data.sources import Part, open_source
from residuum.errors import DataError
from residuum.preprocessing import Preprocessing

PLAIN = Preprocessing(3, (6, 5), (0.0,) * 3, (1 / 255,) * 3, 0.0)  # values stay 0 to 255


def memory(count=10, batch_size=4, train=True, pad=0, flip=False, seed=0):
    pixels = torch.arange(count * 90, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(count, 6, 5, 3)
    part = Part(pixels, torch.arange(count))
    return part, make_batches(
        part,
        PLAIN,
        batch_size=batch_size,
        seed=seed,
        train=train,
        augmentation=Augmentation(pad, flip),
        device=torch.device("cpu"),
        workers=0,
        skip_bad_images=False,
    )


def files(root, batch_size=4, train=True, workers=0, skip=False, flip=True):
    about = facts(str(root))
    source = open_source(about, channels=3, image_size=32, root=root, skip_bad_images=skip)
    return make_batches(
        source.train if train else source.test,
        source.preprocessing,
        batch_size=batch_size,
        seed=0,
        train=train,
        augmentation=Augmentation(0, flip),
        device=torch.device("cpu"),
        workers=workers,
        skip_bad_images=skip,
    )


def gather(batches, number=0, start=0):
    return [(images.clone(), labels.clone()) for images, labels in batches.epoch(number, start)]


def equal(one, two):
    if len(one) != len(two):
        return False
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True))


def test_seeds_depend_on_every_part():
    assert seed_for(1, 2) == seed_for(1, 2)
    assert len({seed_for(0, 1), seed_for(1, 0), seed_for(0, 1, 0), seed_for(0, 11)}) == 4


def test_training_batches_are_full_and_shuffled_anew_each_epoch():
    _, batches = memory(train=True)
    assert len(batches) == 2
    first, second = gather(batches, 0), gather(batches, 1)
    assert [len(labels) for _, labels in first] == [4, 4]
    assert [labels.tolist() for _, labels in first] != [labels.tolist() for _, labels in second]
    assert len({label for _, labels in first for label in labels.tolist()}) == 8


def test_evaluation_sees_every_image_once_in_order():
    _, batches = memory(train=False)
    assert len(batches) == 3
    assert torch.cat([labels for _, labels in gather(batches)]).tolist() == list(range(10))


def test_fewer_images_than_a_batch_make_one_batch():
    _, batches = memory(count=3, batch_size=8)
    assert [len(labels) for _, labels in gather(batches)] == [3]


def test_without_augmentation_pixels_are_the_images_own_and_channels_last():
    part, batches = memory(train=True)
    for images, labels in gather(batches):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, part.images[labels].permute(0, 3, 1, 2).float())


def test_shifts_move_up_to_pad_pixels_and_mirroring_takes_about_half():
    part, batches = memory(count=64, batch_size=64, pad=1, flip=True)
    seen = set()
    for epoch in range(4):
        for images, labels in gather(batches, epoch):
            padded = torch.zeros(64, 3, 8, 7)
            padded[:, :, 1:7, 1:6] = part.images.permute(0, 3, 1, 2).float()
            for image, label in zip(images, labels.tolist(), strict=True):
                found = [
                    (dy, dx, mirrored)
                    for dy in range(3)
                    for dx in range(3)
                    for mirrored in (False, True)
                    if torch.equal(image, _turn(padded[label, :, dy : dy + 6, dx : dx + 5], mirrored))
                ]
                assert found, "an augmented image is a window of the original, perhaps mirrored"
                seen.update(found[:1])
    assert len(seen) == 18
    assert 90 < sum(mirrored for _, _, mirrored in seen) * 14 < 190


def _turn(image, mirrored):
    return image.flip(2) if mirrored else image


@pytest.mark.parametrize("start", [0, 1, 2])
def test_an_epoch_can_begin_in_the_middle_with_the_same_batches(start):
    _, batches = memory(count=12, pad=1, flip=True)
    assert equal(gather(batches, 3, start), gather(batches, 3)[start:])


def test_another_seed_gives_other_batches():
    assert not equal(gather(memory(seed=0)[1]), gather(memory(seed=1)[1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_files_come_in_the_same_batches_from_any_number_of_workers(image_folder, workers):
    root = image_folder(side=80)
    reference = gather(files(root), 1)
    assert equal(gather(files(root, workers=workers), 1), reference)
    assert equal(gather(files(root, workers=workers), 1, start=2), reference[2:])
    assert reference[0][0].shape == (4, 3, 32, 32)


def test_reading_files_leaves_the_random_state_alone(image_folder):
    batches = files(image_folder(side=80))
    before = torch.get_rng_state()
    gather(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bad_file_is_named_or_left_out_when_asked(image_folder):
    root = image_folder(side=80)
    (root / "train" / "red" / "0.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"red/0\.png.*--skip-bad-images"):
        gather(files(root))
    batches = files(root, skip=True)
    seen = gather(batches)
    assert sum(len(labels) for _, labels in seen) == 23
    assert len(batches.skipped) == 1
    assert "red/0.png" in next(iter(batches.skipped))


def test_the_border_normalises_to_nearly_zero():
    part = Part(torch.full((2, 6, 5, 3), 200, dtype=torch.uint8), torch.tensor([0, 1]))
    preprocessing = Preprocessing(3, (6, 5), (0.3, 0.5, 0.7), (0.2,) * 3, 0.0)
    batches = make_batches(
        part,
        preprocessing,
        batch_size=2,
        seed=0,
        train=True,
        augmentation=Augmentation(4, False),
        device=torch.device("cpu"),
        workers=0,
        skip_bad_images=False,
    )
    border = batches.images[0, 0, 0].numpy() / 255
    assert np.allclose(border, preprocessing.mean, atol=1 / 255)

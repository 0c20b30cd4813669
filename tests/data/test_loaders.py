"""Batches: a function of seed, epoch and step, shared by processes; augmentation that moves pixels and nothing else."""

import hashlib
import os
import signal

import numpy as np
import pytest
import torch

from residuum.data import reading
from residuum.data.catalog import scan
from residuum.data.loaders import Schedule, make_loader
from residuum.data.preparing import evaluation_transform, normalise
from residuum.data.reading import decoded
from residuum.data.settings import Augmentation, DataSettings
from residuum.data.sources import Split, open_dataset
from residuum.errors import ConfigError, DataError
from residuum.preprocessing import Preprocessing

PLAIN = Preprocessing(3, (6, 5), (0.0,) * 3, (1 / 255,) * 3, 0.0)  # values stay 0 to 255
CPU = torch.device("cpu")
CROPPED = {"crop_scale": (0.08, 1.0), "flip": "random"}


def made(
    split, preprocessing, batch_size=4, seed=0, train=True, workers=0, skip=False, rank=0, world=1, balance=0.0,
    epochs=1, norm_batch=None, shared=False, **augment
):  # fmt: skip
    return make_loader(
        split,
        preprocessing,
        batch_size=batch_size,
        seed=seed,
        train=train,
        augmentation=Augmentation(**augment),
        device=CPU,
        workers=workers,
        skip_bad_images=skip,
        rank=rank,
        world=world,
        norm_batch=norm_batch,
        shared=shared,
        balance=balance,
        epochs=epochs,
    )


def memory(count=10, **options):
    pixels = torch.arange(count * 90, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(count, 6, 5, 3)
    split = Split(pixels, torch.arange(count))
    return split, made(split, PLAIN, **options)


def files(root, train=True, skip=False, holdout=0.0, **options):
    settings = DataSettings(path=str(root), holdout=holdout, image_size=(32, 32), skip_bad_images=skip)
    dataset = open_dataset(scan(root), settings, channels=3, cache=root)
    split = dataset.train if train else dataset.test
    return made(split, dataset.preprocessing, train=train, skip=skip, **CROPPED, **options)


def gather(loader, number=0, start=0):
    return [(images.clone(), labels.clone()) for images, labels in loader.epoch(number, start)]


def equal(one, two):
    if len(one) != len(two):
        return False
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, two, strict=True))


# -- order -------------------------------------------------------------------------------------------------------------


def test_training_batches_are_full_and_shuffled_anew_each_epoch():
    _, loader = memory(train=True)
    assert len(loader) == 2
    assert loader.left_out_per_epoch == 2
    first, second = gather(loader, 0), gather(loader, 1)
    assert [len(labels) for _, labels in first] == [4, 4]
    assert [labels.tolist() for _, labels in first] != [labels.tolist() for _, labels in second]
    assert len({label for _, labels in first for label in labels.tolist()}) == 8


def test_evaluation_sees_every_image_once_in_order():
    _, loader = memory(train=False)
    assert len(loader) == 3
    assert loader.left_out_per_epoch == 0
    assert torch.cat([labels for _, labels in gather(loader)]).tolist() == list(range(10))


def test_fewer_images_than_a_batch_make_one_batch():
    _, loader = memory(count=3, batch_size=8)
    assert [len(labels) for _, labels in gather(loader)] == [3]
    assert loader.left_out_per_epoch == 0


def test_another_seed_gives_other_batches():
    assert not equal(gather(memory(seed=0)[1]), gather(memory(seed=1)[1]))


def test_no_two_seeds_walk_through_the_same_orders():
    orders = [
        tuple(torch.cat([labels for _, labels in memory(seed=seed)[1].epoch(epoch)]).tolist())
        for seed in range(6)
        for epoch in range(10)
    ]
    assert len(set(orders)) == 60


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_an_epoch_can_begin_in_the_middle_with_the_same_batches(start):
    _, loader = memory(count=12, pad=1, flip="random", crop_scale=(0.2, 1.0))
    assert equal(gather(loader, 3, start), gather(loader, 3)[start:])


def digests(loader):
    order, pixels = hashlib.sha256(), hashlib.sha256()
    for epoch in (0, 2):
        for images, labels in loader.epoch(epoch):
            pixels.update(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()).tobytes())
            order.update(labels.numpy().tobytes())
    return order.hexdigest()[:16], pixels.hexdigest()[:16]


# Of the first version that trained; whoever changes them changes what every earlier recipe trains.
@pytest.mark.parametrize(
    ("data", "train", "expected"),
    [
        ("digits", True, ("0775aad456115a73", "ebacbbae55ed34b4")),
        ("digits", False, ("6c1e6fe063c42593", "89f35e713f243d5a")),
        ("colours", True, ("090ca07ec4ace183", "eb52b436d1b2e3c3")),
        ("colours", False, ("99a103860c04315f", "e7b7b1f9ebd2dd23")),
    ],
)
def test_a_recipe_has_the_batches_that_it_always_had(image_folder, data, train, expected):
    augment, batch_size = ({"pad": 1}, 64) if data == "digits" else ({"pad": 4, "flip": "random"}, 5)
    catalog = scan(data if data == "digits" else image_folder(side=16))
    dataset = open_dataset(catalog, DataSettings(holdout=0.0), channels=catalog.channels, cache=None)
    split = dataset.train if train else dataset.test
    assert digests(made(split, dataset.preprocessing, batch_size, 3, train, **augment)) == expected


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("kind", ["memory", "files"])
def test_processes_share_each_batch_of_one_process(image_folder, kind, world):
    root = image_folder(side=80)

    def loader(**options):
        if kind == "files":
            return files(root, batch_size=5, **options)
        return memory(count=23, batch_size=5, pad=1, flip="random", crop_scale=(0.3, 1.0), **options)[1]

    whole = gather(loader(), 1)
    parts = [loader(rank=rank, world=world) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    assert {part.left_out_per_epoch for part in parts} == {loader().left_out_per_epoch}
    steps = zip(*(gather(part, 1) for part in parts), strict=True)
    together = [tuple(torch.cat(kind) for kind in zip(*step, strict=True)) for step in steps]
    assert equal(together, whole)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [10, 11, 2])
def test_processes_evaluate_each_image_once(count, world):
    parts = [memory(count=count, train=False, rank=rank, world=world)[1] for rank in range(world)]
    seen = [torch.cat([labels for _, labels in gather(part)] or [torch.empty(0)]).tolist() for part in parts]
    assert seen == [list(range(rank, count, world)) for rank in range(world)]
    for part in parts:
        assert len(part) == len(gather(part))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="a batch of 4 images cannot be shared by 5 processes"):
        memory(world=5)
    with pytest.raises(ConfigError, match="a batch of 3 images cannot be shared by 4 processes"):
        memory(count=3, batch_size=8, world=4)


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_without_augmentation_pixels_are_the_images_own_and_channels_last():
    split, loader = memory(train=True)
    for images, labels in gather(loader):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, split.images[labels].permute(0, 3, 1, 2).float())


def test_shifts_move_up_to_pad_pixels_and_mirroring_takes_about_half():
    split, loader = memory(count=64, batch_size=64, pad=1, flip="random")
    seen = set()
    for epoch in range(4):
        for images, labels in gather(loader, epoch):
            padded = torch.zeros(64, 3, 8, 7)
            padded[:, :, 1:7, 1:6] = split.images.permute(0, 3, 1, 2).float()
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


def test_evaluation_is_not_augmented():
    split, loader = memory(train=False, pad=2, flip="random", crop_scale=(0.1, 0.5))
    assert torch.equal(torch.cat([images for images, _ in gather(loader)]), split.images.permute(0, 3, 1, 2).float())


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_files_come_in_the_same_batches_from_any_number_of_workers(image_folder, workers):
    root = image_folder(side=80)
    reference = gather(files(root), 1)
    loader = files(root, workers=workers)
    assert equal(gather(loader, 1), reference)
    assert equal(gather(loader, 1, start=2), reference[2:])
    assert reference[0][0].shape == (4, 3, 32, 32)
    assert reference[0][0].is_contiguous(memory_format=torch.channels_last)


def test_reading_files_leaves_the_random_state_alone(image_folder):
    loader = files(image_folder(side=80))
    before = torch.get_rng_state()
    gather(loader)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_bad_file_is_named_or_another_takes_its_place_when_asked(image_folder):
    root = image_folder(side=80)
    (root / "train" / "red" / "0.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"red/0\.png.*--skip-bad-images"):
        gather(files(root))
    runs = [gather(loader := files(root, skip=True, workers=workers)) for workers in (0, 2)]
    assert [len(labels) for _, labels in runs[0]] == [4] * 6
    assert equal(*runs)
    assert len(loader.skipped) == 1
    assert "red/0.png' cannot be decoded" in next(iter(loader.skipped))
    sound = gather(files(image_folder_without_damage(root)))
    changed = sum(
        not torch.equal(a, b)
        for (one, _), (two, _) in zip(runs[0], sound, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert changed == 1


def image_folder_without_damage(root):
    from tests.conftest import COLOURS, paint

    paint(root / "train" / "red" / "0.png", 80, COLOURS["red"], seed=200)
    return root


def test_evaluation_leaves_a_bad_files_place_empty(image_folder):
    root = image_folder(side=80)
    for i in range(4):
        (root / "test" / "blue" / f"{i}.png").write_bytes(b"junk")
    loader = files(root, train=False, skip=True)
    assert [labels.tolist() for _, labels in gather(loader)] == [[1] * 4, [2] * 4]
    assert len(loader.skipped) == 4


def test_training_without_enough_readable_files_ends_in_a_sentence(image_folder):
    root = image_folder(side=80)
    for path in root.glob("train/*/*"):
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match="too few images can be decoded to fill a batch, first: "):
        gather(files(root, skip=True))


@pytest.mark.slow  # torch looks every five seconds
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_worker_that_dies_is_told_of_with_the_file_that_it_read(image_folder, monkeypatch):
    root = image_folder(side=80)
    sound = reading.read_image

    def deadly(path, channels):
        if path.endswith("green/3.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return sound(path, channels)

    monkeypatch.setattr(reading, "read_image", deadly)
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DataError, match=r"a worker process .* died while it read '.*green/3\.png' ") as refusal:
        gather(files(root, workers=1, train=True))
    assert "\n" not in str(refusal.value)
    assert signal.getsignal(signal.SIGCHLD) == handler
    with pytest.raises(DataError, match=r"died while it read '.*green/3\.png' "):
        monkeypatch.setattr(reading, "_WORTH_A_WORKER", 1)
        decoded([str(p) for p in sorted(root.glob("train/*/*"))], (80, 80), 3, lambda text: None, stop_at_bad=True)


# -- reading into memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_processes_reads_the_same_images(image_folder, monkeypatch, workers):
    paths = [str(p) for p in sorted(image_folder(side=16).glob("*/*/*"))]
    monkeypatch.setattr(reading, "_WORTH_A_WORKER", len(paths) // workers if workers else 1000)
    monkeypatch.setattr(reading, "_CHUNK", 16 * 16 * 3 * 5)
    said = []
    images, bad = decoded(paths, (16, 16), 3, said.append, stop_at_bad=True)
    assert bad == {}
    for path, image in zip(paths, images, strict=True):
        assert torch.equal(image, reading.read_image(path, 3).permute(1, 2, 0))
    assert said == (["reading 36 images into memory"] if workers else [])


def test_reading_says_how_far_it_has_come(image_folder, monkeypatch):
    paths = [str(p) for p in sorted(image_folder(side=16).glob("*/*/*"))]
    monkeypatch.setattr(reading, "TELL_EVERY", 0.0)
    monkeypatch.setattr(reading, "_CHUNK", 16 * 16 * 3 * 12)
    said = []
    decoded(paths, (16, 16), 3, said.append, stop_at_bad=True)
    assert said == [f"{count} of 36 images are read" for count in (12, 24, 36)]


# -- balance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_balanced_epoch_is_as_long_and_no_view_of_an_image_comes_twice(repeats):
    labels = torch.tensor([0] * 20 + [1] * 4)
    split = Split(torch.zeros(24, 6, 5, 3, dtype=torch.uint8), labels)
    loader = made(split, PLAIN, balance=1.0, repeats=repeats)
    plain = made(split, PLAIN, repeats=repeats)
    numbers = torch.cat(loader.schedule.batches(0))
    assert len(loader) == len(plain)
    assert len(numbers.unique()) == len(numbers) == 24
    assert abs(labels[numbers % 24].sum().item() - 12) <= 1 + repeats


def test_a_balanced_epoch_of_files_varies_each_view(image_folder):
    root = image_folder(side=80)
    for i in range(1, 8):
        (root / "train" / "red" / f"{i}.png").unlink()
    batches = gather(files(root, balance=1.0, batch_size=17))
    (images, labels), *_ = batches
    red = images[labels == 2]
    assert len(red) >= 5
    assert len({image.sum().item() for image in red}) == len(red)
    assert equal(batches, gather(files(root, balance=1.0, batch_size=17, workers=2)))


# -- mirroring that alternates, sizes ----------------------------------------------------------------------------------


def mirrored(split, loader, epoch):
    """Whether each image is mirrored in an epoch, by its label, which is its number."""
    found = {}
    for images, labels in loader.epoch(epoch):
        for image, label in zip(images, labels.tolist(), strict=True):
            found[label] = not torch.equal(image, split.images[label].permute(2, 0, 1).float())
    return found


def test_mirrors_that_alternate_turn_every_image_over_from_one_epoch_to_the_next():
    split, loader = memory(count=40, batch_size=8, flip="alternate")
    first, second, third = (mirrored(split, loader, epoch) for epoch in range(3))
    assert first == third == {label: not turned for label, turned in second.items()}
    assert 10 < sum(first.values()) < 30
    assert first != mirrored(split, memory(count=40, batch_size=8, flip="alternate", seed=1)[1], 0)
    assert first == mirrored(split, memory(count=40, batch_size=4, flip="alternate")[1], 0)


def test_mirrors_alternate_in_files_as_in_memory(image_folder):
    root = image_folder(side=16)
    sides = []
    for size in (None, (20, 20)):  # held in memory, and read each time
        settings = DataSettings(path=str(root), holdout=0.0, image_size=size)
        dataset = open_dataset(scan(root), settings, channels=3, cache=root)
        plain, turned = (made(dataset.train, dataset.preprocessing, flip=flip) for flip in ("none", "alternate"))
        assert isinstance(dataset.train.images, torch.Tensor) == (size is None)
        for epoch in (0, 1):
            pairs = zip(gather(plain, epoch), gather(turned, epoch), strict=True)
            sides += [not torch.equal(a, b) for (one, _), (two, _) in pairs for a, b in zip(one, two, strict=True)]
    half = len(sides) // 2
    assert sides[:half] == sides[half:]
    assert 0 < sum(sides[: half // 2]) < half // 2


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_sizes_grow_with_the_epochs_and_steps_stay(image_folder, kind):
    root = image_folder(side=16)
    settings = DataSettings(path=str(root), holdout=0.0, image_size=(20, 20) if kind == "files" else None)
    dataset = open_dataset(scan(root), settings, channels=3, cache=root)
    options = {"sizes": "8:0.5,12:0.75,16", "pad": 1, "epochs": 4}
    loader = made(dataset.train, dataset.preprocessing, **options)
    seen = [{tuple(images.shape[-2:]) for images, _ in loader.epoch(epoch)} for epoch in range(4)]
    assert seen == [{(8, 8)}, {(8, 8)}, {(12, 12)}, {(16, 16)}]
    plain = made(dataset.train, dataset.preprocessing, pad=1)
    assert [labels.tolist() for _, labels in loader.epoch(0)] == [labels.tolist() for _, labels in plain.epoch(0)]
    assert equal(gather(loader, 2, 3), gather(made(dataset.train, dataset.preprocessing, **options), 2)[3:])


def test_images_in_memory_that_are_scaled_are_those_that_evaluation_of_a_file_gives():
    settings = DataSettings(image_size=(14, 12), crop=0.9, interpolation="bicubic")
    dataset = open_dataset(scan("digits"), settings, channels=1, cache=None)
    assert dataset.preprocessing.image_size == (14, 12)
    loader = made(dataset.test, dataset.preprocessing, batch_size=50, train=False)
    images, _ = next(iter(loader.epoch(0)))
    transform = evaluation_transform(dataset.preprocessing)
    expected = torch.stack([transform(image.permute(2, 0, 1)) for image in dataset.test.images[:50]])
    assert torch.equal(images, normalise(expected, dataset.preprocessing))


def test_a_mirrored_border_needs_enough_pixels():
    assert memory(pad=4, border="reflect")
    with pytest.raises(ConfigError, match="augment.pad is 5, but images of 5 pixels have only 4 to mirror"):
        memory(pad=5, border="reflect")


# -- chunks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "chunks", "images"),
    [(1, [4], [64]), (2, [2, 2], [32, 32]), (3, [2, 1, 1], [32, 16, 16]), (4, [1] * 4, [16] * 4)],
)
def test_processes_take_whole_chunks_in_contiguous_runs(world, chunks, images):
    parts = [Schedule(200, 64, 0, True, rank, world, norm_batch=16) for rank in range(world)]
    assert [len(part.own_chunks) for part in parts] == chunks
    assert [len(part.share) for part in parts] == images
    assert torch.equal(torch.cat([part.batches(1)[2] for part in parts]), parts[0].batches(1)[2].new_tensor(
        Schedule(200, 64, 0, True).batches(1)[2].tolist()
    ))  # fmt: skip
    assert len({part.digest(3) for part in parts} | {Schedule(200, 64, 0, True).digest(3)}) == 1


@pytest.mark.parametrize(("world", "norm_batch"), [(1, 16), (2, 64), (3, 16), (5, 32)])
def test_processes_that_share_chunks_have_a_part_of_each_and_together_the_batch(world, norm_batch):
    parts = [Schedule(200, 64, 0, True, rank, world, norm_batch=norm_batch, shared=True) for rank in range(world)]
    sizes = {part.part(number).stop - part.part(number).start for part in parts for number in part.own_chunks}
    assert sizes <= {norm_batch // world, norm_batch // world + 1}
    assert {part.own_chunks for part in parts} == {range(64 // norm_batch)}
    whole = Schedule(200, 64, 0, True).batches(1)[2]
    found = torch.empty_like(whole)
    for part in parts:
        found[part.share] = part.batches(1)[2]
    assert torch.equal(found, whole)
    assert sorted(torch.cat([part.share for part in parts]).tolist()) == list(range(64))


def test_a_chunk_of_fewer_images_than_processes_cannot_be_shared():
    with pytest.raises(ConfigError, match="a chunk of 2 images cannot be shared by 3 processes"):
        memory(count=64, batch_size=8, norm_batch=2, world=3, shared=True)


def test_a_set_smaller_than_a_batch_has_a_short_last_chunk_or_is_refused():
    _, loader = memory(count=7, batch_size=12, norm_batch=4)
    assert [loader.schedule.chunk(number) for number in loader.schedule.own_chunks] == [slice(0, 4), slice(4, 7)]
    with pytest.raises(ConfigError, match="all 9 train images.*last chunk of norm_batch 4 would have one"):
        memory(count=9, batch_size=12, norm_batch=4)
    with pytest.raises(
        ConfigError, match="7 images has 2 chunks of norm_batch 4, too few for 3 processes.*--norm-batch"
    ):
        memory(count=7, batch_size=12, norm_batch=4, world=3)


def test_no_seeds_have_an_epoch_in_common():
    """With a generator seeded by seed + epoch, seed 1 would walk through the orders of seed 0, an epoch earlier."""
    digests = [
        tuple(Schedule(50, 10, seed, True).batches(epoch)[0].tolist()) for seed in range(10) for epoch in range(20)
    ]
    assert len(set(digests)) == 200

"""MixUp and CutMix: torchvision's pictures, drawn anew for each place and the same at each look."""

import pytest
import torch
from torchvision.transforms import v2

from residuum.train.mixing import mix

PLACE = {"seed": 3, "epoch": 2, "step": 5, "chunk": 1}
IDS = torch.tensor([2, 0, 1, 1, 3, 2])
KINDS = {"mixup": {"mixup": 0.2, "cutmix": 0.0}, "cutmix": {"mixup": 0.0, "cutmix": 1.0}}
BOTH = {"mixup": 0.2, "cutmix": 1.0}


def batch(height=12, width=16):
    images = torch.randn(6, 3, height, width, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


def changed_pixels(found, images):
    return ((found.images != images).any(1)).float().mean().item()


@pytest.mark.parametrize("step", range(8))
def test_mixup_is_torchvisions(step):
    images = batch()
    found = mix(images, IDS, **KINDS["mixup"], **PLACE | {"step": step})
    of_torchvision = v2.MixUp(num_classes=4)
    drawn = {"labels": IDS, "batch_size": 6, "lam": found.share}
    torch.testing.assert_close(found.images, of_torchvision.transform(images, drawn), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.targets(4), of_torchvision.transform(IDS, drawn), rtol=0, atol=1e-7)


@pytest.mark.parametrize("step", range(8))
def test_cutmix_is_torchvisions_with_the_share_of_pixels_that_are_left(step):
    images = batch()
    found = mix(images, IDS, **KINDS["cutmix"], **PLACE | {"step": step})
    other = (found.images != images).any(1)
    assert torch.equal(found.images, torch.where(other[:, None], images.roll(1, 0), images))
    rows, columns = (other.any(dim).any(0).nonzero().flatten() for dim in (2, 1))
    box = (0, 0, 0, 0)
    if len(rows):
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    drawn = {"labels": IDS, "batch_size": 6, "box": box, "lam_adjusted": found.share}
    of_torchvision = v2.CutMix(num_classes=4)
    assert torch.equal(found.images, of_torchvision.transform(images, drawn))
    torch.testing.assert_close(found.targets(4), of_torchvision.transform(IDS, drawn), rtol=0, atol=1e-7)
    assert found.share == pytest.approx(1 - changed_pixels(found, images), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_mix_as_the_whole_does(kind):
    images = batch()
    whole = mix(images, IDS, **KINDS[kind], **PLACE)
    befores = [(images[-1:], IDS[-1:]), (images[:1], IDS[:1]), (images[3:4], IDS[3:4])]
    for part, before in zip((slice(0, 1), slice(1, 4), slice(4, 6)), befores, strict=True):
        found = mix(images[part], IDS[part], **KINDS[kind], **PLACE, before=before)
        assert torch.equal(found.images, whole.images[part])
        assert torch.equal(found.targets(4), whole.targets(4)[part])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_place_mixes_alike_and_any_other_place_otherwise(kind):
    images = batch(64, 64)
    first, again = (mix(images, IDS, **KINDS[kind], **PLACE) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.share == again.share
    others = [mix(images, IDS, **KINDS[kind], **PLACE | {name: value + 1}) for name, value in PLACE.items()]
    assert len({first.share, *(other.share for other in others)}) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_leaves_generator_batch_and_memory_format_as_they_are(kind):
    images = batch()
    before, generator = images.clone(), torch.random.get_rng_state()
    found = mix(images, IDS, **KINDS[kind], **PLACE)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert torch.equal(images, before)
    assert found.images.is_contiguous(memory_format=torch.channels_last)


def test_with_both_a_coin_chooses_for_each_batch():
    images = batch()
    cut = 0
    for step in range(200):
        found = mix(images, IDS, **BOTH, **PLACE | {"step": step})
        taken = (found.images == images) | (found.images == images.roll(1, 0))
        cut += bool(taken.all())
    assert 70 <= cut <= 130


def test_shares_follow_the_beta_distribution():
    images = batch(2, 2)
    shares = torch.tensor([mix(images, IDS, mixup=0.2, cutmix=0.0, **PLACE | {"step": s}).share for s in range(1000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)


def test_soft_labels_are_mixed_as_they_are():
    soft = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    found = mix(batch(), soft, **KINDS["mixup"], **PLACE)
    torch.testing.assert_close(found.targets(4), found.share * soft + (1 - found.share) * soft.roll(1, 0))


@pytest.mark.parametrize("settings", [{"mixup": 0.0, "cutmix": 0.0}, BOTH])
def test_one_image_or_no_mixing_stays_as_it_is(settings):
    images = batch()[:1] if settings["mixup"] else batch()
    labels = IDS[: len(images)]
    found = mix(images, labels, **settings, **PLACE)
    assert found.images is images
    assert found.labels is labels
    assert found.share == 1.0

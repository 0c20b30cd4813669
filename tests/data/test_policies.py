"""Policies by name: torchvision's own, on colour and on grey images."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from residuum.data.policies import erasing_transform, parse_policy, policy_transform
from residuum.errors import ConfigError

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

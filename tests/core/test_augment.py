"""Augmentation is a pure function of (seed, view, sample index)."""

from __future__ import annotations

import pytest
import torch

from kdzoo.data.augmentation import PADDING, augment, hash_index
from kdzoo.types import derive_seed

IMAGES = torch.arange(6 * 2 * 7 * 5, dtype=torch.uint8).reshape(6, 2, 7, 5)
INDEX = torch.tensor([0, 1, 2, 3, 1000, 123456789])


def splitmix64(key: int, index: int) -> int:
    """The mixer on Python's unbounded integers, as its authors define it."""
    mask = 2**64 - 1
    bits = ((index + 1) * 0x9E3779B97F4A7C15 + key) & mask
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return bits ^ (bits >> 31)


def test_the_hash_is_splitmix64() -> None:
    key = derive_seed(7, "anything")
    hashed = hash_index(key, INDEX).tolist()
    assert [value % 2**64 for value in hashed] == [splitmix64(key, index) for index in INDEX.tolist()]


@pytest.mark.parametrize("view", [0, 3])
def test_crop_and_flip_are_what_a_loop_over_samples_would_cut(view: int) -> None:
    got = augment(IMAGES, INDEX, "crop_flip", 5, view)
    for image, index, cut in zip(IMAGES, INDEX.tolist(), got, strict=True):
        bits = splitmix64(derive_seed(5, "augment", "first", view), index)
        top, left = (((bits >> at) & 0xFFFF) * (2 * PADDING + 1) >> 16 for at in (16, 32))
        turned = image.flip(2) if bits & 1 else image
        padded = torch.zeros(2, 7 + 2 * PADDING, 5 + 2 * PADDING, dtype=torch.uint8)
        padded[:, PADDING : PADDING + 7, PADDING : PADDING + 5] = turned
        assert torch.equal(cut, padded[:, top : top + 7, left : left + 5])


@pytest.mark.parametrize("kind", ["none", "flip", "crop_flip"])
def test_a_sample_does_not_depend_on_its_batch(kind: str) -> None:
    whole = augment(IMAGES, INDEX, kind, 0, 2)
    turned = torch.tensor([4, 0, 5])
    assert torch.equal(augment(IMAGES[turned], INDEX[turned], kind, 0, 2), whole[turned])
    for i in range(len(IMAGES)):
        assert torch.equal(augment(IMAGES[i : i + 1], INDEX[i : i + 1], kind, 0, 2), whole[i : i + 1])


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), augment(IMAGES, INDEX, "crop_flip", 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(IMAGES, INDEX, "crop_flip", 0, 0), first)


def test_seed_and_view_each_give_another_draw() -> None:
    many = torch.arange(64).expand(64, 64).T.reshape(64, 1, 8, 8).to(torch.uint8) + 100
    index = torch.arange(64)
    shown = [augment(many, index, "crop_flip", seed, view) for seed, view in ((0, 0), (1, 0), (0, 1))]
    for i, one in enumerate(shown):
        for other in shown[i + 1 :]:
            differing = (one != other).flatten(1).any(1).float().mean()
            assert differing > 0.9


def test_draws_are_spread_evenly() -> None:
    index = torch.arange(20_000)
    corners = torch.zeros(len(index), 1, 9, 9, dtype=torch.uint8)
    corners[:, :, 4, 4] = 1  # after the crop it lies at 4 + PADDING - top, 4 + PADDING - left
    cut = augment(corners, index, "crop_flip", 0, 0).flatten(1)
    counts = torch.bincount(cut.argmax(1), minlength=81).float() / len(index)
    assert counts.min() > 0.8 / 81
    assert counts.max() < 1.2 / 81
    halves = torch.zeros(len(index), 1, 1, 2, dtype=torch.uint8)
    halves[..., 0] = 1
    assert augment(halves, index, "flip", 0, 0)[..., 0].float().mean() == pytest.approx(0.5, abs=0.02)


def test_none_returns_the_very_pixels() -> None:
    assert augment(IMAGES, INDEX, "none", 0, 0) is IMAGES

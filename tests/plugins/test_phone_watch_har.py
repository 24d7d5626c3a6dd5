"""The paired windows: which are in which split, where each sensor is, and what a wrong file is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdzoo.api.data import ArraySplit, DataError
from kdzoo_cross_modal.phone_watch_har import PhoneWatchHAR
from kdzoo_vision.renderings import edges


def write(root: Path, **changes: np.ndarray) -> Path:
    place = root / "phone_watch_har"
    place.mkdir()
    numbers = np.random.default_rng(0).standard_normal((2, 23, 6, 50)).astype(np.float32)
    arrays = {
        "phone": numbers[0],
        "watch": numbers[1],
        "label": np.arange(23) % 5,
        "subject": np.array([f"s{k:02d}" for k in range(1, 24)]),
        "classes": np.array(list("abcde")),
    }
    np.savez(place / "phone_watch_har.npz", **{**arrays, **changes})
    return place / "phone_watch_har.npz"


def source() -> PhoneWatchHAR:
    return PhoneWatchHAR(PhoneWatchHAR.Options())


def test_people_and_sensors_are_where_they_belong(tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = source().load(tmp_path)
    train, validation, test = splits.train, splits.validation, splits.test()
    assert isinstance(train, ArraySplit)
    assert isinstance(validation, ArraySplit)
    assert isinstance(test, ArraySplit)
    assert [len(split.targets) for split in (train, validation, test)] == [15, 3, 5]
    assert train.images.shape == (15, 1, 50, 12)
    with np.load(path) as file:
        np.testing.assert_array_equal(train.images[4, 0].T[:6], file["phone"][4])
        np.testing.assert_array_equal(test.images[0, 0].T[6:], file["watch"][18])
        assert test.targets[0] == file["label"][18]
    assert splits.modalities == {"phone": (0, 6), "watch": (6, 12)}
    assert splits.mean[7] == pytest.approx(float(train.images[..., 7].mean()), abs=1e-6)


def test_a_missing_file_is_told_with_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        source().load(tmp_path)
    place = tmp_path / "phone_watch_har" / "phone_watch_har.npz"
    assert str(caught.value) == (
        f"data set 'phone_watch_har': no file {place}; make it of the published recordings (see the documentation), or "
        "set data.root or $KDZOO_DATA to the folder that holds phone_watch_har/phone_watch_har.npz"
    )


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "phone_watch_har"
    place.mkdir()
    np.savez(place / "phone_watch_har.npz", phone=np.zeros(3))
    with pytest.raises(DataError, match=r"phone_watch_har\.npz: must hold plain arrays phone, watch, label, subject,"):
        source().load(tmp_path)


def test_edges_by_hand() -> None:
    image = np.zeros((1, 3, 4), np.uint8)
    image[:, :, 2:] = 255  # a step from black to white between the second column and the third
    np.testing.assert_array_equal(edges(image)[0], [[0, 255, 255, 0]] * 3)
    assert not edges(np.full((1, 4, 4, 3), 77, np.uint8)).any()

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from vision_files import as_colours, depth, image, labels, normals

from sparsemtl.data.images.maps import (
    IGNORE,
    BinaryMaps,
    ClassMap,
    DepthMap,
    Field,
    ImageSource,
    LabelTable,
    NormalMap,
    Values,
    as_stored,
    from_millimetres,
)
from sparsemtl.data.images.pictures import Array, nearest
from sparsemtl.data.lazy import DecodedSample, LazySplit
from sparsemtl.errors import DataError, LabelWarning
from sparsemtl.tasks import Depth, Normals, Segmentation

TABLE = LabelTable("the toy", ("a", "b", "c"), {-1: IGNORE, 0: 0, 1: 1, 7: 2})


@dataclass(frozen=True)
class Given:
    """Arrays that are there already."""

    name: str
    arrays: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.arrays)

    def where(self, row: int) -> str:
        return f"{self.name}{row}"

    def read(self, row: int) -> Array:
        return self.arrays[row]


def given(array: Any, name: str = "map") -> Given:
    return Given(name, (np.asarray(array),))


def source(*fields: Field, size: Any = None) -> ImageSource:
    return ImageSource(Given("image", (image(0),)), fields, size)


def sample(*fields: Field, size: Any = None) -> DecodedSample:
    read = source(*fields, size=size)
    return read.sample(0, read.targets)


def full(value: Any) -> Array:
    return np.full((16, 24), value)


def test_ids_become_classes_by_their_table() -> None:
    ids = labels(0, 0, 3)
    found = sample(ClassMap("seg", given(np.array([-1, 0, 1, 7])[ids]), TABLE)).targets["seg"]
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.array([IGNORE, 0, 1, 2])[ids])


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float32, np.float64])
def test_ids_may_be_of_any_type_that_holds_them(dtype: Any) -> None:
    ids = np.array([-1, 0, 1, 7])[labels(0, 0, 3)]
    expected = sample(ClassMap("seg", given(ids), TABLE)).targets["seg"]
    assert torch.equal(sample(ClassMap("seg", given(ids.astype(dtype)[..., None]), TABLE)).targets["seg"], expected)


@pytest.mark.parametrize("wrong", [2, 8, -2, 255, 0.5, float("nan"), float("inf")])
def test_an_id_beyond_the_table_is_named_with_its_file(wrong: float) -> None:
    ids = full(1.0)
    ids[3, 4] = wrong
    with pytest.raises(DataError, match=rf"map0 has a label {wrong:g} \(1 of 384 pixels.*the toy are -1 \.\. 1 and 7"):
        sample(ClassMap("seg", given(ids), TABLE))


def test_every_class_can_be_a_map_of_its_own_with_unknown_pixels_outside_of_all() -> None:
    ids = np.array([-1, 0, 1, 7])[labels(0, 0, 3)]
    maps = sample(BinaryMaps(ClassMap("seg", given(ids), TABLE))).targets
    assert list(maps) == ["a", "b", "c"]
    for name, number in (("a", 0), ("b", 1), ("c", 7)):
        assert np.array_equal(maps[name].numpy(), ids == number)
    assert torch.equal(sum(maps.values(), torch.tensor(0)), torch.from_numpy(ids != -1).to(torch.uint8))


def test_maps_are_resized_by_the_nearest_pixel() -> None:
    ids, metres, vectors = np.array([-1, 0, 1, 7])[labels(0, 0, 3)], depth(0), normals(0)
    fields = (
        ClassMap("seg", given(ids), TABLE),
        DepthMap("depth", given(metres), as_stored),
        NormalMap("normals", given(vectors)),
    )
    small = sample(*fields, size=(5, 7))
    assert small.x.shape == (3, 5, 7)
    assert np.array_equal(small.targets["depth"][0].numpy(), nearest(metres, (5, 7)))
    assert np.allclose(small.targets["normals"].numpy().transpose(1, 2, 0), nearest(vectors, (5, 7)), atol=1e-6)
    classes = sample(*fields).targets["seg"].numpy()
    assert np.array_equal(small.targets["seg"].numpy(), nearest(classes, (5, 7)))


def test_tasks_read_what_the_maps_give() -> None:
    ids = np.array([-1, 0, 1, 7])[labels(0, 0, 3)]
    fields = (
        ClassMap("seg", given(ids), TABLE),
        DepthMap("depth", given(depth(0)[..., None]), as_stored),
        NormalMap("normals", given(normals(0))),
    )
    _, targets = next(iter(LazySplit.of(source(*fields), workers=0, memory=0).loader(1)))
    for task, unknown in ((Segmentation("seg", 3), ids == -1), (Depth("depth"), depth(0) == 0)):
        known = task.known(task.labels(targets))[0]
        assert np.array_equal(~known.numpy(), unknown)
    directions = Normals("normals").labels(targets)
    assert np.array_equal(Normals("normals").known(directions)[0].numpy(), normals(0).any(axis=2))


def test_depth_that_is_not_finite_becomes_unknown_and_is_told() -> None:
    metres = depth(0)
    metres[2, 3:5], metres[4, 4] = np.nan, np.inf
    read = sample(DepthMap("depth", given(metres), as_stored))
    assert read.remarks["depth: not finite"].startswith("map0: 3 of 384 pixels are NaN or infinite")
    expected = np.where(np.isfinite(metres), metres, 0)
    assert np.array_equal(read.targets["depth"][0].numpy(), expected)
    split = LazySplit.of(source(DepthMap("depth", given(metres), as_stored)), workers=0, memory=0)
    with pytest.warns(LabelWarning, match="3 of 384 pixels are NaN or infinite; they count as unknown for 'depth'"):
        next(iter(split.loader(1)))


def test_normals_that_are_not_finite_become_unknown() -> None:
    vectors = normals(0)
    vectors[5, 6, 1] = np.nan
    read = sample(NormalMap("normals", given(vectors)))
    assert "normals: not finite" in read.remarks
    assert not read.targets["normals"][:, 5, 6].any()
    assert read.targets["normals"].isfinite().all()


@pytest.mark.parametrize(
    "field",
    [
        ClassMap("seg", given(full(-1)), TABLE),
        DepthMap("seg", given(full(0.0)), as_stored),
        DepthMap("seg", given(full(np.nan)), as_stored),
        NormalMap("seg", given(np.zeros((16, 24, 3)))),
    ],
    ids=["classes", "depth", "NaN", "normals"],
)
def test_a_map_without_a_known_pixel_is_told(field: Field) -> None:
    assert sample(field).remarks["seg: empty"] == "map0 has no known pixel; the sample adds nothing to 'seg'."


def test_a_map_with_a_known_pixel_is_not() -> None:
    assert sample(ClassMap("seg", given(full(0)), TABLE)).remarks == {}


def test_millimetres_become_metres() -> None:
    stored = (1000 * depth(0)).round().astype(np.uint16)
    metres = sample(DepthMap("depth", given(stored), from_millimetres)).targets["depth"][0]
    assert np.allclose(metres.numpy(), depth(0), atol=5.1e-4)
    assert not metres[0].any()
    with pytest.raises(DataError, match="map0 holds uint8; depth in a picture has 16 bits"):
        sample(DepthMap("depth", given(stored.astype(np.uint8)), from_millimetres))


def test_normals_are_brought_to_length_one_and_short_ones_are_unknown() -> None:
    vectors = normals(0) * 0.8
    vectors[1] *= 0.01
    read = sample(NormalMap("normals", given(vectors))).targets["normals"].numpy().transpose(1, 2, 0)
    assert np.allclose(read[2:], normals(0)[2:], atol=1e-6)
    assert not read[:2].any()


def test_normals_may_be_colours() -> None:
    read = sample(NormalMap("normals", given(as_colours(normals(0))))).targets["normals"].numpy().transpose(1, 2, 0)
    assert np.allclose(read, normals(0), atol=0.01)
    grey = np.full((16, 24, 3), 128, dtype=np.uint8)
    assert not sample(NormalMap("normals", given(grey))).targets["normals"].any()


def test_vectors_that_are_no_normals_are_refused() -> None:
    with pytest.raises(DataError, match="map0 has a vector of length 200; a normal has length one"):
        sample(NormalMap("normals", given(normals(0) * 200.0)))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (ClassMap("t", given(np.zeros((16, 24, 3))), TABLE), "expected one label per pixel"),
        (DepthMap("t", given(np.zeros((16, 24, 3))), as_stored), "expected one depth per pixel"),
        (NormalMap("t", given(np.zeros((16, 24)))), "expected normals"),
    ],
)
def test_arrays_of_another_form_are_refused(field: Field, message: str) -> None:
    with pytest.raises(DataError, match=rf"map0 has shape .*{message}"):
        sample(field)


@pytest.mark.parametrize(
    "field",
    [
        ClassMap("t", given(np.zeros((16, 20))), TABLE),
        DepthMap("t", given(np.ones((16, 20))), as_stored),
        NormalMap("t", given(np.ones((16, 20, 3)))),
    ],
)
def test_a_map_of_another_size_than_its_image_is_refused(field: Field) -> None:
    with pytest.raises(DataError, match="map0 has 16x20 pixels, its image image0 16x24"):
        sample(field, size=(8, 8))


def test_only_the_targets_asked_for_are_read() -> None:
    broken = DepthMap("depth", given(np.zeros((1, 1, 5))), as_stored)
    read = source(broken, Values("male", torch.tensor([1])))
    assert read.targets == ("depth", "male")
    assert read.sample(0, ["male"]).targets == {"male": torch.tensor(1)}

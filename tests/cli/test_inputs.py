import numpy
import pytest
import torch

from fxopt.cli.inputs import load_calibration, parse_inputs
from fxopt.errors import InputError


def test_sizes_and_dtypes():
    image, ids, mask = parse_inputs(["1x3x8x8", "1x16:int64", "4:bool"], seed=0)
    assert (image.shape, image.dtype) == ((1, 3, 8, 8), torch.float32)
    assert (ids.shape, ids.dtype) == ((1, 16), torch.int64)
    assert mask.dtype is torch.bool
    assert set(ids.flatten().tolist()) <= {0, 1}


def test_names_make_keywords():
    inputs = parse_inputs(["ids=1x4:int64", "scale=1"], seed=0)
    assert list(inputs) == ["ids", "scale"]


def test_seeded():
    first, again, other = (parse_inputs(["2x2"], seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_none():
    assert parse_inputs([], seed=0) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1,3,8"], "cannot read the input"),
        (["1x3:floot"], "no dtype 'floot'"),
        (["1x3:nn"], "no dtype 'nn'"),
        (["1x3:qint8"], "dtype qint8"),
        (["x=1x3", "1x3"], "a name of their own"),
    ],
)
def test_bad_inputs(texts, message):
    with pytest.raises(InputError, match=message):
        parse_inputs(texts, seed=0)


def test_calibration_from_npy_comes_in_batches_of_the_input(tmp_path):
    numpy.save(tmp_path / "c.npy", numpy.arange(20, dtype="float32").reshape(10, 2))
    batches = load_calibration(str(tmp_path / "c.npy"), ["4x2"], seed=0)
    assert [tuple(batch.shape) for batch in batches] == [(4, 2), (4, 2), (2, 2)]


def test_calibration_from_npz_by_position_and_by_name(tmp_path):
    arrays = {"a": numpy.zeros((4, 2), "float32"), "b": numpy.ones((4, 3), "float32")}
    numpy.savez(tmp_path / "c.npz", **arrays)
    first, *_ = load_calibration(str(tmp_path / "c.npz"), ["2x2", "2x3"], seed=0)
    assert [tuple(part.shape) for part in first] == [(2, 2), (2, 3)]
    first, *_ = load_calibration(str(tmp_path / "c.npz"), ["a=2x2", "b=2x3"], seed=0)
    assert {name: tuple(part.shape) for name, part in first.items()} == {"a": (2, 2), "b": (2, 3)}


def test_calibration_from_pt(tmp_path):
    batches = [torch.ones(2, 3), torch.zeros(2, 3)]
    torch.save(batches, tmp_path / "c.pt")
    loaded = load_calibration(str(tmp_path / "c.pt"), [], seed=0)
    assert all(map(torch.equal, loaded, batches))


def test_calibration_from_a_loader(models):
    assert len(load_calibration(f"{models}:loader", [], seed=0)) == 3


def test_random_calibration_is_not_the_example_input():
    batches = load_calibration("random", ["1x3"], seed=0)
    example = parse_inputs(["1x3"], seed=0)
    assert len(batches) == 4
    assert not any(torch.equal(batch[0], example[0]) for batch in batches)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.npy", None, "no calibration file"),
        ("c.csv", b"1,2", "cannot read calibration"),
        ("c.npy", b"junk", "cannot read calibration"),
        ("c.pt", b"junk", "cannot read calibration"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_calibration(str(path), ["1x3"], seed=0)


def test_objects_in_npy_are_refused(tmp_path):
    numpy.save(tmp_path / "c.npy", numpy.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read calibration"):
        load_calibration(str(tmp_path / "c.npy"), ["1x3"], seed=0)


def test_a_scalar_array_is_no_calibration(tmp_path):
    numpy.save(tmp_path / "c.npy", numpy.float32(1))
    with pytest.raises(InputError, match="a single number"):
        load_calibration(str(tmp_path / "c.npy"), ["1x3"], seed=0)


def test_named_samples_are_as_many(tmp_path):
    numpy.savez(tmp_path / "c.npz", a=numpy.zeros((4, 2)), b=numpy.zeros((3, 2)))
    with pytest.raises(InputError, match=r"different lengths: \{'a': 4, 'b': 3\}"):
        load_calibration(str(tmp_path / "c.npz"), ["1x2", "1x2"], seed=0)


def test_a_loader_takes_no_arguments(tmp_path):
    (tmp_path / "mine.py").write_text("def loader(path): return []\n")
    with pytest.raises(InputError, match=r"without arguments: missing .*'path'"):
        load_calibration(f"{tmp_path / 'mine.py'}:loader", ["1x2"], seed=0)


def test_a_number_is_no_calibration(tmp_path):
    torch.save(3, tmp_path / "c.pt")
    with pytest.raises(InputError, match="holds a int"):
        load_calibration(str(tmp_path / "c.pt"), [], seed=0)

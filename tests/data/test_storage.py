"""Files: round trips, other readers, damage, hostility."""

import errno
import io
import os
import time
import tracemalloc

import h5py
import numpy as np
import pytest

from stablebptt.data import storage
from stablebptt.data.storage import FileFormatError, Variable, encode, read, write

FORMAT = "stablebptt-test"
ATTRIBUTES = {"format": FORMAT, "format_version": 1, "words": "naïve"}


def groups():
    random = np.random.default_rng(0)
    return {
        "history": {
            "epoch": Variable(np.arange(1, 6), ("epoch",), "1", "epochs"),
            "loss": Variable(random.random(5), ("epoch",), "1", "loss"),
        },
        "controller/dense_0": {"kernel": Variable(random.random((4, 3)).astype("f4"), ("input", "output"), "1", "kernel")},
        "paths": {
            "time": Variable(np.linspace(0, 1, 7), ("time",), "s", "time"),
            "states": Variable(random.random((2, 7, 3)), ("sample", "time", "body"), "m", "states", {"flag_values": [0, 1]}),
        },
        "empty": {"epoch": Variable(np.zeros(0), ("epoch",), "1", "nothing yet")},
    }  # fmt: skip


@pytest.fixture
def little_memory():
    """What is refused must not be unpacked first."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * storage.LARGEST_CHUNK, f"{peak >> 20} MB"


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "file.h5"
    write(target, encode(ATTRIBUTES, groups()))
    return target


def assert_refused(path, *words):
    with pytest.raises(FileFormatError) as caught:
        read(path, {FORMAT})
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message, message


def test_round_trip(path):
    attributes, found = read(path, {FORMAT})
    assert attributes == ATTRIBUTES
    for place, group in groups().items():
        for name, given in group.items():
            variable = found[place][name]
            assert np.array_equal(variable.values, given.values) and variable.values.dtype == given.values.dtype
            assert (variable.dims, variable.units, variable.long_name) == (given.dims, given.units, given.long_name)
            assert variable.attributes == given.attributes
    assert found["controller/dense_0"]["input"].values.tolist() == [0, 1, 2, 3]


def test_same_input_same_bytes():
    assert encode(ATTRIBUTES, groups()) == encode(ATTRIBUTES, groups())


@pytest.mark.slow
def test_no_time_is_kept():
    """The clock is HDF5's own: it cannot be patched."""
    first = encode(ATTRIBUTES, groups())
    time.sleep(1.1)
    assert encode(ATTRIBUTES, groups()) == first


def test_every_dataset_is_compressed_checked_and_labelled(path):
    with h5py.File(path) as file:
        seen = []

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                seen.append(name)
                assert item.compression == "gzip" and item.fletcher32 and item.shuffle
                assert item.attrs["units"] and item.attrs["long_name"]
                assert item.is_scale or all(len(item.dims[axis]) == 1 for axis in range(item.ndim))

        file.visititems(visit)
        assert len(seen) == 10


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_xarray_opens_every_group(path, engine):
    xarray = pytest.importorskip("xarray", reason="xarray is not installed (extra: test)")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine), reason=f"{engine} is not installed (extra: test)")
    for place, group in groups().items():
        with xarray.open_dataset(path, group=place, engine=engine) as dataset:
            for name, given in group.items():
                assert dataset[name].dims == given.dims
                assert np.array_equal(dataset[name].values, given.values)
                assert dataset[name].attrs["long_name"] == given.long_name


def test_netcdf4_opens_it(path):
    netcdf = pytest.importorskip("netCDF4", reason="netCDF4 is not installed (extra: test)")
    with netcdf.Dataset(path) as file:
        assert file.format_version == 1
        assert file["paths/states"].dimensions == ("sample", "time", "body")
        assert list(file.groups) == ["history", "controller", "paths", "empty"]


@pytest.mark.parametrize(
    ("values", "dims", "error"),
    [
        (np.array([1j]), ("a",), TypeError),
        (np.array(["x"]), ("a",), TypeError),
        (np.array([object()]), ("a",), TypeError),
        (np.array(1.0), (), ValueError),
        (np.zeros((2, 2)), ("a",), ValueError),
    ],
)
def test_only_labelled_real_arrays(values, dims, error):
    with pytest.raises(error):
        Variable(values, dims, "1", "bad")


def test_axes_must_agree():
    two = {"x": Variable(np.zeros(2), ("a",), "1", "x"), "y": Variable(np.zeros(3), ("a",), "1", "y")}
    with pytest.raises(ValueError, match="axis a has length 3, elsewhere 2"):
        encode(ATTRIBUTES, {"g": two})


def test_truncation_anywhere(path):
    content, random = path.read_bytes(), np.random.default_rng(1)
    whole = len(content) - 48
    for length in {0, 1, 7, 8, *random.integers(0, len(content), 200).tolist()}:
        path.write_bytes(content[:length])
        if length < whole:
            assert_refused(path)
        else:
            read(path, {FORMAT})  # only the trailer is damaged


def test_a_flipped_bit_anywhere(path):
    content, random = path.read_bytes(), np.random.default_rng(2)
    truth = read(path, {FORMAT})[1]
    marker = range(len(content) - 48, len(content) - 32)
    for place in random.integers(0, len(content), 200).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        if place in marker:
            found = read(path, {FORMAT})[1]
            assert all(np.array_equal(found[g][n].values, truth[g][n].values) for g in truth for n in truth[g])
        else:
            assert_refused(path)


def test_what_is_no_file_of_ours(path, tmp_path):
    other = tmp_path / "other.h5"
    for content in (b"", b"hello", os.urandom(5000), storage.SIGNATURE + os.urandom(5000)):
        other.write_bytes(content)
        assert_refused(other)
    assert_refused(tmp_path, "not a regular file")
    with h5py.File(other, "w") as file:
        file["x"] = [1]
    assert_refused(other, "format is missing", FORMAT)
    with pytest.raises(FileFormatError, match="'stablebptt-test', not 'stablebptt-run'"):
        read(path, {"stablebptt-run"})
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.h5", {FORMAT})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert_refused(tmp_path / "fifo", "not a regular file")


@pytest.mark.usefixtures("little_memory")
def test_a_sparse_giant_is_not_read(tmp_path):
    with open(tmp_path / "giant.h5", "wb") as file:
        file.write(storage.SIGNATURE)
        file.truncate(2 << 30)
    assert_refused(tmp_path / "giant.h5", "bytes")


def hostile(change):
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = FORMAT
        change(file)
    return buffer.getvalue()


def nest(file):
    for _ in range(12):
        file = file.create_group("deeper")


HOSTILE = {
    "external link": (lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")), "link"),
    "soft link": (lambda f: f.__setitem__("x", h5py.SoftLink("/")), "link"),
    "external storage": (lambda f: f.create_dataset("x", (8,), "u1", external=[("secret.bin", 0, 8)]), "another file"),
    "bomb": (lambda f: f.create_dataset("x", (1 << 27,), "u1", chunks=(1 << 20,), compression="gzip"), "unpack"),
    "many bombs": (
        lambda f: [f.create_dataset(f"x{i}", data=np.zeros(1 << 24, "u1"), compression="gzip") for i in range(8)],
        "unpack",
    ),
    "newline": (lambda f: f.__setitem__("a\nb", h5py.SoftLink("/")), "link"),
    "giant": (lambda f: f.create_dataset("x", (1 << 40,), "f8", chunks=(1024,)), "claims"),
    "huge chunk": (lambda f: f.create_dataset("x", (1 << 28,), "u1", chunks=(1 << 28,)), "chunks"),
    "strings": (lambda f: f.create_dataset("x", data=["a", "b"]), "real numbers"),
    "complex": (lambda f: f.create_dataset("x", data=[1j]), "real numbers"),
    "compound": (lambda f: f.create_dataset("x", (4,), np.dtype([("a", "f8"), ("b", "f8", (1 << 20,))])), "real numbers"),
    "compound bomb": (
        lambda f: f.create_dataset("x", (1 << 30,), np.dtype([("a", "f8", (1 << 10,))]), chunks=(1,), compression="gzip"),
        "real numbers",
    ),
    "big attribute": (lambda f: f.attrs.__setitem__("b", np.zeros(1 << 9, np.dtype([("a", "f8", (1 << 3,))]))), None),
    "scalar": (lambda f: f.create_dataset("x", data=1.0), "single value"),
    "type": (lambda f: f.__setitem__("x", np.dtype("f8")), "neither"),
    "nesting": (nest, "nested"),
    "loop": (lambda f: f.create_group("a").__setitem__("b", f), "nested"),
    "crowd": (lambda f: [f.create_group(str(i)) for i in range(10_001)], "entries"),
    "null": (lambda f: f.create_dataset("x", data=h5py.Empty("f8")), "single value"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    change, word = HOSTILE[name]
    (tmp_path / "bad.h5").write_bytes(hostile(change))
    request.getfixturevalue("little_memory")
    if word is None:
        assert read(tmp_path / "bad.h5", {FORMAT}) == ({"format": FORMAT}, {})
    else:
        assert_refused(tmp_path / "bad.h5", word)


def test_virtual_datasets_are_refused(tmp_path):
    def change(file):
        layout = h5py.VirtualLayout((4,), "f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("x", layout)

    (tmp_path / "bad.h5").write_bytes(hostile(change))
    assert_refused(tmp_path / "bad.h5", "another file")


def test_lists_of_strings_are_not_read(tmp_path):
    content = hostile(lambda f: f.attrs.__setitem__("many", ["x" * 1000] * 10))
    (tmp_path / "file.h5").write_bytes(content)
    assert read(tmp_path / "file.h5", {FORMAT})[0] == {"format": FORMAT}


def test_empty_axes_beside_long_ones(tmp_path):
    long = {"x": Variable(np.zeros((0, 10_000, 10_000)), ("a", "b", "c"), "1", "x")}
    write(tmp_path / "file.h5", encode(ATTRIBUTES, {"g": long}))
    assert read(tmp_path / "file.h5", {FORMAT})[1]["g"]["x"].values.shape == (0, 10_000, 10_000)


def test_a_failed_write_leaves_everything_as_it_was(path, monkeypatch):
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*file.h5"):
        write(path, b"new")
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]

"""Every source of images, and one clear line for everything that can be wrong with it."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from convwright.errors import DataError, DataWarning
from convwright.training import ArrayImages, Loader, StreamImages, check_fits, load_data
from convwright.training.data.named import DATA_SETS, data_set
from convwright.training.data.sources import npz_parts


class Pairs(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        return self.items[position]


def pairs(count, make=lambda i: torch.full((3, 6, 6), i, dtype=torch.uint8)):
    return Pairs([(make(i), i % 2) for i in range(count)])


def folder(root, classes=("cat", "dog"), count=12, size=(9, 7), mode="RGB"):
    for value, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new(mode, size, 20 * i + value).save(root / name / f"{i:02}.png")
    return root


def one_line(error):
    return "\n" not in str(error.value)


def test_fashion_mini_is_balanced_and_separate():
    data = load_data("fashion-mini")
    assert (len(data.train), len(data.val), len(data.test)) == (9000, 1000, 2000)
    assert data.shape == (1, 28, 28)
    assert data.num_classes == 10
    for part, size in ((data.train, 900), (data.val, 100), (data.test, 200)):
        assert part.labels.bincount().tolist() == [size] * 10
        assert part.images.dtype == torch.uint8
    pixels = torch.cat([data.train.images, data.val.images]).double() / 255
    assert data.mean == pytest.approx([float(pixels.mean())])
    assert data.std == pytest.approx([float(pixels.std(correction=0))])


def test_test_part_is_read_only_when_asked(write_npz):
    path = write_npz(y_test=np.full(8, 9))
    data = load_data(f"npz:{path}")
    with pytest.raises(DataError, match=r"test: label 9"):
        _ = data.test


@pytest.mark.parametrize(
    "make",
    [lambda x: x, lambda x: x[..., None], lambda x: x[:, None]],
    ids=["nhw", "nhwc", "nchw"],
)
def test_npz_layouts(write_npz, make):
    images = np.random.default_rng(1).integers(0, 256, (40, 7, 5), dtype=np.uint8)
    data = load_data(f"npz:{write_npz(x_train=make(images))}", val_fraction=0)
    assert data.val is None
    assert np.array_equal(data.train.images[:, 0].numpy(), images)


def test_named_set_is_found_in_a_folder(write_npz, monkeypatch):
    path = write_npz()
    path.rename(path.parent / "fashion_mnist.npz")
    monkeypatch.setenv("CONVWRIGHT_DATA", str(path.parent))
    assert len(load_data("fashion-mnist").class_names) == 10
    assert load_data("fashion-mnist", path.parent).test.shape == (1, 7, 5)


def test_the_first_images_of_a_named_set(write_npz, monkeypatch):
    path = write_npz()
    path.rename(path.parent / "cifar10.npz")
    monkeypatch.setattr("convwright.training.data.named.well_known.FIRST", 5)
    whole, first = (load_data(name, path.parent, val_fraction=0) for name in ("cifar10", "cifar10-10k"))
    assert (len(whole.train), len(first.train)) == (40, 5)
    assert torch.equal(first.train.images, whole.train.images[:5])
    assert first.train.mean == whole.train.mean  # normalised alike
    assert len(first.test) == len(whole.test)
    assert first.class_names == whole.class_names


def test_input_shape_converts(write_npz):
    data = load_data(f"npz:{write_npz()}", input_shape=(3, 14, 10))
    assert data.shape == data.test.shape == (3, 14, 10)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


def test_failed_download_says_where_to_put_the_file(monkeypatch):
    import torchvision

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fail)
    with pytest.raises(DataError, match=r"cifar10\.npz .*--data-dir or \$CONVWRIGHT_DATA") as error:
        load_data("cifar10")
    assert one_line(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": None}, "no x_train"),
        ({"y_train": None}, "no y_train"),
        ({"x_train": np.zeros((40, 7, 5), np.float32)}, "type float32; give uint8"),
        ({"x_train": np.zeros((40, 7), np.uint8)}, r"shape \(40, 7\)"),
        ({"x_train": np.zeros((40, 7, 5, 2), np.uint8)}, "1, 3 or 4 channels"),
        ({"x_train": np.zeros((0, 7, 5), np.uint8), "y_train": np.zeros(0, int)}, "empty"),
        ({"y_train": np.zeros(40)}, "integer class numbers"),
        ({"y_train": np.zeros(39, int)}, "one label per image"),
        ({"y_train": np.arange(40) - 1}, "label -1 at position"),
        ({"y_train": np.full(40, 2)}, "train: all labels are 2; give images of two or more classes"),
        ({"y_train": np.array([None] * 40)}, "cannot be read"),
    ],
)
def test_bad_npz(write_npz, changes, message):
    path = write_npz(**changes)
    with pytest.raises(DataError, match=message) as error:
        load_data(f"npz:{path}")
    assert "set.npz" in str(error.value)
    assert one_line(error)


def test_bad_files(tmp_path):
    bad = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04 not a zip", b"text"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz: cannot be read") as error:
            load_data(f"npz:{bad}")
        assert one_line(error)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"a single array"):
        load_data(f"npz:{tmp_path / 'one.npy'}")
    with pytest.raises(DataError, match=r"no such file"):
        load_data(f"npz:{tmp_path / 'missing.npz'}")


def test_unknown_names_and_fractions():
    with pytest.raises(DataError, match=r"Did you mean fashion-mini"):
        load_data("fashion-minni")
    with pytest.raises(DataError, match=r"unknown data 'npz:'"):
        load_data("npz:")
    with pytest.raises(DataError, match=r"val_fraction"):
        load_data("fashion-mini", val_fraction=1.0)
    with pytest.raises(DataError, match=r"label 9 at position .* 0..8"):
        load_data("fashion-mini", num_classes=9)


def test_flat_folder(tmp_path):
    data = load_data(f"folder:{folder(tmp_path)}", val_fraction=0.25)
    assert data.class_names == ("cat", "dog")
    assert data.shape == (3, 7, 9)
    assert (len(data.train), len(data.val), data.has_test) == (18, 6, False)
    with pytest.raises(DataError, match=r"no test part"):
        _ = data.test


def test_folder_with_parts(tmp_path):
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        folder(tmp_path / part, count=count, mode="L")
    data = load_data(f"folder:{tmp_path}")
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 4)
    assert data.shape == (1, 7, 9)
    assert data.test.mean == data.val.mean == data.mean


def test_streamed_folder_holds_the_same_images(tmp_path):
    root = folder(tmp_path)
    memory = load_data(f"folder:{root}", input_shape=(3, 8, 8))
    stream = load_data(f"folder:{root}", input_shape=(3, 8, 8), memory_limit=0)
    assert isinstance(memory.train, ArrayImages)
    assert isinstance(stream.train, StreamImages)
    assert torch.equal(memory.train.labels, stream.train.labels)
    batches = [torch.cat([x for x, _ in Loader(d.train, 8, workers=0)]) for d in (memory, stream)]
    torch.testing.assert_close(*batches)


def test_workers_read_the_same_and_report_in_one_line(tmp_path):
    root = folder(tmp_path)
    data = load_data(f"folder:{root}", memory_limit=0, val_fraction=0)
    loader = Loader(data.train, 8, workers=2)
    for _ in range(2):
        alone = Loader(data.train, 8, workers=0)
        alone.load_state_dict(loader.state_dict())
        for (x, _), (y, _) in zip(loader, alone, strict=True):
            assert torch.equal(x, y)
    (root / "dog" / "03.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"dog.03\.png: not a readable image") as error:
        list(loader)
    assert one_line(error)


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"no such folder"):
        load_data(f"folder:{tmp_path / 'missing'}")
    with pytest.raises(DataError, match=r"no images"):
        load_data(f"folder:{tmp_path}")
    root = folder(tmp_path / "a")
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no images"):
        load_data(f"folder:{root}")
    (root / "empty").rmdir()
    (root / "cat" / "05.png").write_bytes(b"\x89PNG broken")
    for limit in (0, 10**9):
        with pytest.raises(DataError, match=r"cat.05\.png: not a readable image") as error:
            load_data(f"folder:{root}", memory_limit=limit)
        assert one_line(error)
    Image.new("RGB", (4, 4)).save(root / "cat" / "05.png")
    with pytest.raises(DataError, match=r"cat.05\.png: 4x4 pixels .* one size for all, .* --input 3x"):
        load_data(f"folder:{root}")
    assert load_data(f"folder:{root}", input_shape=(3, 7, 9)).shape == (3, 7, 9)


def test_folder_with_an_unknown_test_class(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", classes=("cat", "cow"))
    data = load_data(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"cow: this class has no training images"):
        _ = data.test


@pytest.mark.parametrize(
    "make",
    [
        lambda i: torch.full((3, 6, 6), i, dtype=torch.uint8),
        lambda i: np.full((6, 6, 3), i, np.uint8),
        lambda i: Image.new("RGB", (6, 6), (i, i, i)),
    ],
    ids=["tensor", "array", "pil"],
)
def test_datasets(make):
    data = load_data((pairs(20, make), pairs(4, make), pairs(6, make)))
    assert (len(data.train), len(data.val), len(data.test)) == (20, 4, 6)
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(20))
    assert data.num_classes == 2


def test_float_datasets_stay_as_they_are():
    data = load_data(pairs(20, lambda i: torch.full((1, 4, 4), i / 7 - 1)), val_fraction=0)
    (batch, _), *_ = Loader(data.train, 20, shuffle=False)
    assert batch[:, 0, 0, 0].tolist() == pytest.approx([i / 7 - 1 for i in range(20)])


def test_streamed_dataset_with_random_transforms_follows_the_seed():
    class Noisy(Pairs):
        def __getitem__(self, position):
            return torch.rand(1, 4, 4), position % 2

    data = load_data(Noisy([0] * 11), memory_limit=0)
    one, two = (list(Loader(data.train, 4, workers=0)) for _ in range(2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(one, two, strict=True))
    assert not torch.equal(one[0][0], one[1][0])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Pairs([]), "is empty"),
        (Pairs([torch.zeros(3, 4, 4)]), "not a pair"),
        (Pairs([(torch.zeros(3, 4, 4), "cat")]), "not a pair"),
        (Pairs([("cat", 0)]), "str is not an image"),
        (Pairs([(torch.zeros(2, 3, 4, 4), 0)]), r"shape \(2, 3, 4, 4\)"),
        (Pairs([(torch.zeros(3, 4, 4, dtype=torch.int64), 0)]), "int64"),
        (Pairs([(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 5, 4), 1)]), r"\[1\]: \(3, 5, 4\)"),
        (Pairs([(torch.zeros(3, 4, 4), -1)]), "label -1"),
        (Pairs([(torch.zeros(3, 4, 4), 1)] * 9), "Pairs: train: all labels are 1; give images of two"),
        (iter([]), "map-style"),
        ((), "0 data sets"),
    ],
)
def test_bad_datasets(dataset, message):
    with pytest.raises(DataError, match=message) as error:
        load_data(dataset)
    assert one_line(error)


@pytest.mark.parametrize("limit", [0, 10**9], ids=["streamed", "in memory"])
@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (0.37, "0.37"),
        (np.float32(0.5), "0.5"),
        (torch.tensor(1.25), r"tensor\(1.2500\)"),
        (float("nan"), "nan"),
        (torch.tensor(float("inf")), r"tensor\(inf\)"),
        ("1", "1"),
        (None, "None"),
        (torch.tensor([0.0, 1.0]), r"tensor\(\[0., 1.\]\); .*argmax"),
        (np.eye(2)[0], r"\[1. 0.\]; .*argmax"),
    ],
)
def test_labels_are_whole_numbers(label, shown, limit):
    """A regression target must not become class 0, of which any network is sure."""
    good = Pairs([(torch.zeros(3, 4, 4), i % 2) for i in range(6)])
    bad = Pairs([*good.items[:2], (torch.zeros(3, 4, 4), label)])
    with pytest.raises(DataError, match=rf"Pairs: train\[2\] is not .*its label is {shown}") as error:
        load_data(bad, memory_limit=limit)
    assert one_line(error)
    data = load_data((good, bad), memory_limit=limit)
    with pytest.raises(DataError, match=r"Pairs: test\[2\]"):
        _ = data.test


def test_labels_listed_by_a_streamed_dataset_are_whole_numbers():
    dataset = pairs(6)
    dataset.targets = torch.arange(6) / 2
    with pytest.raises(DataError, match=r"train\[1\] .*its label is tensor\(0.5000\)"):
        load_data(dataset, memory_limit=0)


@pytest.mark.parametrize("kind", [float, np.float32, np.int8, torch.tensor, lambda i: torch.tensor([float(i)])])
def test_whole_labels_of_any_type_are_class_numbers(kind):
    data = load_data(Pairs([(torch.zeros(3, 4, 4), kind(i % 2)) for i in range(6)]), val_fraction=0)
    assert data.train.labels.tolist() == [0, 1] * 3
    assert data.train.labels.dtype == torch.int64


def test_parts_must_be_alike():
    small = pairs(4, lambda i: torch.zeros(3, 5, 5, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"val: images are 3x5x5 and those of the training part"):
        load_data((pairs(8), small, pairs(4)))


def test_check_fits(write_npz):
    data = load_data(f"npz:{write_npz()}")
    check_fits(data, (1, 1, 7, 5), 4)
    check_fits(data, (1, 7, 5), 1000)
    with pytest.raises(DataError, match=r"1 channels and the network wants 3.*--input 3x7x5"):
        check_fits(data, (1, 3, 7, 5), 4)
    with pytest.raises(DataError, match=r"images are 1x7x5 and the network was read with 1x8x8"):
        check_fits(data, (1, 1, 8, 8), 4)
    with pytest.raises(DataError, match=r"4 classes and the network has 3 outputs"):
        check_fits(data, (1, 1, 7, 5), 3)
    with pytest.raises(DataError, match=r"1 channels|3 channels"):
        load_data((pairs(8),), input_shape=(1, 6, 6))


def test_data_sets_are_a_registry(monkeypatch, write_npz):
    monkeypatch.setattr("convwright.training.data.named.DATA_SETS", dict(DATA_SETS))
    assert {"fashion-mini", "mnist", "fashion-mnist", "cifar10"} <= set(DATA_SETS)
    assert all(entry.about.endswith(".") for entry in DATA_SETS.values())

    @data_set("mine")
    def mine(request):
        """Forty small images."""
        return npz_parts(write_npz(), "mine", request.shape)

    data = load_data("mine", input_shape=(3, 5, 5))
    assert (data.name, data.shape, data.num_classes) == ("mine", (3, 5, 5), 4)
    with pytest.raises(DataError, match=r"Did you mean mine\? Give one of .*mine"):
        load_data("mien")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([(torch.zeros(1, 4, 4), 0)] * 9, r"a list of 9 samples .*TensorDataset"),
        ([(torch.zeros(1, 4, 4), 0)], r"a list of 1 sample "),
        ((torch.zeros(5, 1, 4, 4), torch.zeros(5)), r"Tensor where a data set is wanted; .*TensorDataset"),
        (np.zeros((5, 4, 4)), r"ndarray where"),
        (None, r"data=None"),
        ("set.npz", r"Did you mean npz:set.npz"),
    ],
)
def test_what_was_meant_is_hinted_at(spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec)


def test_a_folder_without_its_prefix(tmp_path):
    with pytest.raises(DataError, match=r"Did you mean folder:"):
        load_data(str(tmp_path))


def one_image(root, image, name="0.png", **options):
    """Save an image as that of two classes, and return the pixels that are loaded."""
    for kind in ("cat", "dog"):
        (root / kind).mkdir(parents=True, exist_ok=True)
        image.save(root / kind / name, **options)
    return load_data(f"folder:{root}", val_fraction=0).train.images[0]


def test_16_bits_are_scaled_and_not_cut_off(tmp_path):
    values = np.arange(0, 65536, 257).astype(np.uint16).reshape(16, 16)
    assert torch.equal(one_image(tmp_path, Image.fromarray(values)).flatten(), torch.arange(256).byte())
    with pytest.raises(DataError, match=r"0\.tif: float32 pixels from 1.0 to 1.0; save it as 8 bit"):
        one_image(tmp_path / "float", Image.fromarray(np.ones((4, 4), np.float32)), "0.tif")


def test_transparent_pixels_are_white_and_grey_stays_grey(tmp_path):
    grey = np.full((4, 4, 2), 100, np.uint8)
    grey[..., 1] = [0, 255, 255, 255]
    loaded = one_image(tmp_path / "LA", Image.fromarray(grey, "LA"))
    assert loaded.shape == (1, 4, 4)
    assert loaded[0, 0].tolist() == [255, 100, 100, 100]
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert one_image(tmp_path / "P", palette, transparency=0)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]
    cyan = one_image(tmp_path / "CMYK", Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "0.tif")
    assert cyan[:, 0, 0].tolist() == [0, 255, 255]


def test_photographs_are_turned_upright(tmp_path):
    upright = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    turns = [None, 0, 3, 1, 5, 2, 6, 4]  # what a camera did before it noted orientation 1, 2, ...
    for orientation, turn in enumerate(turns, start=1):
        photo = upright if turn is None else upright.transpose(Image.Transpose(turn))
        exif = photo.getexif()
        exif[0x112] = orientation
        loaded = one_image(tmp_path / str(orientation), photo, exif=exif)
        assert np.array_equal(loaded.permute(1, 2, 0).numpy(), np.array(upright)), orientation


def test_images_of_a_data_set_are_no_numbers_of_a_palette():
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    data = load_data(Pairs([(palette, i % 2) for i in range(4)]), val_fraction=0)
    assert data.train.images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_colour_after_a_grey_image_is_not_made_grey(tmp_path):
    folder(tmp_path, mode="L")
    Image.new("RGB", (9, 7), (255, 0, 0)).save(tmp_path / "dog" / "99.png")
    with pytest.raises(DataError, match=r"99\.png: in colour where the first image is grey; .* --input 3x"):
        load_data(f"folder:{tmp_path}")
    assert load_data(f"folder:{tmp_path}", input_shape=(3, 7, 9)).shape == (3, 7, 9)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Validation"])
def test_names_of_the_validation_part(tmp_path, name):
    for part in ("train", name, "testing", "more"):
        folder(tmp_path / part, count=3)
    with pytest.warns(DataWarning, match=r"not used: more \("):
        data = load_data(f"folder:{tmp_path}")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)
    folder(tmp_path / ("dev" if name != "dev" else "val"), count=1)
    with pytest.raises(DataError, match="which mean the same; keep one of them"):
        load_data(f"folder:{tmp_path}")


def test_a_class_may_be_called_train_and_parts_need_one(tmp_path):
    data = load_data(f"folder:{folder(tmp_path / 'a', classes=('car', 'train'))}")
    assert data.class_names == ("car", "train")
    for part in ("val", "test"):
        folder(tmp_path / "b" / part)
    with pytest.raises(DataError, match=r"has test, val and no training images; put those into train/class/"):
        load_data(f"folder:{tmp_path / 'b'}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 5] * 4, "labels go up to 5 and none is 1, 3, 4; number the classes"),
        ([1, 2, 3] * 4, "labels go up to 3 and none is 0;"),
        ([0, 1, 3_000_000] * 4, "labels go up to 3000000 and none is 2, 3, 4, ...; .* or name all 3000001 classes"),
        (list(range(12)), "12 images of 12 classes, one each; give several images of a class"),
    ],
)
def test_labels_that_leave_classes_out(tmp_path, labels, message):
    images, numbers = torch.zeros(12, 1, 4, 4, dtype=torch.uint8), torch.tensor(labels)
    dataset = torch.utils.data.TensorDataset(images, numbers)
    file = tmp_path / "x.npz"
    np.savez(file, x_train=images[:, 0], y_train=numbers)
    for spec in (dataset, (dataset, dataset), f"npz:{file}"):
        with pytest.raises(DataError, match=message) as error:
            load_data(spec)
        assert one_line(error)
    with pytest.raises(DataError, match=message):
        load_data(dataset, memory_limit=0)
    count = int(numbers.max()) + 1
    if count < 100:
        assert load_data(dataset, num_classes=count).num_classes == count
        names = [f"class {i}" for i in range(count)]
        np.savez(file, x_train=images[:, 0], y_train=numbers, class_names=names)
        assert load_data(f"npz:{file}").class_names == tuple(names)


class Shifting(torch.utils.data.Dataset):
    """Eight images whose brightness is drawn by torch, NumPy and Python each time."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        shift = torch.rand(()) + np.random.rand() + random.random()
        return torch.full((1, 6, 6), float(index)) + shift, index % 3


def test_random_transforms_of_a_data_set_stay_random_and_follow_the_seed():
    data = load_data((Shifting(), Shifting()), val_fraction=0.25)
    assert isinstance(data.train, StreamImages)
    assert isinstance(data.val, ArrayImages)  # judged on the same images each time
    passes = [[images.clone() for images, _ in loader] for loader in [Loader(data.train, 6, workers=0)] for _ in "12"]
    again = [images.clone() for images, _ in Loader(data.train, 6, workers=0)]
    assert all(torch.equal(a, b) for a, b in zip(passes[0], again, strict=True))
    first, second = (torch.cat(each).mean((1, 2, 3)).sort().values for each in passes)
    assert not torch.equal(first, second)


def test_a_data_set_that_stays_the_same_is_read_once():
    still = torch.utils.data.TensorDataset(torch.rand(24, 1, 6, 6), torch.arange(24) % 3)
    assert isinstance(load_data(still).train, ArrayImages)

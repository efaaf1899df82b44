"""``--data``: folders, saved datasets and functions, with broken and unusual images."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from torchmetrics_cam.cli.classes import imagenet_ids
from torchmetrics_cam.cli.data import collate, load_data
from torchmetrics_cam.cli.errors import UnreadableError, UsageError
from torchmetrics_cam.cli.images import read_image


def as_tensor(picture: Image.Image) -> Tensor:
    assert picture.mode == "RGB"
    return torch.from_numpy(np.array(picture.resize((8, 8)))).permute(2, 0, 1).float() / 255


def save(
    path: Path, mode: str = "RGB", color: object = None, size: tuple[int, int] = (8, 8), **kw: object
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.new(mode, size) if color is None else Image.new(mode, size, color)).save(path, **kw)


def test_flat_folder_is_sorted_and_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub/c.png", ".hidden.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images = load_data(str(tmp_path), as_tensor)
    assert [Path(images.file(i)).name for i in range(len(images))] == ["a.jpg", "b.PNG", "c.png"]
    assert [images[i]["label"] for i in range(3)] == [-1] * 3
    assert images.class_names is None
    assert images.reason(0) is None


def test_first_level_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/x/1.png", "cat/1.png", "cat/2.png"):
        save(tmp_path / name)
    images = load_data(str(tmp_path), as_tensor)
    assert images.class_names == ["cat", "dog"]
    assert [images[i]["label"] for i in range(3)] == [0, 0, 1]
    assert images.label_source is None
    named = load_data(str(tmp_path), as_tensor, class_names=["bird", "Dog", "cat"], labeled=True)
    assert [named[i]["label"] for i in range(3)] == [2, 2, 1]
    assert named.class_names == ["bird", "Dog", "cat"]
    assert named.label_source == "class names of the network"


def test_required_labels_exist_and_match_the_classes_of_the_model(tmp_path: Path) -> None:
    for name in ("classes/dog/1.png", "classes/cat/1.png", "flat/1.png"):
        save(tmp_path / name)
    labeled = load_data(
        str(tmp_path / "classes"), as_tensor, class_names=["bird", "dog", "cat"], labeled=True
    )
    assert [labeled[i]["label"] for i in range(2)] == [2, 1]
    with pytest.raises(UsageError, match=r"flat/1\.png has no label; sort the images into subfolders"):
        load_data(str(tmp_path / "flat"), as_tensor, labeled=True)
    with pytest.raises(
        UsageError, match=r"such as 'cat', and the network has none.* class_names.*from the func"
    ):
        load_data(str(tmp_path / "classes"), as_tensor, labeled=True)
    message = "1 of the 2 classes of the data are not among .*: 'cat'; the nearest names.* are 'cats'"
    with pytest.raises(UsageError, match=message):
        load_data(str(tmp_path / "classes"), as_tensor, class_names=["dog", "cats", "owl"], labeled=True)


def test_class_name_of_two_outputs_is_refused_where_the_data_has_it(tmp_path: Path) -> None:
    save(tmp_path / "crane" / "1.png")
    save(tmp_path / "tench" / "1.png")
    names = list(timm.data.ImageNetInfo("imagenet-1k").label_descriptions())
    with pytest.raises(UsageError, match=r"the class 'crane' .* the network's classes 134 and 517, so its"):
        load_data(str(tmp_path), as_tensor, class_names=["tench", *names[1:]], labeled=True)
    (tmp_path / "crane" / "1.png").unlink()
    images = load_data(str(tmp_path), as_tensor, class_names=["tench", *names[1:]], labeled=True)
    assert images[0]["label"] == 0


def test_folders_named_by_wordnet_id(tmp_path: Path) -> None:
    ids = list(timm.data.ImageNetInfo("imagenet-1k").label_names())
    assert imagenet_ids() == ids
    for name in ("n03126707", "n01440764", "n02123045"):
        save(tmp_path / name / "1.png")
    descriptions = list(timm.data.ImageNetInfo("imagenet-1k").label_descriptions())
    large = timm.data.ImageNetInfo("imagenet-22k")
    for names, wordnet_ids in (
        (torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"], None),
        (descriptions, None),
        (ids, None),
        (large.label_descriptions(), large.label_names()),
        (None, None),
    ):
        options = {"class_names": names, "wordnet_ids": wordnet_ids, "labeled": True}
        images = load_data(str(tmp_path), as_tensor, **options)
        order = wordnet_ids or ids
        labels = [images[i]["label"] for i in range(3)]
        assert labels == [order.index(name) for name in ("n01440764", "n02123045", "n03126707")]
        assert order is not ids or labels == [0, 281, 517]
        assert images.needed_outputs == (None if names else 1000)
        assert images.class_names == (names or ids)
        assert "WordNet id" in images.label_source or names is ids
    with pytest.raises(UsageError, match="3 of the 3 classes of the data are not among the class names of"):
        load_data(str(tmp_path), as_tensor, class_names=descriptions[::-1], labeled=True)
    save(tmp_path / "n00000001" / "1.png")
    with pytest.raises(
        UsageError, match=r"1 of the 4 classes .* the 1,000 WordNet ids of the net.*'n00000001'"
    ):
        load_data(str(tmp_path), as_tensor, class_names=descriptions, labeled=True)


def test_thousand_folders_named_by_wordnet_id(tmp_path: Path) -> None:
    for name in imagenet_ids():
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    save(tmp_path / "n02123045" / "1.png")
    names = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    images = load_data(str(tmp_path), as_tensor, class_names=names, labeled=True)
    assert images[281]["label"] == 281
    assert images.class_names[281] == "tabby"


def test_labels_of_a_function_are_indices_of_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_labels.py").write_text(
        "import numpy as np, torch\n"
        "class Data(list): pass\n"
        "def data(labels, **settings):\n"
        "    images = Data((torch.ones(3, 8, 8), label) for label in labels)\n"
        "    vars(images).update(settings)\n"
        "    return images\n"
        "def whole(): return data([1, 2.0, np.int64(0), np.float32(1), torch.tensor(2.0), torch.tensor(1), True])\n"
        "def half(): return data([1, torch.tensor(2.7)])\n"
        "def nan(): return data([float('nan')])\n"
        "def words(): return data(['cat'])\n"
        "def one_hot(): return data([torch.tensor([0.0, 1.0])])\n"
        "def large(): return data([3])\n"
        "def named(): return data([0, 1], classes=['owl', 'dog'])\n"
        "def tuples(): return data([1, 0], classes=[('dog', 'hound'), ('owl',)], wnids=['n02084071', 'n01503061'])\n"
        "def beyond(): return data([2], classes=['owl', 'dog'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["dog", "cat", "owl"]

    def labels(function: str, **settings: object) -> list[int]:
        images = load_data(f"my_labels:{function}", as_tensor, labeled=True, **settings)
        return [images[i]["label"] for i in range(len(images))]

    assert labels("whole", class_names=names) == labels("whole") == [1, 2, 0, 1, 2, 1, 1]
    assert labels("named", class_names=names) == [2, 0]
    ids = ["n02084071", "n02121808", "n01503061"]
    assert labels("tuples", class_names=names, wordnet_ids=ids) == [2, 0]
    for function, message in {
        "half": r"my_labels:half\[1\] has the label tensor\(2.7000\), which is not a whole number",
        "nan": r"my_labels:nan\[0\] has the label nan, which is not a whole number",
        "words": r"my_labels:words\[0\] has the label 'cat', which is not a whole number",
        "one_hot": r"has the label tensor\(\[0., 1.\]\), which is not a whole number",
        "large": r"my_labels:large\[0\] has the label 3, and the network has 3 classes",
        "beyond": r"my_labels:beyond\[0\] has the label 2, and the dataset has 2 classes",
    }.items():
        with pytest.raises(UsageError, match=message):
            labels(function, class_names=names)
    unlabeled = load_data("my_labels:half", as_tensor)
    assert [unlabeled[i]["label"] for i in range(2)] == [1, -1]


def test_limit_always_selects_the_same_sample(tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path / f"{'a' if number < 10 else 'b'}/{number:02}.png")
    images = load_data(str(tmp_path), as_tensor, limit=8)
    again = load_data(str(tmp_path), as_tensor, limit=8)
    files = [images.file(i) for i in range(len(images))]
    assert len(files) == 8
    assert files == [again.file(i) for i in range(8)]
    assert {images[i]["label"] for i in range(8)} == {0, 1}
    longer = load_data(str(tmp_path), as_tensor, limit=9)
    assert files == [longer.file(i) for i in range(8)]
    with pytest.raises(UsageError, match="--limit 0 leaves no image"):
        load_data(str(tmp_path), as_tensor, limit=0)


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "seen"),
    [
        ("L", 100, ".png", (100, 100, 100)),
        ("1", 1, ".png", (255, 255, 255)),
        ("LA", (10, 0), ".png", (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), ".png", (200, 0, 0)),
        ("RGBA", (200, 0, 0, 0), ".png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), ".tif", (255, 0, 0)),
        ("I;16", 257 * 90, ".png", (90, 90, 90)),
        ("I;16", 257 * 90, ".tif", (90, 90, 90)),
        ("F", 0.5, ".tif", (128, 128, 128)),
        ("I", 40, ".tif", (40, 40, 40)),
    ],
)
def test_every_image_mode_is_converted_to_rgb(
    tmp_path: Path, mode: str, color: object, suffix: str, seen: tuple[int, ...]
) -> None:
    save(tmp_path / f"x{suffix}", mode, color)
    picture = read_image(tmp_path / f"x{suffix}")
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == pytest.approx(seen, abs=1)


TWELVE_BITS = np.array([[0, 4095, 2056, 273]])


def tiff(path: Path, values: np.ndarray, bits: int, tags: dict[int, tuple[str, float]]) -> None:
    """Write a gray TIFF, little-endian, whose tags are the given ones and those that every file has."""
    content = values.tobytes()
    if bits == 12:
        even, odd = values.ravel()[::2], values.ravel()[1::2]
        packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], 1)
        content = packed.astype(np.uint8).tobytes()
    height, width = values.shape
    fixed = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height}
    all_tags = {**{tag: ("HH", value) for tag, value in fixed.items()}, **tags}
    start = 8 + 2 + 12 * (len(all_tags) + 2) + 4
    all_tags |= {273: ("I", start), 279: ("I", len(content))}
    types = {"HH": 3, "I": 4, "i": 9, "f": 11}
    entries = b"".join(
        struct.pack(f"<HHI{form}", tag, types[form], 1, value, *(0 for _ in form[1:]))
        for tag, (form, value) in sorted(all_tags.items())
    )
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(all_tags)) + entries + bytes(4) + content)


def grays(path: Path) -> list[int]:
    return np.asarray(read_image(path))[..., 0].ravel().tolist()


@pytest.mark.parametrize(
    ("values", "bits", "tags", "seen"),
    [
        (TWELVE_BITS, 12, {}, [0, 255, 128, 17]),
        (TWELVE_BITS.astype("<u2"), 16, {281: ("HH", 4095)}, [0, 255, 128, 17]),
        (TWELVE_BITS.astype("<u2") + 100, 16, {280: ("HH", 100), 281: ("HH", 4195)}, [0, 255, 128, 17]),
        (TWELVE_BITS.astype("<u2"), 16, {281: ("HH", 4095), 262: ("HH", 0)}, [255, 0, 127, 238]),
        (TWELVE_BITS.astype("<u2") * 16, 16, {262: ("HH", 0)}, [255, 0, 127, 238]),
        (
            TWELVE_BITS.astype("<f4") - 1024,
            32,
            {339: ("HH", 3), 340: ("f", -1024.0), 341: ("f", 3071.0)},
            [0, 255, 128, 17],
        ),
        (
            TWELVE_BITS.astype("<i2") - 1024,
            16,
            {339: ("HH", 2), 340: ("i", -1024), 341: ("i", 3071)},
            [0, 255, 128, 17],
        ),
        (np.float32([[0, np.nan, 0.5, 1]]), 32, {339: ("HH", 3)}, [0, 0, 128, 255]),
        (np.float32([[0, 255, 128, 17]]), 32, {339: ("HH", 3)}, [0, 255, 128, 17]),
        (np.zeros((1, 4), "<u2"), 16, {}, [0] * 4),
    ],
    ids=[
        "12 bits",
        "MaxSampleValue",
        "MinSampleValue",
        "white is zero",
        "white is zero, 16 bits",
        "SMaxSampleValue",
        "signed",
        "not a number",
        "float of 8 bits",
        "black",
    ],
)
def test_gray_values_are_scaled_from_the_range_of_the_file(
    tmp_path: Path, values: np.ndarray, bits: int, tags: dict, seen: list[int]
) -> None:
    tiff(tmp_path / "x.tif", values, bits, tags)
    assert grays(tmp_path / "x.tif") == pytest.approx(seen, abs=1)


@pytest.mark.parametrize(
    ("values", "tags", "message"),
    [
        (TWELVE_BITS.astype("<u2"), {}, "its pixel values are 0 to 4095, and the file does not state which"),
        (np.float32([[-1000, 400, 30, 0]]), {339: ("HH", 3)}, "its pixel values are -1000 to 400, and the"),
        (np.float32([[0, 1.02, 0.5, 0]]), {339: ("HH", 3)}, "its pixel values are 0 to 1.02, and the file"),
        (np.float32([[0, 4095, 9, 0]]), {339: ("HH", 3)}, "its pixel values are 0 to 4095, and the file"),
        (np.float32([[np.nan] * 4]), {339: ("HH", 3)}, "none of its pixel values is finite"),
        (TWELVE_BITS.astype("<i2") - 9, {339: ("HH", 2)}, "its pixel values are -9 to 4086, and the file"),
        (TWELVE_BITS.astype("<u2"), {281: ("HH", 255)}, "states pixel values of 0 to 255, and they are 0 to"),
    ],
)
def test_gray_values_of_an_unknown_range_are_refused(
    tmp_path: Path, values: np.ndarray, tags: dict, message: str
) -> None:
    tiff(tmp_path / "x.tif", values, values.itemsize * 8, tags)
    with pytest.raises(UnreadableError, match=message):
        read_image(tmp_path / "x.tif")


def test_significant_bits_of_a_png_file(tmp_path: Path) -> None:
    chunk = PngInfo()
    chunk.add(b"sBIT", bytes([12]))
    # As they are; scaled as the specification says; scaled and dark.
    for values, seen in (
        (TWELVE_BITS, [0, 255, 128, 17]),
        (TWELVE_BITS * 16, [0, 255, 128, 17]),
        (np.array([[0, 255, 128, 17]]) * 16, [0, 16, 8, 1]),
    ):
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "x.png", pnginfo=chunk)
        assert grays(tmp_path / "x.png") == pytest.approx(seen, abs=1)
    Image.fromarray(TWELVE_BITS.astype(np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableError, match="its pixel values are 0 to 4095, and the file does not state"):
        read_image(tmp_path / "x.png")


def test_formats_that_scale_to_16_bits_themselves(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5 4 1 4095\n" + TWELVE_BITS.astype(">u2").tobytes())
    assert grays(tmp_path / "x.pgm") == pytest.approx([0, 255, 128, 17], abs=1)
    (tmp_path / "dark.pgm").write_bytes(b"P5 4 1 65535\n" + TWELVE_BITS.astype(">u2").tobytes())
    assert grays(tmp_path / "dark.pgm") == pytest.approx([0, 16, 8, 1], abs=1)


def test_16_bit_colors_that_hardly_use_their_range_are_refused(tmp_path: Path) -> None:
    import tifffile

    for compression in (None, "zlib"):
        for scale, is_refused in ((1, True), (16, False), (0, False)):
            values = np.random.default_rng(0).integers(0, 4096, (8, 8, 3)) * scale
            tifffile.imwrite(
                tmp_path / "x.tif", values.astype(np.uint16), photometric="rgb", compression=compression
            )
            if is_refused:
                with pytest.raises(
                    UnreadableError, match="its 16-bit colors use less than 1/16 of the range"
                ):
                    read_image(tmp_path / "x.tif")
            else:
                red = values[0, 0, 0] >> 8
                assert read_image(tmp_path / "x.tif").getpixel((0, 0))[0] == red


def test_ranges_of_deep_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png", "I;16", 40_000)
    save(tmp_path / "c.tif", "F", 0.5)
    save(tmp_path / "d.tif", "I;16", 40_000)
    save(tmp_path / "dark.png", "I;16", 900)
    tiff(tmp_path / "e.tif", TWELVE_BITS.astype("<u2"), 16, {281: ("HH", 4095)})
    images = load_data(str(tmp_path), as_tensor)
    assert images.reason(4).startswith("its pixel values are 900 to 900, and the file does not state")
    sixteen = "assumed to be 0 to 65535, because the file states no range"
    assert images.pixel_ranges([0, 1, 2, 3, 5]) == [
        {"range": sixteen, "images": 2},
        {
            "range": "assumed to be 0 to 1, 255 or 65535 (the first that contains them), because the file"
            " states no range",
            "images": 1,
        },
        {"range": "0 to 4095, as the file states", "images": 1},
    ]
    (tmp_path / "my_deep.py").write_text(
        "from PIL import Image\n"
        "def data(): return [Image.new('I;16', (4, 4), 40_000), Image.new('I;16', (4, 4), 900), Image.new('L', (4, 4))]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = load_data("my_deep:data", as_tensor)
    assert [own[i] is None for i in range(3)] == [False, True, False]
    assert own.pixel_ranges([0, 2]) == [{"range": sixteen, "images": 1}]


def test_palette_with_transparency(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "p.png", transparency=0)
    read = read_image(tmp_path / "p.png")
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 255, 0)]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 4)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


def test_unreadable_images_are_none_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1.png", size=(1, 1))
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "whole.jpg").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "4.jpg").write_text("<html>not found</html>")
    save(tmp_path / "5.png", size=(50, 50))
    save(tmp_path / "6.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    images = load_data(str(tmp_path), as_tensor)
    assert [item is None for item in (images[i] for i in range(6))] == [False, True, True, True, True, True]
    assert "truncated" in images.reason(1)
    assert images.reason(2) == images.reason(3)
    assert images.reason(2).startswith("it is not an image in a format that PIL reads")
    assert "more than the 2,000 pixels" in images.reason(4)
    assert "more than the 2,000 pixels" in images.reason(5)
    batch = collate([images[i] for i in range(6)])
    assert batch["image"].shape == (1, 3, 8, 8)
    assert batch["index"] == [0]
    assert batch["label"] == [-1]
    assert collate([None, None]) is None


def test_images_of_different_shapes_cannot_be_batched() -> None:
    items = [{"image": torch.zeros(3, side, 4), "index": 0, "label": -1} for side in (4, 5)]
    with pytest.raises(UsageError, match=r"shapes \(3, 4, 4\) and \(3, 5, 4\)"):
        collate(items)


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="contains no image; images are files"):
        load_data(str(tmp_path / "empty"), as_tensor)
    (tmp_path / "empty" / "labels.csv").write_text("1")
    with pytest.raises(
        UsageError, match=r"no image but 1 other file, such as .*labels\.csv \(PIL does not read '.csv'"
    ):
        load_data(str(tmp_path / "empty"), as_tensor)
    with pytest.raises(UsageError, match="does not exist"):
        load_data(str(tmp_path / "missing"), as_tensor)
    save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="is a file; give the folder"):
        load_data(str(tmp_path / "one.png"), as_tensor)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"none of 1 images can be read; the first is .*x\.png"):
        load_data(str(tmp_path / "broken"), as_tensor)


def test_circular_links_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    images = load_data(str(tmp_path), as_tensor)
    assert len(images) == 1
    assert images.unused == [
        {"reason": "its files are listed under another path", "files": [f"{tmp_path}/a/again"]}
    ]


def test_images_of_a_class_are_not_found_first_through_a_link_in_another_class(tmp_path: Path) -> None:
    for name in ("data/b/1.png", "data/.store/2.png", "elsewhere/3.png"):
        save(tmp_path / name)
    (tmp_path / "data" / "a").mkdir()
    for link, target in {"a/to b": "data/b", "c": "data/.store", "d": "elsewhere"}.items():
        (tmp_path / "data" / link).symlink_to(tmp_path / target, target_is_directory=True)
    images = load_data(str(tmp_path / "data"), as_tensor)
    files = [Path(images.file(i)).relative_to(tmp_path / "data") for i in range(len(images))]
    assert list(map(str, files)) == ["b/1.png", "c/2.png", "d/3.png"]
    assert images.class_names == ["b", "c", "d"]


def test_every_file_that_is_not_an_image_is_named_with_a_reason(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    for name in ("b.heic", "c.JXL", "notes.txt", "more.txt", "README", ".hidden.png", "film.mpg"):
        (tmp_path / name).write_text("?")
    (tmp_path / ".cache" / "thumbnails").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "lost.png").symlink_to(tmp_path / "moved.png")
    images = load_data(str(tmp_path), as_tensor)
    reasons = {Path(images.file(i)).name: images.reason(i) for i in range(len(images))}
    special = "it is not a regular file but a pipe, a socket or a device"
    assert reasons.pop("lost.png").startswith("FileNotFoundError")
    assert reasons == {
        "a.jpg": None,
        "device.png": special,
        "pipe.png": special,
    }
    assert {one["reason"]: [Path(file).name for file in one["files"]] for one in images.unused} == {
        "its name starts with a dot": [".cache", ".hidden.png"],
        "its name has no suffix": ["README"],
        "PIL does not read '.JXL' files": ["c.JXL"],
        "PIL does not read '.heic' files": ["b.heic"],
        "PIL does not read '.mpg' files": ["film.mpg"],
        "PIL does not read '.txt' files": ["more.txt", "notes.txt"],
    }


def test_files_and_folders_without_permission_are_named() -> None:
    Image.init()
    # The folders above tmp_path belong to another user than the one that the test becomes.
    with TemporaryDirectory() as name, without_privileges(name):
        folder = Path(name)
        for file in ("a/1.png", "b/2.png", "c/3.png", "d/4.png"):
            save(folder / file)
        for path, mode in {"b/2.png": 0, "c": 0o111, "d": 0o444}.items():
            (folder / path).chmod(mode)
        images = load_data(str(folder), as_tensor)
        files = [str(Path(images.file(i)).relative_to(folder)) for i in range(len(images))]
        reasons = [images.reason(i) for i in range(len(images))]
        for path in ("c", "d"):
            (folder / path).chmod(0o700)
    assert files == ["a/1.png", "b/2.png", "d/4.png"]
    assert reasons[0] is None
    assert all(reason.startswith("PermissionError") for reason in reasons[1:])
    assert images.unused == [
        {"reason": "the folder cannot be read: Permission denied", "files": [f"{folder}/c"]}
    ]


@contextmanager
def without_privileges(folder: str) -> Iterator[None]:
    """Act as the owner of a folder, whom permissions apply to, also where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_saved_dataset_and_its_splits(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"kind": datasets.ClassLabel(names=["no", "yes"]), "photo": datasets.Image()}
    )
    rows = {"kind": [1, 0], "photo": [Image.new("RGB", (4, 4), "red"), Image.new("L", (5, 5))]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=r"has several splits; name one of .*saved/train, .*saved/test"):
        load_data(str(tmp_path / "saved"), as_tensor)
    with pytest.raises(UsageError, match="has no split 'val'; name one of"):
        load_data(str(tmp_path / "saved" / "val"), as_tensor)
    images = load_data(str(tmp_path / "saved" / "test"), as_tensor)
    assert [images[i]["label"] for i in range(2)] == [1, 0]
    assert images[0]["image"][:, 0, 0].tolist() == [1, 0, 0]
    assert images.class_names == ["no", "yes"]
    assert images.file(1).endswith("test[1]")
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UsageError, match=r"has no column of images, only a \(Value\)"):
        load_data(str(tmp_path / "numbers"), as_tensor)


def test_dataset_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data.py").write_text(
        "import torch\nfrom PIL import Image\n"
        "picture = Image.new('L', (4, 4))\n"
        "def mixed(): return [torch.ones(3, 8, 8), picture, (picture, 2), {'image': picture, 'label': torch.tensor(3)}, 'x']\n"
        "def nothing(): return 5\n"
        "def words(): return ['x']\n"
    )
    (tmp_path / "my_broken.py").write_text("raise RuntimeError('out of order')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    images = load_data("my_data:mixed", as_tensor)
    assert [images[i]["label"] for i in range(4)] == [-1, -1, 2, 3]
    assert images[0]["image"].shape == images[3]["image"].shape == (3, 8, 8)
    assert images[4] is None
    assert "the item is a str" in images.reason(4)
    for name, message in {
        "my_data:nothing": "returned a int; it must return a dataset",
        "my_data:words": "none of 1 images can be read",
        "my_data:word": "the nearest names in it are 'words'",
        "my_broken:f": "importing my_broken failed \\(RuntimeError: out of order\\)",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_data(name, as_tensor)

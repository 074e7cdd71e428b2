"""Where the samples of ready-made tasks come from: folders, arrays, and the files of COCO and Pascal VOC."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from convwright.errors import DataError, first_line, look_up
from convwright.training.data.folders import PARTS, SUFFIXES, decode, part_folder
from convwright.training.data.images import stratified_split
from convwright.training.data.sources import opened_npz

Parts: TypeAlias = dict[str, Any]  # data sets by part
Source: TypeAlias = Callable[[Path], tuple[Parts, Sequence[str]]]  # with the names of the classes
Reader: TypeAlias = Callable[[Any], Any]


def opened(
    data: Any, kind: str, sources: Mapping[str, Source], val_fraction: float, seed: int
) -> tuple[str, Parts, Sequence[str]]:
    """Return what a user gave a task as data: its name, a data set or loader by part, and names of classes."""
    scheme, _, path = str(data).partition(":") if isinstance(data, str | Path) else ("", "", "")
    if path:
        root, read = Path(path).expanduser(), look_up(scheme, sources, f"source of {kind}", DataError)
        if not root.exists():
            raise DataError(f"{root}: no such file or folder; check the path after {scheme}:")
        name, (parts, names) = f"{kind}:{data}", read(root)
    else:
        given = data if isinstance(data, tuple) else (data,)
        order = {2: ("train", "test"), 3: ("train", "val", "test")}.get(len(given), ("train",))
        parts = dict(data) if isinstance(data, Mapping) else dict(zip(order, given, strict=False))
        inner = getattr(parts.get("train"), "dataset", parts.get("train"))
        name, names = f"{kind}:{type(inner).__name__}", getattr(inner, "classes", ())
    for part in dict.fromkeys(("train", *parts)):
        samples, whole = parts.get(part), hasattr(parts.get(part), "__getitem__")
        if isinstance(samples, str) or not (hasattr(samples, "__len__") if whole else hasattr(samples, "__iter__")):
            ways = ", ".join(f"{each}:PATH" for each in sources)
            raise DataError(f"{name}: {part} is {samples!r:.80}; give {ways}, a map-style data set, or a DataLoader")
        if whole and not len(samples):  # type: ignore[arg-type]
            raise DataError(f"{name}: {part} is empty; give at least one sample")
    train = parts["train"]
    if "val" not in parts and val_fraction and hasattr(train, "__getitem__"):
        split = stratified_split(torch.zeros(len(train), dtype=torch.int64), val_fraction, seed)
        chosen = zip(("train", "val"), split, strict=True)
        parts |= {part: Subset(train, which.tolist()) for part, which in chosen if len(which)}
    return name, parts, names


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples as a map-style data set of pairs; files are read when asked for.

    Attributes:
        inputs: Sequence of paths of images, or of values.
        targets: Sequence of what `read` takes.
        read: Returns a target.
    """

    inputs: Any
    targets: Any
    read: Reader

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, position: int) -> tuple[Any, Any]:
        return as_read(self.inputs[position]), self.read(self.targets[position])


def as_read(value: Any) -> Any:
    """Return an image file in colour; any other value as it is."""
    return decode(str(value)).convert("RGB") if isinstance(value, Path) else value


def read_mask(path: Path) -> Tensor:
    """Return the class numbers (h, w) of an image file."""
    try:
        with Image.open(path) as image:
            values = np.array(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: not a readable mask; repair or remove the file") from error
    if values.ndim != 2:
        raise DataError(f"{path}: a mask in colour; save one class number per pixel")
    return torch.from_numpy(values.astype(np.int64))


def _listed(folder: Path) -> dict[str, Path]:
    """Return images by their names without endings."""
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            name = str(path.relative_to(folder).with_suffix(""))
            if name in images:
                raise DataError(f"{path}: {images[name].name} has the same name; keep one of them, or rename one")
            images[name] = path
    if not images:
        raise DataError(f"{folder}: there are no images; put some there")
    return images


def _by_part(root: Path) -> dict[str, Path]:
    """Return train/, val/ and test/ of a folder, by whatever usual names; else all of it as train."""
    found = {names[0]: folder for names in PARTS if (folder := part_folder(root, names)) is not None}
    return found if "train" in found else {"train": root}


def folder_images(root: Path) -> tuple[Parts, Sequence[str]]:
    """Read images alone, wherever in the folders of the parts they lie."""
    listed = {part: list(_listed(folder).values()) for part, folder in _by_part(root).items()}
    return {part: Samples(paths, [None] * len(paths), as_read) for part, paths in listed.items()}, ()


def folder_pairs(root: Path, inputs: str, targets: str, read: Reader) -> tuple[Parts, Sequence[str]]:
    """Read ``images/`` and ``masks/`` with files of the same names, or ``train/images/`` and the like."""
    parts: Parts = {}
    for part, folder in _by_part(root).items():
        images, others = _listed(folder / inputs), _listed(folder / targets)
        if alone := next((path for name, path in images.items() if name not in others), None):
            raise DataError(f"{alone}: there is no such file in {folder / targets}; add it, or remove this one")
        parts[part] = Samples(list(images.values()), [others[name] for name in images], read)
    return parts, ()


def npz(path: Path) -> tuple[Parts, Sequence[str]]:
    """Read arrays ``x_train y_train`` and, if there, those of val and test, and ``class_names``."""
    with opened_npz(path, f"npz:{path}") as arrays:
        held = {name: arrays[name] for name in arrays.files}
    parts: Parts = {}
    for part in ("train", "val", "test"):
        if (inputs := held.get(f"x_{part}")) is not None:
            targets = held.get(f"y_{part}", [None] * len(inputs))
            if len(inputs) != len(targets):
                raise DataError(f"npz:{path}: x_{part} has {len(inputs)} samples and y_{part} {len(targets)}")
            parts[part] = Samples(inputs, targets, as_read)
    return parts, [str(name) for name in held.get("class_names", ())]


def coco(path: Path, annotate: Callable[[Any, list[Any]], Any], read: Reader) -> tuple[Parts, Sequence[str]]:
    """Read COCO's JSON: a file, or a folder with train.json, val.json and test.json, or instances_train2017.json.

    Images lie beside the file or in a folder images/. Class 0 is the background; categories follow by their numbers.
    """
    files, parts, names = {"train": path}, Parts(), list[str]()
    if path.is_dir():
        listed = sorted(path.rglob("*.json"), key=lambda file: ("instances" not in file.name, file))
        named = {part[0]: [file for file in listed if any(name in file.name for name in part)] for part in PARTS}
        files = {part: found[0] for part, found in named.items() if found}
    for part, file in files.items():
        try:
            content = json.loads(file.read_text())
            kinds = sorted(content["categories"], key=lambda kind: kind["id"])
            numbers = {kind["id"]: number for number, kind in enumerate(kinds, start=1)}
            held: dict[Any, list[Any]] = {image["id"]: [] for image in content["images"]}
            for each in content["annotations"]:
                if not each.get("iscrowd"):
                    held[each["image_id"]].append((numbers[each["category_id"]], each))
            targets = [annotate(image, held[image["id"]]) for image in content["images"]]
            parts[part] = Samples([_image_of(file, image["file_name"]) for image in content["images"]], targets, read)
            found = ["background", *(str(kind["name"]) for kind in kinds)]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{file}: not COCO's JSON ({type(error).__name__}: {first_line(error)})") from error
        if names and names != found:
            raise DataError(
                f"{file}: its categories are not those of {next(iter(files.values()))}; list the same in all"
            )
        names = found
    return parts, names


def _image_of(file: Path, name: str) -> Path:
    folders = ("", "images", file.stem.removeprefix("instances_"))
    tried = [above / folder / name for above in file.parents[:2] for folder in folders]
    return next((path for path in tried if path.is_file()), tried[0])


def coco_boxes(path: Path) -> tuple[Parts, Sequence[str]]:
    """Read boxes (x1, y1, x2, y2) with their labels."""

    def boxes(image: Any, found: list[Any]) -> dict[str, Any]:
        corners = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for _, each in found)]
        return {"boxes": corners, "labels": [label for label, _ in found]}

    return coco(path, boxes, as_read)


def coco_masks(path: Path) -> tuple[Parts, Sequence[str]]:
    """Read masks, in which later annotations lie on earlier ones."""
    return coco(path, lambda image, found: (image, found), _drawn)


def _drawn(given: tuple[Any, list[Any]]) -> Tensor:
    from pycocotools.coco import COCO

    tools, (image, found) = COCO(), given
    tools.imgs = {image["id"]: image}
    mask = np.zeros((image["height"], image["width"]), dtype=np.int64)
    for label, each in found:
        mask[tools.annToMask(each) > 0] = label
    return torch.from_numpy(mask)


def voc_masks(root: Path) -> tuple[Parts, Sequence[str]]:
    """Read Pascal VOC's JPEGImages/ and SegmentationClass/, with the lists in ImageSets/Segmentation/."""
    found = _voc(root, "Segmentation", "SegmentationClass", ".png")
    return {part: Samples(*files, read_mask) for part, files in found.items()}, ()


def voc_boxes(root: Path) -> tuple[Parts, Sequence[str]]:
    """Read Pascal VOC's JPEGImages/ and Annotations/, with the lists in ImageSets/Main/; classes by their names."""
    found = _voc(root, "Main", "Annotations", ".xml")
    read = {part: (images, [_voc_objects(path) for path in files]) for part, (images, files) in found.items()}
    names = sorted({name for _, each in read.values() for objects in each for name, _ in objects})

    def boxes(objects: list[tuple[str, list[float]]]) -> dict[str, Any]:
        return {"boxes": [box for _, box in objects], "labels": [names.index(name) + 1 for name, _ in objects]}

    parts = {part: Samples(images, [boxes(o) for o in each], as_read) for part, (images, each) in read.items()}
    return parts, ["background", *names]


def _voc(root: Path, lists: str, folder: str, suffix: str) -> dict[str, tuple[list[Path], list[Path]]]:
    files = {part[0]: root / "ImageSets" / lists / f"{part[0]}.txt" for part in PARTS}
    stems = {part: _lines(file) for part, file in files.items() if file.is_file()}
    stems = stems or {"train": sorted(path.stem for path in (root / folder).glob(f"*{suffix}"))}
    images = _listed(root / "JPEGImages")
    if gone := next((stem for each in stems.values() for stem in each if stem not in images), None):
        raise DataError(f"{root}: JPEGImages/ has no image {gone}; add it, or take it off the lists")
    targets = {part: [root / folder / f"{stem}{suffix}" for stem in each] for part, each in stems.items()}
    return {part: ([images[stem] for stem in each], targets[part]) for part, each in stems.items()}


def _lines(file: Path) -> list[str]:
    """Return the names in a list, which may have spaces in them."""
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _voc_objects(path: Path) -> list[tuple[str, list[float]]]:
    try:  # pixels are counted from 1, and the last one belongs to the box
        sides = (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))
        found = ElementTree.parse(path).getroot().iter("object")
        return [(o.findtext("name", ""), [float(o.findtext(f"bndbox/{s}", "")) - n for s, n in sides]) for o in found]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: not Pascal VOC's XML ({first_line(error)}); repair or remove it") from error

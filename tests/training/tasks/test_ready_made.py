"""The ready-made tasks: random changes, order, resuming, metrics, losses that fall, and what is refused."""

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from convwright import Recipe, cli, tasks, train
from convwright.errors import DataError
from convwright.training import Augment
from convwright.training.tasks import base, dataset
from convwright.training.tasks.base import BatchOrder
from convwright.training.tasks.loader import TaskLoader

COUNT, SIDE = 12, 12
EVERYTHING = Augment(crop_padding=2, hflip=True, resized_crop=(0.5, 1, 1, 1))


def pictures(seed=0, count=COUNT):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def masked(seed=0):
    """Masks that are the first channel's brightness in three steps: what moves one must move the other."""
    images = pictures(seed)
    images[..., 0] = images[..., 0] // 86 * 86
    return [(image, image[..., 0] // 86) for image in images]


def boxed(seed=0):
    return [(image, {"boxes": [[1, 2, 7, 9]], "labels": [1 + i % 2]}) for i, image in enumerate(pictures(seed))]


def wide(outputs, *, maps=False):
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, outputs, 1)
    return nn.Sequential(*layers) if maps else nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Boxes(nn.Module):
    """One box per image; a detector as torchvision's: it computes its loss itself."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))

    def forward(self, images, targets=None):
        found = self.head(torch.stack(images)).sigmoid() * SIDE
        found = torch.cat([found[:, :2], found[:, :2] + found[:, 2:]], 1)
        if self.training:
            return {"box": (found - torch.stack([each["boxes"][0] for each in targets])).abs().mean()}
        labels, scores = torch.ones(1, dtype=torch.int64), torch.ones(1)
        return [{"boxes": box[None], "labels": labels, "scores": scores} for box in found]


def made():
    """Each task with a small network."""
    torch.manual_seed(0)
    x = pictures()
    labels = [(x[i], [i % 2, i % 3 > 0]) for i in range(COUNT)]
    numbers = [((x[i], x[i - 1]), [3 + i / 4]) for i in range(COUNT)]
    points = [(x[i], [[3, i / 2], [8, 2]]) for i in range(COUNT)]
    return {
        "multilabel": (tasks.Multilabel(labels), wide(2)),
        "regression": (tasks.Regression(numbers), Siamese()),
        "keypoints": (tasks.Keypoints(points, sigma=1), wide(2, maps=True)),
        "segmentation": (tasks.Segmentation(masked()), wide(3, maps=True)),
        "detection": (tasks.Detection(boxed(), classes=3), Boxes()),
        "restoration": (tasks.Restoration(list(x), noise=0.1), wide(3, maps=True)),
        "self-distillation": (tasks.SelfDistillation(list(x), wide(2)), wide(2)),
    }


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = wide(3)
        self.end = nn.Linear(6, 1)

    def forward(self, one, other):
        return self.end(torch.cat([self.part(one), self.part(other)], 1))


def fixed(**changes):
    how = {"epochs": 2, "batch_size": 4, "lr": 0.02, "crop_padding": 1, "cutout": 2, "optimizer": "adamw"}
    return Recipe(**{**how, "precision": "fp32", "memory_format": "contiguous", **changes})


def batches(task, order):
    return list(task.epoch("train", order))


def same(one, other):
    return [torch.equal(a, b) for (_, a), (_, b) in zip(base.tensors_of(one), base.tensors_of(other), strict=True)]


# ------------------------------------------------------------------ laws of all tasks


@pytest.mark.parametrize("kind", tasks.TASKS)
def test_the_loss_falls_and_a_resumed_training_is_the_same(kind, tmp_path):
    (task, model), again = made()[kind], made()[kind][1]
    task = pickle.loads(pickle.dumps(task))  # as workers get it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = train(model, task, fixed(), progress=False)
    assert found.history[-1].train_loss < found.history[0].train_loss
    assert task.metric.name in found.val.values
    stopped = train(again, task, fixed(), progress=False, out=tmp_path, on_epoch=lambda record: True)
    assert len(stopped.history) == 1
    last = train(again, task, fixed(), progress=False, out=tmp_path, resume=True)
    assert all(same(last.model.state_dict(), model.state_dict()))
    assert last.history[-1].train_loss == found.history[-1].train_loss


@pytest.mark.parametrize("kind", ["segmentation", pytest.param("detection", marks=pytest.mark.breadth)])
def test_batches_do_not_depend_on_the_number_of_workers(kind):
    task = made()[kind][0]
    task.transforms = v2.RandomRotation(20)
    order = {"batch_size": 4, "shuffle": True, "seed": 3, "augment": EVERYTHING}
    alone = batches(task, BatchOrder(**order))
    assert all(same(alone, batches(task, BatchOrder(**order, workers=2))))
    assert not all(same(alone, batches(task, BatchOrder(**{**order, "seed": 4}))))


def test_random_transforms_stay_random_in_every_epoch_and_leave_the_generators_alone():
    task = tasks.Segmentation(masked(), transforms=v2.ColorJitter(0.5))
    loader = TaskLoader(task.train, 4, augment=Augment(), seed=1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    epochs = [list(loader) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    seen = [{image.sum().item() for batch in epoch for image in batch[0]} for epoch in epochs]
    assert not seen[0] & seen[1]


def test_a_loader_of_the_user_yields_its_batches_as_they_are():
    loader = DataLoader([(torch.rand(3, SIDE, SIDE), torch.rand(2)) for _ in range(10)], batch_size=4)
    task = tasks.Regression({"train": loader, "val": loader})
    assert task.sizes("train", 99) == [4, 4, 2]
    assert all(same(batches(task, BatchOrder(99)), list(loader)))


def test_saliency_of_a_task_that_computes_its_losses_in_training_mode():
    found = train(Boxes(), made()["detection"][0], fixed(epochs=1), progress=False, probes=("saliency",))
    assert all(score > 0 for scores in found.probes["saliency"]["groups"].values() for score in scores)


def test_the_teacher_itself_has_a_saliency():
    task = made()["self-distillation"][0]
    model = copy.deepcopy(task.teacher).requires_grad_()
    found = train(model, task, fixed(lr=1e-9, epochs=1), progress=False, probes=("saliency",))
    assert max(max(scores) for scores in found.probes["saliency"]["groups"].values()) > 0


# ------------------------------------------------------------------ random changes


def test_masks_move_with_their_images():
    task = tasks.Segmentation(masked(), mean=(), val_fraction=0)
    for images, masks in batches(task, BatchOrder(4, True, 1, Augment(crop_padding=2, hflip=True))):
        assert torch.equal((images[:, 0] * 255).round().long() // 86, masks)
    cut = Augment(crop_padding=3, padding_mode="zero")
    assert any((masks == 255).any() for _, masks in batches(task, BatchOrder(4, True, 1, cut)))


def test_boxes_and_points_move_with_their_images():
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[2:5, 1:4] = 255
    found = tasks.Detection([(image, {"boxes": [[1, 2, 4, 5]], "labels": [1]})] * 8, val_fraction=0)
    point = tasks.Keypoints([(image, [[2.5, 3.5]])] * 8, val_fraction=0, mean=())
    order = BatchOrder(8, True, 2, Augment(crop_padding=1, hflip=True))
    images, targets = batches(found, order)[0]
    assert len({tuple(each["boxes"][0].tolist()) for each in targets}) > 2
    for shown, target in zip(images, targets, strict=True):
        left, top, right, bottom = target["boxes"][0].int()
        assert shown.sum() == shown[:, top:bottom, left:right].sum() == 3 * (right - left) * (bottom - top)
    images, targets = batches(point, order)[0]
    for shown, (x, y, there) in zip(images, targets["points"][:, 0], strict=True):
        assert there == shown[0, int(y), int(x)] == 1


# ------------------------------------------------------------------ metrics


def test_metrics_of_known_outputs():
    task = tasks.Segmentation(masked(), classes=3)
    truth = torch.tensor([[[0, 0], [1, 255]]])
    scores = nn.functional.one_hot(torch.tensor([[[0, 1], [1, 2]]]), 3).movedim(-1, 1).float()
    found = task.summary(task.measured(scores, truth))
    assert found["mIoU"] == 0.5  # classes 0 and 1: half each; the ignored pixel does not count
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    labels = tasks.Multilabel([(image, [0, 1]) for image in pictures()])
    rows = labels.measured(torch.tensor([[9.0, -9], [-9, -9]]), torch.tensor([[1.0, 0], [0, 0]]))
    assert labels.summary(rows)["mAP"] == labels.summary(rows)["F1"] == 1  # of the class that is shown
    points, target = tasks.Keypoints([(pictures()[0], [[0, 0]])] * 2, mean=()), torch.tensor([[[3.0, 5.0, 1.0]]])
    maps = torch.zeros(1, 1, 6, 6)
    maps[0, 0, 2, 1] = 1  # of 12x12 pixels, two to one: its middle is at (3, 5)
    given = {"points": target, "sides": torch.tensor([[12.0, 12.0]])}
    assert points.measured(maps, given)[0].tolist() == [pytest.approx(0, abs=1e-5), 1]
    restored = tasks.Restoration(list(pictures()), noise=0.1)
    target = torch.full((1, 3, SIDE, SIDE), 0.5)
    assert restored.summary(restored.measured(target + 0.1, target))["PSNR"] == pytest.approx(20, abs=1e-4)
    task, model = tasks.Detection([(pictures()[0], {"boxes": [[1, 2, 7, 9]], "labels": [1]})] * 3), Boxes()
    box = {"boxes": torch.tensor([[1, 2, 7, 9.0]]), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    model.forward = lambda images: [box]
    assert task.metrics(model.eval(), "val") == {"mAP": pytest.approx(1), "mAP50": pytest.approx(1)}


def test_the_bootstrap_is_the_binomial_error_of_a_share():
    rows = (torch.arange(400) % 4 == 0).float()
    assert dataset.bootstrap(rows, lambda each: each.mean()) == pytest.approx((0.25 * 0.75 / 400) ** 0.5, rel=0.2)


def test_a_black_mask_without_pixels_that_count_has_no_loss():
    task = tasks.Segmentation(masked())
    assert task.loss_of(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255)) == 0


# ------------------------------------------------------------------ sources


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_masks_of_a_folder(tmp_path):
    for place, (image, mask) in enumerate(masked()):
        part = tmp_path / ("train" if place < 8 else "valid")
        save(part / "images" / f"{place}.png", image)
        save(part / "masks" / f"{place}.png", mask)
    task = tasks.task_of(f"segmentation:folder:{tmp_path}")
    assert (task.name, task.parts, task.num_classes) == (f"segmentation:folder:{tmp_path}", ("train", "val"), 3)
    (tmp_path / "train" / "masks" / "0.png").unlink()
    with pytest.raises(DataError, match=r"images/0\.png: there is no such file in .*masks; add it"):
        tasks.Segmentation(f"folder:{tmp_path}")


def test_tasks_of_the_command_line(tmp_path, capsys):
    assert (*cli._TASKS, "self-distillation") == tuple(tasks.TASKS)
    np.savez(tmp_path / "a.npz", x_train=pictures(), y_train=[mask for _, mask in masked()])
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, num_classes=3):\n"
        "        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, num_classes, 1))\n"
    )
    (tmp_path / "r.yaml").write_text("{epochs: 2, batch_size: 4, precision: fp32, memory_format: contiguous}")
    words = ["train", f"{tmp_path / 'net.py'}:Net", "--data", f"npz:{tmp_path / 'a.npz'}"]
    words += ["--recipe", str(tmp_path / "r.yaml"), "--json"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--task", "segmentation", "--input", "3x8x8"])
    content = json.loads(capsys.readouterr().out)
    assert (content["metric"]["name"], content["input_shape"]) == ("mIoU", [1, 3, 8, 8])
    assert content["data"] == f"segmentation:npz:{tmp_path / 'a.npz'}"
    with pytest.raises(SystemExit, match="2"):
        cli.main([*words, "--task", "segmentatoin"])
    assert "unknown task 'segmentatoin'. Did you mean segmentation?" in capsys.readouterr().err


def test_arrays_and_images_alone(tmp_path):
    for place, image in enumerate(pictures(count=4)):
        save(tmp_path / f"{place}.png", image)
    np.savez(tmp_path / "a.npz", x_train=pictures(), y_train=np.zeros((COUNT, 2), np.float32), x_test=pictures())
    task = tasks.Regression(f"npz:{tmp_path / 'a.npz'}")
    assert (task.parts, len(task.train), len(task.val)) == (("train", "test", "val"), 11, 1)
    assert len(tasks.SelfDistillation(f"folder:{tmp_path}", wide(2), val_fraction=0).train) == 4


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_coco(tmp_path):
    shape = {"segmentation": [[1, 2, 7, 2, 7, 9, 1, 9]], "bbox": [1, 2, 6, 7]}
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": 9, "name": "b"}, {"id": 4, "name": "a"}],
        "annotations": [{"image_id": 7, "category_id": 9, **shape}, {"image_id": 7, "iscrowd": 1}],
    }
    save(tmp_path / "images" / "a.png", pictures()[0])
    for part in ("train", "val"):
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    task = tasks.Detection(f"coco:{tmp_path}")
    assert (task.parts, task.class_names) == (("train", "val"), ("background", "a", "b"))
    (_, target), *_ = [(x[0], y[0]) for x, y in task.batches("val")]
    assert (target["boxes"].tolist(), target["labels"].tolist()) == ([[1, 2, 7, 9]], [2])
    _, masks = next(iter(tasks.Segmentation(f"coco:{tmp_path / 'train.json'}").batches("train")))
    assert masks[0, 5, 3] == 2
    assert masks[0, 0, 0] == 0
    (tmp_path / "val.json").write_text(json.dumps({**content, "categories": content["categories"][:1]}))
    with pytest.raises(DataError, match=r"val\.json: its categories are not those of .*train\.json"):
        tasks.Detection(f"coco:{tmp_path}")
    (tmp_path / "val.json").write_text("{}")
    with pytest.raises(DataError, match=r"val\.json: not COCO's JSON \(KeyError: 'categories'\)"):
        tasks.Detection(f"coco:{tmp_path}")


def test_voc(tmp_path):
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>7</xmax><ymax>9</ymax></bndbox>"
    for place in range(3):
        save(tmp_path / "JPEGImages" / f"{place}.png", pictures()[place])
        save(tmp_path / "SegmentationClass" / f"{place}.png", masked()[place][1])
        file = tmp_path / "Annotations" / f"{place}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"<annotation><object><name>cat</name>{box}</object></annotation>")
    task = tasks.Detection(f"voc:{tmp_path}")
    assert task.class_names == ("background", "cat")
    assert next(iter(task.batches("train")))[1][0]["boxes"].tolist() == [[1, 2, 7, 9]]
    assert tasks.Segmentation(f"voc:{tmp_path}").num_classes == 3
    for place in range(3):
        (tmp_path / "JPEGImages" / f"{place}.png").rename(tmp_path / "JPEGImages" / f"no {place}.png")
        (tmp_path / "SegmentationClass" / f"{place}.png").rename(tmp_path / "SegmentationClass" / f"no {place}.png")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("no 0\nno 2\n\n")
    assert len(tasks.Segmentation(f"voc:{tmp_path}", val_fraction=0).train) == 2
    for place in range(3):
        (tmp_path / "JPEGImages" / f"no {place}.png").rename(tmp_path / "JPEGImages" / f"{place}.png")
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"1\.xml: not Pascal VOC's XML"):
        tasks.Detection(f"voc:{tmp_path}")


def test_images_with_other_files_beside_them(tmp_path):
    for place, (image, mask) in enumerate(masked()[:3]):
        save(tmp_path / "images" / f"a {place}.png", image)
        save(tmp_path / "masks" / f"a {place}.png", mask)
        (tmp_path / "images" / f"a {place}.txt").write_text("notes")  # once hid the image
        (tmp_path / "images" / f"._a {place}.png").write_text("of macOS")
    assert len(tasks.Segmentation(f"folder:{tmp_path}", val_fraction=0).train) == 3
    save(tmp_path / "images" / "a 1.bmp", pictures()[0])
    with pytest.raises(DataError, match=r"a 1\.png: a 1\.bmp has the same name; keep one"):
        tasks.Segmentation(f"folder:{tmp_path}")


def test_a_perfect_image_leaves_the_mean_of_psnr_finite():
    task = tasks.Restoration([(IMAGE, IMAGE)] * 2)
    same, other = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16) / 2
    rows = task.measured(torch.cat([same, same]), torch.cat([same, other]))
    assert rows[0, 0] == 100
    assert task.summary(rows)["PSNR"] < 100


def test_without_boxes_nothing_is_judged():
    """mAP was -1, which ranked."""
    task = tasks.Detection([(image, {"boxes": [], "labels": []}) for image in pictures()], classes=2)
    with torch.no_grad(), pytest.raises(DataError, match="detection:list: no image of train has a box"):
        task.metrics(Boxes().eval(), "train")


# ------------------------------------------------------------------ what is refused

IMAGE = pictures()[0]


@pytest.mark.parametrize(
    ("task", "item", "said"),
    [
        ("segmentation", (IMAGE, np.zeros((5, 12), np.uint8)), r"the mask is 5x12 and the image 12x12; make"),
        ("segmentation", (IMAGE, np.full((12, 12), 3)), r"class 3 in the mask is outside 0\.\.2"),
        ("segmentation", (IMAGE, np.zeros((12, 12))), r"a mask is \(12, 12\) torch\.float64"),
        ("segmentation", IMAGE, r"is a ndarray; give a pair"),
        ("segmentation", ("x", np.zeros((12, 12), int)), r"TypeError: "),
        ("detection", (IMAGE, {"boxes": [[1, 1, 1, 5]], "labels": [1]}), r"the box 1, 1, 1, 5 is empty"),
        ("detection", (IMAGE, {"boxes": [[1, 1, 20, 5]], "labels": [1]}), r"1, 20, 5 is outside the image of 12x12"),
        ("detection", (IMAGE, {"boxes": [[1, 1, np.nan, 5]], "labels": [1]}), r"the box 1, 1, nan, 5 is empty"),
        ("detection", (IMAGE, {"boxes": [[1, 1, 2, 5]], "labels": [3]}), r"has a label outside 0\.\.2"),
        ("detection", (IMAGE, {"boxes": [[1, 1, 2, 5]], "labels": []}), r"1 boxes and 0 labels"),
        ("detection", (IMAGE, [[1, 1, 2, 5]]), r"the target is no dictionary of boxes and labels"),
        ("regression", (IMAGE, [float("nan")]), r"the target holds nan"),
        ("regression", (IMAGE, [1.0, 2.0]), r"input and target are .*\(2,\), and those of"),
        ("multilabel", (IMAGE, [0.5, 1]), r"a label is 0\.5; give a 0 or 1 for each class"),
        ("keypoints", (IMAGE, [[float("nan"), 2]]), r"points are \(1, 2\) or NaN"),
        ("restoration", (IMAGE, np.zeros((18, 24, 3), np.uint8)), r"the target is 18x24 and the input 12x12"),
        ("restoration", (IMAGE, torch.full((3, 12, 12), 99.0)), "values from 99 to 99; give bytes, or floats"),
    ],
)  # fmt: skip
def test_wrong_items_are_named_with_task_part_and_place(task, item, said):
    good = {
        "segmentation": masked()[0], "detection": boxed()[0], "regression": (IMAGE, [1.0]),
        "multilabel": (IMAGE, [0, 1]), "keypoints": (IMAGE, [[1, 2]]), "restoration": (IMAGE, IMAGE),
    }  # fmt: skip
    options = {"classes": 3} if task in ("segmentation", "detection") else {}
    wrong = tasks.TASKS[task]([good[task], item], val_fraction=0, mean=(), **options)
    with pytest.raises(DataError, match=rf"^{task}:list: train\[1\].*{said}"):
        batches(wrong, BatchOrder(2))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tasks.Segmentation([]), r"segmentation:list: train is empty"),
        (lambda: tasks.Segmentation({"val": masked()}), r"train is None; give folder:PATH"),
        (lambda: tasks.Segmentation("flowers"), r"train is 'flowers'; give folder:PATH, coco:PATH"),
        (lambda: tasks.Segmentation("voc:/nowhere"), r"/nowhere: no such file or folder; check the path after voc:"),
        (lambda: tasks.Segmentation("cocoa:x"), r"unknown source of segmentation 'cocoa'\. Did you mean coco"),
        (lambda: tasks.Segmentation([(IMAGE, np.full((12, 12), 255))]), r"all pixels are class 0 or ignored \(255\)"),
        (lambda: tasks.Segmentation(masked(), weights=[1, 2]), r"2 weights and 3 classes"),
        (lambda: tasks.SelfDistillation([IMAGE]), r"there is no teacher"),
        (lambda: tasks.Detection(boxed()).check(wide(2)), r"the loss of the first two samples fails"),
        (lambda: tasks.Segmentation(masked()).check(wide(3)), r"returns \(2, 3\); it must be \(n, 3, h, w\)"),
        (lambda: tasks.Regression([(IMAGE, [1.0, 2.0])] * 2).check(wide(3)), r"returns \(1, 3\) and targets are"),
    ],
)
def test_wrong_data_and_networks_are_refused(make, said):
    with pytest.raises(DataError, match=said):
        make()


def test_without_torchmetrics_nothing_is_trained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional", None)
    with pytest.raises(DataError, match=r"pip install 'convwright\[tasks\]'"):
        train(wide(3, maps=True), tasks.Segmentation(masked()), fixed(), progress=False)


def test_black_and_white_masks_are_class_0_and_1():
    white = [(IMAGE, np.where(np.arange(144).reshape(12, 12) % 3, 255, 0)) for _ in range(4)]
    for options in ({}, {"classes": ("ground", "cell")}):  # with classes, white was ignored without a word
        task = tasks.Segmentation({"train": white, "val": white}, **options)
        assert task.numbers == {255: 1}
        assert task.target(white[0][1], (12, 12), "here").unique().tolist() == [0, 1]
    rim = [*white, (IMAGE, np.eye(12, dtype=int))]
    assert not tasks.Segmentation({"train": rim, "val": white}).numbers

"""Networks of Ultralytics: edited, given back, trained, judged, exported and loaded by Ultralytics itself."""

import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convwright as cw
from convwright.errors import ConvwrightError, ReadError

SIDE = 64
TASKS = ("", "-seg", "-pose", "-cls")
NETWORKS = [f"{version}n{task}" for version in ("yolov8", "yolo11", "yolo26") for task in TASKS]
pytestmark = pytest.mark.filterwarnings("ignore")  # Ultralytics' own


@pytest.fixture(scope="module")
def ultralytics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("ultralytics")


@pytest.fixture(scope="module")
def adapter(ultralytics):
    from convwright.adapters import ultralytics as found

    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a function that makes data of bright squares for a task."""
    folder = tmp_path_factory.mktemp("data")

    def labelled(task, x, y, kind):
        corners = [(x, y), (x + 20, y), (x + 20, y + 20), (x, y + 20)]
        middle, outline = ((x + 10) / SIDE, (y + 10) / SIDE, 20 / SIDE, 20 / SIDE), np.array(corners) / SIDE
        what = [outline.ravel()] if task == "-seg" else [middle]
        if task == "-pose":
            what += [np.c_[outline, np.full(4, 2)].ravel()]
        return " ".join(map(str, [kind, *np.concatenate(what).round(5)]))

    def made(task="", classes=2, images=6):
        root = folder / f"squares{task}{classes}"
        rng = np.random.default_rng(0)
        for part in ("train", "val") if not root.exists() else ():
            for number in range(images):
                image, (x, y), kind = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8), rng.integers(0, 40, 2), number % 2
                image[y : y + 20, x : x + 20] = 250 if kind else 170
                home = root / part / f"class{kind}" if task == "-cls" else root / "images" / part
                home.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(home / f"{number}.png")
                (labels := root / "labels" / part).mkdir(parents=True, exist_ok=True)
                (labels / f"{number}.txt").write_text(labelled(task, x, y, kind))
        if task == "-cls":
            return root
        keypoints = "kpt_shape: [4, 3]\n" if task == "-pose" else ""
        names = [f"kind{number}" for number in range(classes)]
        (root / "data.yaml").write_text(
            f"path: {root}\ntrain: images/train\nval: images/val\n{keypoints}names: {names}\n"
        )
        return root / "data.yaml"

    return made


def settings(tmp_path, data, **more):
    quiet = {"plots": False, "verbose": False, "exist_ok": True, "workers": 0, "device": "cpu", "batch": 4}
    return {**quiet, "imgsz": SIDE, "project": str(tmp_path), "data": str(data), **more}


def size(yolo):
    return sum(parameter.numel() for parameter in yolo.model.parameters())


def halved(ultralytics, name):
    yolo = ultralytics.YOLO(f"{name}.yaml")
    arch = cw.read(yolo, (3, SIDE, SIDE))
    edited = arch.apply(*cw.scale_widths(arch, 0.5))
    assert all(change.exact for change in edited.changes)
    assert type(edited.model) is type(yolo.model)
    assert edited.profile().macs < 0.6 * arch.profile().macs
    return yolo, edited


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NETWORKS)
def test_given_back(name, ultralytics, adapter, data, tmp_path):
    """Trained, judged, used, saved and loaded by Ultralytics itself, on data of other classes."""
    task = name.partition("n")[2]
    yolo, edited = halved(ultralytics, of_four_points(ultralytics, name, tmp_path) if task == "-pose" else name)
    half, x = adapter.to_yolo(edited, tmp_path / "half.pt"), torch.rand(1, 3, SIDE, SIDE)
    before, how = size(half), settings(tmp_path, data(task))
    assert before < 0.5 * size(yolo)
    half.train(**how, epochs=1, name="first")
    assert size(half) == pytest.approx(before, rel=0.7 if task == "-cls" else 0.03)  # but for the outputs
    assert half.model.model[0].conv.out_channels == edited.model.model[0].conv.out_channels
    again = ultralytics.YOLO(tmp_path / "first" / "weights" / "best.pt")
    assert size(again) == size(half)
    assert again.predict(np.zeros((SIDE, SIDE, 3), np.uint8), verbose=False)
    assert again.val(**how).fitness is not None
    again = ultralytics.YOLO(tmp_path / "first" / "weights" / "best.pt")  # the other one is fused by now
    again.save(tmp_path / "saved.pt")
    expected = outputs(again.model.eval(), x)
    assert torch.equal(outputs(ultralytics.YOLO(tmp_path / "saved.pt").model.eval(), x), expected)
    again.train(**how, epochs=1, name="second", pretrained=False)
    assert size(again) == size(half)


def of_four_points(ultralytics, name, tmp_path):
    """Return the yaml, without its ending, of a pose network for 4 points instead of 17."""
    file = tmp_path / name
    yaml = dict(ultralytics.YOLO(f"{name}.yaml").model.yaml, kpt_shape=[4, 3])
    ultralytics.utils.YAML.save(f"{file}.yaml", yaml)
    return file


def outputs(model, x):
    with torch.no_grad():
        found = model(x)
    while not isinstance(found, torch.Tensor):
        found = found[0]
    return found


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NETWORKS)
def test_exported(name, ultralytics, adapter, tmp_path):
    """By Ultralytics' exporter, which runs other forwards of some modules."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    _, edited = halved(ultralytics, name)
    x = torch.rand(1, 3, SIDE, SIDE)
    expected = outputs(edited.model.eval(), x)
    file = adapter.to_yolo(edited, tmp_path / "half.pt").export(format="onnx", imgsz=SIDE, simplify=False)
    (found, *_) = onnxruntime.InferenceSession(file).run(None, {"images": x.numpy()})
    assert np.allclose(found, expected.numpy(), atol=1e-3)


def test_compressed(ultralytics, adapter, data, tmp_path, monkeypatch):
    """Scored, cut, repaired, fine-tuned with distillation, and opened again without unpickling anything."""
    yolo = ultralytics.YOLO("yolov8n.yaml")
    yolo.train(**settings(tmp_path, data()), epochs=1, name="base")
    untouched = {name: tensor.clone() for name, tensor in yolo.model.state_dict().items()}
    how = settings(tmp_path, data())
    del how["project"]
    result = adapter.compress(yolo, "macs<=50%", out=tmp_path / "run", epochs=1, distill=True, images=5, **how)
    arch = cw.read(yolo, (3, SIDE, SIDE))
    assert result.metrics["macs"] <= 0.5 * arch.profile().macs
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in yolo.model.state_dict().items())
    assert [trial.candidate.epochs for trial in result.trials][-1] == 1
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    half, opened = adapter.to_yolo(result), adapter.load(tmp_path / "run")
    x = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(outputs(half.model.eval(), x), outputs(opened.model.eval(), x))
    assert opened.names == yolo.names
    assert opened.overrides["imgsz"] == SIDE


@pytest.mark.breadth
@pytest.mark.parametrize("name", [f"yolo26n{task}" for task in TASKS[1:]])
def test_further_tasks_are_compressed(name, ultralytics, adapter, data, tmp_path):
    task = name.partition("n")[2]
    yolo = ultralytics.YOLO(f"{of_four_points(ultralytics, name, tmp_path) if task == '-pose' else name}.yaml")
    how = settings(tmp_path, data(task))
    yolo.train(**how, epochs=1, name="base")
    del how["project"]
    result = adapter.compress(yolo, "macs<=60%", out=tmp_path / "run", epochs=1, images=5, **how)
    assert result.metrics["macs"] <= 0.6 * cw.read(yolo, (3, SIDE, SIDE)).profile().macs
    assert size(adapter.load(tmp_path / "run")) == size(adapter.to_yolo(result))


@pytest.mark.breadth
def test_a_process_that_knows_nothing_of_convwright(ultralytics, adapter, data, tmp_path):
    """Trains the edited network as it is: the checkpoint brings what is needed."""
    _, edited = halved(ultralytics, "yolov8n")
    adapter.to_yolo(edited, tmp_path / "half.pt")
    how = settings(tmp_path, data(), epochs=1, name="other")
    code = f"""
        from ultralytics import YOLO
        yolo = YOLO({str(tmp_path / "half.pt")!r})
        yolo.train(**{how!r})
        print("width", yolo.model.model[0].conv.out_channels)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "width 8" in done.stdout


def test_compressed_again(ultralytics, adapter, tmp_path):
    """A network that has a plan already gets a second one; both are followed when it is built anew."""
    _, edited = halved(ultralytics, "yolov8n-cls")
    half = adapter.to_yolo(edited)
    arch = cw.read(half, (3, SIDE, SIDE))
    quarter = adapter.to_yolo(arch.apply(*cw.scale_widths(arch, 0.5)))
    fresh = ultralytics.YOLO("yolov8n-cls.yaml").model
    built = adapter._planned(fresh, quarter.model.yaml)
    shapes = {name: tensor.shape for name, tensor in quarter.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in built.state_dict().items()} == shapes


def test_refused(ultralytics, adapter, tmp_path):
    with pytest.raises(ConvwrightError, match="no network of Ultralytics"):
        adapter.to_yolo(cw.read(nn.Conv2d(3, 3, 1), (3, 8, 8)))
    with pytest.raises(ConvwrightError, match="give a YOLO"):
        adapter.compress(nn.Conv2d(3, 3, 1), "macs<=50%", "data.yaml")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ReadError, match="exported network"):
        cw.read(ultralytics.YOLO(tmp_path / "net.onnx", task="detect"))
    networks = [ultralytics.nn.tasks.DetectionModel("yolov8n.yaml", ch=ch, verbose=False) for ch in (3, 1)]
    with pytest.raises(ConvwrightError, match="image channels 3, the data 1"):
        adapter._fitted(*networks)

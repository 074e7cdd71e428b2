"""The commands of the page on photographs, as they stand there: a small network in place of the large one."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convwright import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compress.md"
SMALL = {"timm:tf_efficientnet_lite0": "timm:test_resnet", "3x96x96": "3x32x32"}
EXPORTS = importlib.util.find_spec("onnxscript") is not None  # of the extra onnx, which the tests do without
SHORT = {"train": ["--epochs", "1"], "compress": ["--tune-epochs", "1", "--option", "rounds=1", "--calibration", "12"]}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Photographs as the page wants them, and weights of timm without a network connection."""
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for part, count in (("train", 20), ("validation", 6), ("test", 6)):
        for label, shade in (("coat", 60), ("shoe", 160)):
            (folder := tmp_path / "photos" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(shade, shade + 60, (40, 36 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    torch.save(timm.create_model("test_resnet").state_dict(), kept := str(tmp_path / "w.pth"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: kept)


@pytest.mark.breadth
@pytest.mark.usefixtures("photos")
def test_the_commands_of_the_page_run():
    (block,) = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        for large, small in SMALL.items():
            line = line.replace(large, small)
        words = shlex.split(line, comments=True)
        if words[:1] == ["convwright"] and (EXPORTS or words[1] != "export"):
            with pytest.raises(SystemExit) as ended:
                cli.main([*words[1:], *SHORT.get(words[1], [])])
            assert not ended.value.code, line
    result = json.loads(Path("runs/half/result.json").read_text())
    assert result["budget_met"]["macs"]["met"]
    assert [trial["epochs"] for trial in result["trials"]][:3] == [0, 1, 1]
    assert not EXPORTS or Path("half/model.onnx").stat().st_size > 1000

"""Files that say to be larger than any memory: refused by what they say, and before memory is taken."""

import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from convwright.errors import DataError
from convwright.training import load_data


def test_an_array_that_says_to_be_larger_than_it_is(tmp_path):
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000, 100, 100), }".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as packed:
        packed.writestr(
            "x_train.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(640)
        )
    with pytest.raises(DataError, match=r"x_train.npy is damaged: it says to be larger than it is"):
        load_data(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize("position", [0, 1])
def test_an_image_that_says_to_be_huge(tmp_path, position):
    for number in range(4):
        file = tmp_path / "ab"[number // 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(file)
    file = tmp_path / "a" / f"{position}.png"
    content = bytearray(file.read_bytes())
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"{position}.png: not a readable image"):
        load_data(f"folder:{tmp_path}", input_shape=None if position == 0 else (1, 8, 8))

"""Imported once, before the processes of the matrix are forked: what they import at first use is there by then.

Nothing here may run backward: autograd's threads do not survive a fork.
"""

from __future__ import annotations

import warnings

import support_edits
import timm  # noqa: F401
import torch_pruning  # noqa: F401
import torchvision.models  # noqa: F401

from convwright.edits import InexactEditWarning, Replace, scale_widths

warnings.simplefilter("ignore", InexactEditWarning)
_ARCH = support_edits.read("zoo:resnet20")[0].arch
_ARCH.apply(*scale_widths(_ARCH, 0.5), Replace("layer1.0.conv1", "squeeze_excite"), verify=False).profile()

"""What each argument of `optimize` means: written here once, for `help`, the reference and the command line.

It imports nothing, so that the command line has it before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

OPTIMIZE: Mapping[str, str] = {
    "model": "Network, as for `convwright.read`; a named one gets as many outputs as the data have classes.",
    "data": "Images and labels, as for `convwright.load_data`.",
    "budget": "Limit on a cost, such as macs<=50%, params<=1500, latency<=3ms or latency[onnxruntime]<=50%; one or "
    "several. Without one compress takes macs<=50%, and optimize needs an objective.",
    "method": "Search method; default: auto, or pareto with an objective.",
    "out": "Run directory; default: runs/MODEL-BUDGET.",
    "seed": "Seed of initial weights, choices and trainings.",
    "recipe": "Training recipe: a preset (default, finetune, fast-cpu, small-net) or a .yaml file; optimize takes "
    "finetune for trained weights.",
    "resume": "Continue the run in the run directory; only budget and time may differ from before, and what was tried "
    "is not tried again.",
    "epochs": "Epochs of the first training of the untouched network; default: the recipe's, or none with weights "
    "whose head fits.",
    "tune_epochs": "Epochs of every later training, the baseline's included; default: half of the recipe's, or all "
    "of preset finetune.",
    "divisor": "Number that new widths are multiples of, or auto: 16 for groups of 64 channels or more, 8 for smaller "
    "ones, 1 below 16, and less where the budget could not be used; for a budget on latency at most the "
    "step of the runtime's kernels.",
    "constraints": "What to leave as it is, as `convwright.Constraints` or a .yaml file: layers left alone, ratios, "
    "divisors, blocks that stay, the resolution.",
    "weights": "Trained weights: a .safetensors file, or a state dict or checkpoint saved by torch; a head for another "
    "number of classes is drawn anew. Images are normalised as in their training if that is known, else as the recipe "
    "says.",
    "pretrained": "Start from the weights that come with a network of torchvision or timm.",
    "trained": "Whether a network that is given as a module comes with trained weights.",
    "input_shape": "Shape of an image, such as 3x224x224; images of another shape are resized.",
    "data_dir": "Folder with mnist.npz, cifar10.npz and the like.",
    "progress": "Whether trainings show how far they are.",
    "workers": "Number of processes that read a streamed data set.",
    "say": "Function that is called with lines for a person; default: they go to standard error, if `progress`.",
    "command": "Command line, for the record.",
    "options": "Option of the method, by its name, such as trials=12; one or several.",
    "time": "Time for all trials together, such as 30m or 1h30m; then the search ends with its best network so far.",
    "placement": "Where candidates are trained, and how many at a time.",
    "storage": "Database of the trials, such as postgresql://user@host/runs; default: a file in the run directory.",
    "device_command": "What measures an ONNX file, {onnx}, on a device, and prints milliseconds; for a budget such as "
    "latency[command]<=4ms.",
    "proxy_classes": "Number of classes on which candidates are ranked; the result is trained on all data.",
    "proxy_samples": "Number of training images on which candidates are ranked; the result is trained on all data.",
    "objective": "Accuracy (of a task, its metric) and one or two costs, such as accuracy,macs: several networks are "
    "sought of which none is beaten in all of them; they are in front/ of the run directory.",
    "max_drop": "Points of accuracy that the result may be below the baseline, or as much of another metric in its "
    "unit, such as dB; with more it is written, too, and the command ends with exit code 3. With a budget on int8, the "
    "result in int8 counts.",
    "baseline": "Whether the untouched network is trained on for as long as the result, to compare with; else it is "
    "compared as it is.",
    "reestimate": "Whether batch norm is re-estimated on training images where an edit changed the function or a "
    "training was too short for it.",
    "merge": "Whether kept channels stand in for removed ones in the weights behind a cut; default: for trained "
    "networks.",
    "refit": "Whether the weights behind a cut are refitted to what the untouched network computes; default: for "
    "trained networks.",
    "calibration": "Number of training images for saliency and repair.",
    "distill": "Whether the untouched network teaches in every training after its own.",
}

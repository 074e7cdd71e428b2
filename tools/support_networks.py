"""The networks of the support matrix: classifiers of torchvision and timm, detectors, segmenters and backbones."""

from __future__ import annotations

import os
import tempfile

import torch
from torch import Tensor, nn

TRANSFORMERS = ("vit", "swin", "maxvit")

# Small members of timm's convolutional families, and of those that mix convolution with attention or with
# multi-layer perceptrons over positions; by timm's own modules.
_TIMM = {
    "byoanet": "botnet26t_256 eca_botnext26ts_256 halonet26t lambda_resnet26t sehalonet33ts",
    "byobnet": "bat_resnext26ts eca_resnext26ts gcresnext26ts gernet_s mobileone_s0 regnetz_b16 repvgg_a0 resnet32ts "
    "resnet50_clip_gap resnet51q resnext26ts seresnext26ts",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto convnext_atto_ols convnext_zepto_rms convnextv2_atto",
    "cpubone": "cpubone_nano",
    "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s cs3darknet_s cs3sedarknet_l cspdarknet53 cspresnet50 cspresnext50 darknet17 "
    "darknetaa53 sedarknet21",
    "cspnext": "cspnext_tiny",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla34 dla46_c dla46x_c dla60_res2net",
    "dpn": "dpn48b dpn68 dpn68b",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientnet": "efficientnet_b0 efficientnet_b0_g16_evos efficientnet_b0_gn efficientnet_blur_b0 "
    "efficientnet_cc_b0_4e efficientnet_es efficientnet_lite0 efficientnetv2_rw_t fbnetc_100 gc_efficientnetv2_rw_t "
    "mixnet_s mnasnet_small mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_035 semnasnet_050 spnasnet_100 "
    "tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tinynet_e",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_050 ghostnet_100 ghostnetv2_100 ghostnetv3_100",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t",
    "inception_next": "inception_next_atto inception_next_tiny",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "levit": "levit_conv_128s",
    "lowformer": "lowformer_b0",
    "mambaout": "mambaout_femto",
    "maxxvit": "coatnet_nano_rw_224 coatnext_nano_rw_224",
    "metaformer": "caformer_s18 convformer_s18 poolformer_s12 poolformerv2_s12",
    "mlp_mixer": "gmlp_s16_224 mixer_s32_224 resmlp_12_224",
    "mobilenetv3": "fbnetv3_b lcnet_035 mobilenetv3_small_050 mobilenetv4_conv_aa_medium mobilenetv4_conv_small_035 "
    "mobilenetv4_hybrid_medium tf_mobilenetv3_small_minimal_100",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "nasnet": "nasnetalarge",
    "nextvit": "nextvit_small",
    "nfnet": "dm_nfnet_f0 eca_nfnet_l0 nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nf_seresnet26 nfnet_l0",
    "pnasnet": "pnasnet5large",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetv_040 regnetx_002 regnety_002 regnetz_005",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_14w_8s res2net50_26w_4s res2net50d res2next50",
    "resnest": "resnest14d resnest50d_4s2x40d",
    "resnet": "ecaresnet26t ecaresnetlight resnet10t resnet18 resnet26d resnet50_gn resnetaa34d resnetblur18 "
    "resnetrs50 resnext50_32x4d seresnet18 seresnext26t_32x4d",
    "resnetv2": "resnetv2_18 resnetv2_50 resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnetv2_50x1_bit",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18 legacy_seresnext26_32x4d",
    "shvit": "shvit_s1",
    "sknet": "skresnet18",
    "starnet": "starnet_s050 starnet_s1",
    "swiftformer": "swiftformer_xs",
    "tresnet": "tresnet_m",
    "vgg": "vgg11 vgg11_bn",
    "visformer": "visformer_tiny",
    "vovnet": "eca_vovnet39b ese_vovnet19b_slim ese_vovnet19b_slim_dw vovnet39a",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
}

# These run one at a time, after all others: weights of more than about 60M parameters, several times in float64.
_LARGE = {
    "timm": "dm_nfnet_f0 nasnetalarge pnasnet5large vgg11 vgg11_bn",
    "torchvision": "alexnet convnext_base convnext_large efficientnet_b7 efficientnet_v2_l regnet_x_16gf regnet_x_32gf "
    "regnet_y_128gf regnet_y_16gf regnet_y_32gf resnet152 resnext101_32x8d resnext101_64x4d vgg11 vgg11_bn vgg13 "
    "vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn wide_resnet101_2 wide_resnet50_2",
}
LARGE = frozenset(f"{library}:{name}" for library, names in _LARGE.items() for name in names.split())

# Smaller inputs are too small for an auxiliary head in training mode.
SIDES = {"torchvision:inception_v3": 299, "torchvision:googlenet": 224}


# ------------------------------------------------------------------ networks that are no classifiers, by family

_DETECTION = (
    "ssdlite320_mobilenet_v3_large ssd300_vgg16 retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fcos_resnet50_fpn "
    "fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn "
    "fasterrcnn_mobilenet_v3_large_320_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2"
)
_SEGMENTATION = (
    "fcn_resnet50 fcn_resnet50+aux deeplabv3_resnet50 deeplabv3_resnet50+aux deeplabv3_mobilenet_v3_large "
    "deeplabv3_mobilenet_v3_large+aux lraspp_mobilenet_v3_large unet"
)
_DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet"
_ENCODERS = "resnet18 resnet50 mobilenet_v2 efficientnet-b0 tu-mobilenetv3_small_100"
_FEATURES = "hrnet_w18_small resnet18 mobilenetv3_small_100 efficientnet_b0 convnext_atto"
FREE = "+free"  # ends the name of a backbone whose outputs may change: cw.read(..., free_outputs=True)

FAMILIES = {
    "ultralytics": tuple(
        f"{version}{size}{task}"
        for version in ("yolov8", "yolo11", "yolo26")
        for size in "ns"
        for task in ("", "-seg", "-pose", "-cls")
    ),
    "detection": tuple(_DETECTION.split()),
    "segmentation": tuple(_SEGMENTATION.split()),
    "smp": tuple(f"{decoder}/{encoder}" for decoder in _DECODERS.split() for encoder in _ENCODERS.split()),
    "timm-features": tuple(f"{name}{free}" for name in _FEATURES.split() for free in ("", FREE)),
}
PROPOSALS = 100  # of an R-CNN, for an image; by default it takes a thousand
IMAGE = 160  # pixels of a detector's image, a side; all but the SSDs make it 128
CLASSES = 3  # of the segmenters


def family_of(name: str) -> str:
    """Return the family of a network that is no classifier; "" of torchvision's and timm's classifiers."""
    family = name.partition(":")[0]
    return family if family in FAMILIES else ""


def make(name: str) -> tuple[nn.Module, tuple[int, ...] | list[Tensor]]:
    """Return a network that is no classifier, with random weights, and what it is called with: a shape or a nest."""
    family, _, rest = name.partition(":")
    model = _MAKERS[family](rest)
    if family == "detection":
        return model, [torch.rand(3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0))]
    side = 128 if rest.startswith("PAN") else 64  # PAN halves its smallest map three times more
    return model, (3, side, side)


def _ultralytics(name: str) -> nn.Module:
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    model: nn.Module = YOLO(f"{name}.yaml").model
    model.args = get_cfg()  # type: ignore[assignment]  # the weights of its losses
    return model


def _detection(name: str) -> nn.Module:
    from torchvision.models import get_model

    sizes = {} if name.startswith("ssd") else {"min_size": 128, "max_size": IMAGE}
    sizes |= {"rpn_post_nms_top_n_test": PROPOSALS, "rpn_post_nms_top_n_train": PROPOSALS} if "rcnn" in name else {}
    return get_model(name, weights=None, weights_backbone=None, **sizes)


def _segmentation(name: str) -> nn.Module:
    from torchvision.models import get_model

    if name == "unet":
        return PlainUNet(CLASSES)
    name, _, aux = name.partition("+")
    more = {"aux_loss": True} if aux else {}
    return get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES, **more)


def _smp(name: str) -> nn.Module:
    import segmentation_models_pytorch

    decoder, _, encoder = name.partition("/")
    make_it = getattr(segmentation_models_pytorch, decoder)
    model: nn.Module = make_it(encoder, encoder_weights=None, classes=CLASSES)
    return model


def _features(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name.removesuffix(FREE), features_only=True)
    return model


_MAKERS = {
    "ultralytics": _ultralytics,
    "detection": _detection,
    "segmentation": _segmentation,
    "smp": _smp,
    "timm-features": _features,
}


class PlainUNet(nn.Module):
    """A U-Net as people write it by hand: two convolutions a level, skips joined by ``cat``."""

    def __init__(self, classes: int, width: int = 16, levels: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(map(_twice, (3, *widths), widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(_twice(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a score per class and pixel."""
        kept: list[Tensor] = []
        for place, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if place else x)
            kept.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(kept[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]


def _twice(before: int, after: int) -> nn.Sequential:
    layers = ([nn.Conv2d(a, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()] for a in (before, after))
    return nn.Sequential(*(layer for part in layers for layer in part))


def networks() -> list[str]:
    """Return the names of all networks of the matrix, sorted."""
    from torchvision import models

    found = [f"timm:{name}" for names in _TIMM.values() for name in names.split()]
    found += [f"torchvision:{n}" for n in models.list_models(module=models) if not n.startswith(TRANSFORMERS)]
    found += [f"{family}:{name}" for family, names in FAMILIES.items() for name in names]
    return sorted(found)

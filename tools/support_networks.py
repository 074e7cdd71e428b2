"""The networks of the support matrix: torchvision's classification convnets and members of timm's families."""

from __future__ import annotations

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


def networks() -> list[str]:
    """Return the names of all networks of the matrix, sorted: those of timm, then those of torchvision."""
    from torchvision import models

    found = [f"timm:{name}" for names in _TIMM.values() for name in names.split()]
    found += [f"torchvision:{n}" for n in models.list_models(module=models) if not n.startswith(TRANSFORMERS)]
    return sorted(found)

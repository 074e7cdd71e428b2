"""The training techniques as functions, for your own training loop.

    from convwright import techniques

    images, targets = techniques.mixup(images, labels, num_classes=10, alpha=0.2)

As switches of a recipe they are described by `TECHNIQUES`: each entry has a card that says what the technique does,
costs, and where it helps and where not. Rates that change per batch are torch's own `OneCycleLR` and `CyclicLR`; the
recipe's `schedule` equals them step by step.
"""

from convwright.repair.batch_norm import kept_statistics as frozen_statistics
from convwright.repair.batch_norm import reestimate_batch_norm
from convwright.training.tasks.losses import distillation_loss
from convwright.training.techniques.averaging import averaged_copy
from convwright.training.techniques.branch_sparsity import branch_scales, shrink_groups, zero_branches
from convwright.training.techniques.distill import distilled, feature_loss, teacher_for
from convwright.training.techniques.flip_test import Flipped
from convwright.training.techniques.lookahead import lookahead
from convwright.training.techniques.mixing import cutmix, mixup
from convwright.training.techniques.progressive_resizing import progressive_resizing
from convwright.training.techniques.recipe_fields import cutout, smoothed
from convwright.training.techniques.replaced_layers import blurpool, depthwise_separable, global_pool, squeeze_excite
from convwright.training.techniques.sam import sam_gradients
from convwright.training.techniques.stochastic_depth import stochastic_depth
from convwright.training.techniques.technique import TECHNIQUES, Card, Effect, Teacher, Technique, technique

__all__ = [
    "TECHNIQUES", "Card", "Effect", "Flipped", "Teacher", "Technique", "averaged_copy", "blurpool",
    "branch_scales", "cutmix", "cutout", "depthwise_separable", "distillation_loss", "distilled",
    "feature_loss", "frozen_statistics", "global_pool", "lookahead", "mixup", "progressive_resizing",
    "reestimate_batch_norm", "sam_gradients", "shrink_groups", "smoothed", "squeeze_excite", "stochastic_depth",
    "teacher_for", "technique", "zero_branches",
]  # fmt: skip

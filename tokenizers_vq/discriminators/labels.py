"""What discriminators that know classes ask of the data."""

from __future__ import annotations

from tokenizers_vq.batch import Batch


def check_labels(kind: str, num_classes: int, batch: Batch) -> None:
    """Raises `ValueError`, one line, where the data have no labels, an image has none, or one is out of range."""
    if batch.labels is None:
        raise ValueError(
            f"adversary.discriminator: {kind} needs a label for each image, and the data have none: "
            "give data with labels (folders of classes, or `data.label_column`), or take another discriminator"
        )
    without = int((batch.labels < 0).sum())
    if without:
        raise ValueError(
            f"adversary.discriminator: {kind} needs a label for each image; {without} of {len(batch.images)} images of "
            "a batch have none (-1): give each one, or take another discriminator"
        )
    if bool((batch.labels >= num_classes).any()):
        largest = int(batch.labels.max())
        raise ValueError(
            f"adversary.discriminator.num_classes: label {largest} is out of range, {num_classes} classes have labels "
            f"0 to {num_classes - 1}: set num_classes to {largest + 1} or more"
        )

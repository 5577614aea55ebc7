"""Names of classes that published priors have as numbers."""

from __future__ import annotations

from collections import Counter

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)


def class_names(dataset: str) -> tuple[str, ...]:
    """The names of a data set's classes in their usual order, each once: `imagenet-1k`, as timm knows them.

    A class is called by the first of its synonyms; where two have the same, by its number too.
    """
    from timm.data import ImageNetInfo

    info = ImageNetInfo(dataset)
    names = [info.index_to_description(index).split(",")[0] for index in range(info.num_classes())]
    often = Counter(names)
    return tuple(name if often[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))

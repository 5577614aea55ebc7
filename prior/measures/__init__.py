"""How good samples are, and how varied: formulas on features and class probabilities, and who judges these."""

from prior.measures.classes import class_score, nearest_classes
from prior.measures.judge import Judge, Seen
from prior.measures.neighbours import Manifold, Nearest, density_coverage, nearest, precision_recall
from prior.measures.spread import spread

__all__ = [
    "Judge",
    "Manifold",
    "Nearest",
    "Seen",
    "class_score",
    "density_coverage",
    "nearest",
    "nearest_classes",
    "precision_recall",
    "spread",
]

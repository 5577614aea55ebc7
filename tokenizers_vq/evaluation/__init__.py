"""Metrics, codebook usage and reports."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.evaluation.evaluate import Evaluation, Metric, evaluate
from tokenizers_vq.evaluation.report import write_report
from tokenizers_vq.evaluation.tables import print_table
from tokenizers_vq.evaluation.usage import CodeUsage, StreamUsage, Usage

__all__ = ["CodeUsage", "Evaluation", "Metric", "StreamUsage", "Usage", "evaluate", "print_table", "write_report"]

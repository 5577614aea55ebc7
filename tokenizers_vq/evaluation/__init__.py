"""Metrics, codebook usage, reports and comparisons."""

import tokenizers_vq._torchvision  # noqa: F401  (before anything that imports torchvision)
from tokenizers_vq.evaluation.compare import Comparison, compare
from tokenizers_vq.evaluation.compare_page import print_comparison, write_comparison
from tokenizers_vq.evaluation.evaluate import Evaluation, Metric, evaluate
from tokenizers_vq.evaluation.probe import Probe, probe
from tokenizers_vq.evaluation.probe_table import print_probe
from tokenizers_vq.evaluation.report import write_report
from tokenizers_vq.evaluation.tables import print_table
from tokenizers_vq.evaluation.usage import CodeUsage, StreamUsage, Usage

__all__ = [
    "CodeUsage",
    "Comparison",
    "Evaluation",
    "Metric",
    "Probe",
    "StreamUsage",
    "Usage",
    "compare",
    "evaluate",
    "print_comparison",
    "print_probe",
    "print_table",
    "probe",
    "write_comparison",
    "write_report",
]

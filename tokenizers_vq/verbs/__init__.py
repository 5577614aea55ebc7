"""What the commands do, as typed functions.

`tvq.train`, `evaluate`, `report`, `compare`, `probe`, `encode_folder`, `doctor` and `ablate` print nothing. Messages go
to the loggers below `tokenizers_vq` (`logging.basicConfig(level=logging.INFO)` shows them), and `progress` is called
with what is done and the total.
"""

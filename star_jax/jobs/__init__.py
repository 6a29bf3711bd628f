"""One module per command: its config class and its run function."""

TOGETHER = ("train_text", "export_text", "train_graph", "export_graph", "evaluate")
"""What several processes do together; the other jobs are done by the first one alone."""

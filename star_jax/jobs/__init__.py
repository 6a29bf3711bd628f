"""One module per command: its config class and its run function."""

"""Where tables, text, graph and training meet: loaders and scorers."""

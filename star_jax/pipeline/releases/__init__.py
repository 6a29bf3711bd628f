"""Between the folders of a run and a registry of versions: gathered, shown, compared, logged."""

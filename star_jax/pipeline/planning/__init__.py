"""What a run needs of machines that are not there: compiled from shapes alone."""

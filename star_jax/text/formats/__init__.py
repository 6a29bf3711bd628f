"""A trained model in the formats of other libraries, written without them."""

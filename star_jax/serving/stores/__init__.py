"""Key-value stores of embeddings behind one protocol: LMDB in a folder, Redis or Valkey."""

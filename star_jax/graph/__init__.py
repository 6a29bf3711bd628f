"""The graph half: store, samplers, padded batches, encoder, decoders."""

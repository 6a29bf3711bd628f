"""The text half: towers, adapters, pooling, scorer, tokenizer, pretrained weights."""

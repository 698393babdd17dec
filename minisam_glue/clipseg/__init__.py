"""CLIPSeg (arXiv 2112.10003): so far its tokenizer."""

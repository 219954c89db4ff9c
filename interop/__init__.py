"""Foreign weights: Hugging Face folders in and out, without PyTorch or transformers. One file per family, key maps as tables."""

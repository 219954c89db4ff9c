"""Foreign weights: Hugging Face folders in and out, without PyTorch or transformers.

One file a family, its key map a table.
"""

"""What goes in: sources, tokenizers, NumPy transforms, and the pipeline that yields batches."""

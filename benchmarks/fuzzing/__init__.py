"""What benchmarks/fuzz.py is made of: mutations of files, and the kinds of input that are mutated."""

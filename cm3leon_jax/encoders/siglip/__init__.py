"""SigLIP: texts and images in one space, without a class token and without a causal mask."""

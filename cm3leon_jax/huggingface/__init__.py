"""To and from other people's formats: Hugging Face folders of the OPT and the CLIP architecture."""

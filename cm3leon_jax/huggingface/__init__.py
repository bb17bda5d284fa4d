"""To and from other people's formats: folders of decoders and encoders, weights of image tokenizers."""

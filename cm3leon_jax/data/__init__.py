"""From raw documents to training batches: sources, the prepared corpus, the CM3 objective, packing."""

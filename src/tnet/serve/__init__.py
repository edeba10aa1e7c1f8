"""An HTTP endpoint for programs: images in, predictions out, in batches across requests."""

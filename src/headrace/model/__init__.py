"""What planning and rebuilding need to know of a model."""

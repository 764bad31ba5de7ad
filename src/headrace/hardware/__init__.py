"""What a machine can do: measured here, or published by its maker."""

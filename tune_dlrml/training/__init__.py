"""Training of one trial after another on a resident model."""

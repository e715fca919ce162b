"""A loss that a user wrote."""

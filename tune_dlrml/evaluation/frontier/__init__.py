"""Reward against divergence: points, rewards and their picture."""

"""Ray for a driver: joins or starts a cluster, checks its resources, and cleans up afterwards."""

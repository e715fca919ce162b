"""`tune-dlrml`: one file per command. Only these files read argv and print."""

"""`tune-dlrml`: one file a command. These files alone read argv and print."""

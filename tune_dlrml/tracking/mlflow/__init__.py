"""MLflow: one parent run a search, one nested child run a trial."""

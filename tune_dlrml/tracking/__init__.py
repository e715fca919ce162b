"""MLflow: one parent run a search, one nested child run a trial. Nothing here can stop a training.

The event logs are the outbox. A thread turns what is new in them into calls to MLflow and notes beside each log how
far MLflow has it; while MLflow is away, and over the death of a driver, the log simply grows. Nothing is lost, since a
cursor moves behind what MLflow took; nothing is there twice, since a point keeps its report's timestamp.
"""

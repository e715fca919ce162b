"""What a search tells a tracking backend. Nothing here can stop a training.

The event logs are the outbox. A thread turns what is new in them into calls to the `Backend` and notes beside each log
how far that has it; while the backend is away, and over the death of a driver, the log simply grows. Nothing is lost,
since a cursor moves behind what the backend took; nothing is there twice, since a point keeps its report's timestamp.
"""

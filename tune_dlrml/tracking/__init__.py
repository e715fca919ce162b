"""Logs a search to a tracking backend. Nothing here can stop a training.

The event logs are the outbox. A thread turns new events into calls to the `Backend` and records beside each log how far
it was sent. While the backend is unavailable, or after the death of a driver, the log simply grows. Nothing is lost,
since a cursor moves only past logged events; nothing is logged twice, since a point keeps its report's timestamp.
"""

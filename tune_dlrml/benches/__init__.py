"""A model, or a trial of a search, before a bench: MT-Bench, AlpacaEval or the reward-KL frontier."""

"""Export of a trained trial for use without this project: model, card, data, and a script that repeats it."""

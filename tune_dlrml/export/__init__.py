"""A trained trial for those who do not have this project: model, card, data, and a script that repeats it."""

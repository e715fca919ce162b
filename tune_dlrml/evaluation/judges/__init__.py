"""Who rates answers, how a rating is read out of what they say, and what of it is kept."""

"""The demonstration behind ``tnet demo``: train, compare, predict and explain on made scenes, and leave one page."""

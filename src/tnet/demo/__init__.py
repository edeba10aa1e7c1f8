"""The demonstration behind ``tnet demo``: train, compare, predict and explain on synthetic images."""

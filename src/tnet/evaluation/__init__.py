"""What a model can do, and what it costs.

``cost``: parameters, multiply-adds and time; ``looks``: accuracy against the number of looks; ``report``: its rows as
table, CSV and plot.
"""

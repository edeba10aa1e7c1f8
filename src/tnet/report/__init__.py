"""Reports: one HTML file about a run or about predictions, with everything that it shows inside."""

"""``tnet view``: a web page that shows images in full and where a model looks in them."""

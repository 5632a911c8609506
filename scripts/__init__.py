"""What makes the weights that ship with sdseg, and what checks its behaviour as a whole."""

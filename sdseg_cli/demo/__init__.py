"""A made-up data set, and the commands to run on it."""

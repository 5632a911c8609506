"""Run folders, their logs and checkpoints, and packages of trained models."""

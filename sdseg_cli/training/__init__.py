"""What the training loop takes from the shelf: batches, checkpoints, the device, made-up shapes."""

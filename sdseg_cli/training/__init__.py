"""Training: batches, latents of masks, the loss, the loop, and the fast mask decoder."""

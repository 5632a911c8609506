"""From a trained model and a scan to a mask."""

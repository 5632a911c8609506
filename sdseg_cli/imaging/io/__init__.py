"""Files of scans and masks, read and written."""

"""Networks the paper compares SDSeg with and MONAI does not have, one file each.

Made from the papers alone, in code of our own on blocks of torch and MONAI. `core/config.py` has
the line that registers each, with its sizes.
"""

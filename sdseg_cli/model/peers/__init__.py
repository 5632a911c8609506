"""Networks the paper compares SDSeg with and MONAI does not have, one file each.

After the papers, in code of our own on blocks of torch and MONAI; no file of the authors' code was
read. Sections and equations are cited from memory: the full texts were not at hand.
`core/config.py` has the line that registers each, with its sizes.
"""

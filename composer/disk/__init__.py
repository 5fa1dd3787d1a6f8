"""Disk images on the host: their headers, their layout, and the manifest beside them."""

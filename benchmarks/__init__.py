"""Measurements that are made by hand (`make bench-…`), and their results. Nothing of the product imports them."""

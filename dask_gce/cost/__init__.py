"""What clusters cost: a machine's price with all that belongs to it, Google's list, the account.

All of it is pure. Google's list is read in `price_list`, and what a cluster does about its cost is
in `costing`.
"""

"""The far end of Identity-Aware Proxy's TCP forwarding, as tunnel.cloudproxy.app is for real ones.

``frames`` is the form of what passes, ``script`` what a test makes of it, ``session`` one
connection to a machine, ``far_end`` the websockets to it. Nothing here is shared with the client of
this package: two that were written apart agree only where both are right.
"""

"""What a start would do, told without doing it.

Owns the plan of a cluster: the requests that its start makes, in their order and with their bodies,
the machines, rules and addresses that come of them, what they count for quotas and what they cost.
All of it is made by the code that makes the real ones; nothing is created here.
"""

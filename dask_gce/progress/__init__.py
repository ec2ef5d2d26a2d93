"""What a user is told while a cluster gets its machines.

Each way to tell it is a class with the interface of `display.Display`; `choice` picks one, and
`showing` drives it. All of it is read from a `StateBoard`; nothing here knows a cluster.
"""

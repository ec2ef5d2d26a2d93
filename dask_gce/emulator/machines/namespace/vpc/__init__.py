"""What runs below the emulator, in namespaces of its own: the VPC process and what it boots.

Everything here is run by an isolated interpreter and uses the standard library alone.
"""

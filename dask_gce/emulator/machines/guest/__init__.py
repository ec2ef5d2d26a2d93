"""What runs inside and under process machines, started without the emulator's own modules.

The modules here use the standard library alone and import each other relatively: they are run as
the top-level package ``guest`` by an isolated interpreter (``python -I -S``), which starts in
milliseconds and sees nothing of the user's environment.
"""

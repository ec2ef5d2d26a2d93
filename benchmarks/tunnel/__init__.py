"""What goes through a tunnel of IAP in a second, beside what goes through loopback without one."""

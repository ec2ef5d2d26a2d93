"""What Google offers everywhere: zones and regions, machine types, disk types, public images."""

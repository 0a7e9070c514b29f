"""Clients' keys on the controller: the inventory's, and those that `./millrace key` makes."""
